//! Landlock on the calling thread: the places of a program, and nothing else of the file system; TCP ports; signals and
//! abstract sockets out of it. What this kernel's version does not have yet, [`super::syscalls`] refuses as a whole.
use super::places::{Access, Place};
use ::landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};

/// The version from which signals and abstract sockets are bounded.
pub(super) const SCOPES: u32 = 6;
/// The version from which cutting a file short is.
pub(super) const TRUNCATES: u32 = 3;

/// Restricts the calling thread and whatever it executes, for good. A place that is gone by now is left out.
pub(super) fn restrict(places: &[Place], network: bool, abi: u32) -> Result<(), String> {
    let said = |e: &dyn std::fmt::Display| format!("Landlock refuses its rules: {e}");
    let abi = version(abi);
    let mut ruleset = Ruleset::default().handle_access(AccessFs::from_all(abi)).map_err(|e| said(&e))?;
    if !network && abi >= ABI::V4 {
        ruleset = ruleset.handle_access(AccessNet::from_all(abi)).map_err(|e| said(&e))?;
    }
    if abi >= ABI::V6 {
        ruleset = ruleset.scope(Scope::Signal | Scope::AbstractUnixSocket).map_err(|e| said(&e))?;
    }
    let mut created = ruleset.create().map_err(|e| said(&e))?;
    for (path, access) in places {
        let Ok(place) = PathFd::new(path) else { continue };
        let mut rights = rights(*access, abi);
        if !path.is_dir() {
            rights &= AccessFs::from_file(abi);
        }
        created = created.add_rule(PathBeneath::new(place, rights)).map_err(|e| format!("{}: {}", path.display(), said(&e)))?;
    }
    match created.restrict_self().map_err(|e| said(&e))? {
        status if status.ruleset == RulesetStatus::FullyEnforced && status.no_new_privs => Ok(()),
        status => Err(format!("Landlock enforces its rules in part only: {status:?}")),
    }
}

fn rights(access: Access, abi: ABI) -> BitFlags<AccessFs> {
    let device = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
    match access {
        Access::List => AccessFs::ReadDir.into(),
        Access::Read => AccessFs::from_read(abi),
        Access::Write => AccessFs::from_all(abi) & !device,
        Access::Device => (AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate) & AccessFs::from_all(abi),
    }
}

fn version(abi: u32) -> ABI {
    match abi {
        0 => ABI::Unsupported,
        1 => ABI::V1,
        2 => ABI::V2,
        3 => ABI::V3,
        4 => ABI::V4,
        5 => ABI::V5,
        6..=8 => ABI::V6,
        _ => ABI::V9,
    }
}
