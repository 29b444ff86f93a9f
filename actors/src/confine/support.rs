//! What this kernel can confine.
use ::landlock::{ABI, Access as _, AccessFs, LandlockStatus, Ruleset, RulesetAttr};
use std::fmt;
use std::sync::OnceLock;

/// What there is. Confinement needs all three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Support {
    /// The version of Landlock.
    pub landlock_abi: Option<u32>,
    /// System calls can be refused.
    pub seccomp: bool,
    /// The kernel lists the children of a process.
    pub children: bool,
}

/// Asks the kernel, once a process.
#[must_use]
pub fn support() -> Support {
    static SUPPORT: OnceLock<Support> = OnceLock::new();
    *SUPPORT.get_or_init(|| {
        let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
        Support {
            landlock_abi: landlock_abi(),
            seccomp: actions.split_whitespace().any(|action| action == "errno"),
            children: std::path::Path::new("/proc/thread-self/children").exists(),
        }
    })
}

/// Landlock says its version to a thread that restricts itself: this one is made for it and ends.
fn landlock_abi() -> Option<u32> {
    let ask = || {
        let ruleset = Ruleset::default().handle_access(AccessFs::from_all(ABI::V1)).ok()?;
        match ruleset.create().ok()?.restrict_self().ok()?.landlock {
            LandlockStatus::Available { effective_abi, .. } => Some(effective_abi as u32),
            _ => None,
        }
    };
    std::thread::spawn(ask).join().ok().flatten()
}

impl Support {
    /// What is missing and what to do about it.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let mut missing = Vec::new();
        if self.landlock_abi.is_none() {
            missing.push("Landlock (Linux 5.13 or newer, with `landlock` in the boot option `lsm=`)");
        }
        if !self.seccomp {
            missing.push("seccomp filters (CONFIG_SECCOMP_FILTER)");
        }
        if !self.children {
            missing.push("lists of children (CONFIG_PROC_CHILDREN, and /proc mounted)");
        }
        (!missing.is_empty()).then(|| format!("this kernel cannot confine a program: it has no {}", missing.join(", no ")))
    }
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.landlock_abi {
            Some(abi) => write!(f, "Landlock {abi}")?,
            None => write!(f, "no Landlock")?,
        }
        write!(f, ", {}", if self.seccomp { "seccomp" } else { "no seccomp" })?;
        if !self.children {
            write!(f, ", no lists of children")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let all = Support { landlock_abi: Some(1), seccomp: true, children: true };
        assert_eq!(all.missing(), None);
        let none = Support { landlock_abi: None, seccomp: false, children: false };
        let missing = none.missing().unwrap();
        assert!(["Landlock", "seccomp", "children"].iter().all(|word| missing.contains(word)), "{missing}");
    }

    #[test]
    fn asking_restricts_nobody() {
        let _support = support();
        assert!(std::fs::read_dir("/").is_ok());
        assert!(!rustix::thread::no_new_privs().unwrap(), "the thread that asked is not this one");
    }
}
