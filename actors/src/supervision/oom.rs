//! Whether the kernel killed a process because memory ran out: what the process's control group counts, `memory.events` of
//! cgroup v2 or `memory.oom_control` of v1.
//!
//! Invariant **O1** a count is claimed once: a later kill by hand is not called one for want of memory.
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// Counters of the control groups that children were started in, and how much of each is claimed.
#[derive(Debug, Default)]
pub(super) struct OomKills {
    claimed: HashMap<PathBuf, u64>,
}

impl OomKills {
    /// A process was started: gives the counter that will tell of its end, where there is one.
    pub(super) fn watch(&mut self, pid: u32) -> Option<PathBuf> {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let counter = counter_of(&groups, Path::new(MOUNT))?;
        if !self.claimed.contains_key(&counter) {
            let count = count_in(&std::fs::read_to_string(&counter).ok()?)?;
            self.claimed.insert(counter.clone(), count);
        }
        Some(counter)
    }

    /// A process was killed: says so if memory ran out in its group since the last claim.
    pub(super) fn claim(&mut self, counter: &Path) -> Option<String> {
        let count = count_in(&std::fs::read_to_string(counter).ok()?)?;
        let claimed = self.claimed.get_mut(counter)?;
        if count <= *claimed {
            return None;
        }
        *claimed = count;
        let group = counter.parent()?;
        let limit = ["memory.max", "memory.limit_in_bytes"].iter().find_map(|name| {
            let bytes: u64 = std::fs::read_to_string(group.join(name)).ok()?.trim().parse().ok()?;
            // Without a limit v1 says a number near 2^63.
            (bytes < 1 << 60).then(|| format!(", limit {} MiB", bytes >> 20))
        });
        Some(format!("out of memory (control group {}{})", group.display(), limit.unwrap_or_default()))
    }
}

/// The counter of a process whose `/proc/PID/cgroup` reads so: of v1's memory hierarchy where there is one, else of v2.
/// Inside a container the path may be the host's: then what is mounted is its own group.
fn counter_of(groups: &str, mount: &Path) -> Option<PathBuf> {
    let of = |controller: &str| {
        groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|c| c == controller).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let candidates = |root: PathBuf, path: String, file: &str| [root.join(path).join(file), root.join(file)];
    let one = of("memory").map(|path| candidates(mount.join("memory"), path, "memory.oom_control"));
    let two = of("").map(|path| candidates(mount.to_owned(), path, "memory.events"));
    one.into_iter().chain(two).flatten().find(|path| path.is_file())
}

fn count_in(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|count| count.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_found_in_both_kinds_and_in_containers() {
        let mount = tempfile::tempdir().unwrap();
        let file = |path: &str| {
            let path = mount.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "oom_kill 0\n").unwrap();
            path
        };
        assert_eq!(counter_of("0::/jobs/7\n", mount.path()), None);
        let own = file("memory.events");
        assert_eq!(counter_of("0::/jobs/7\n", mount.path()), Some(own), "the container's own");
        let two = file("jobs/7/memory.events");
        assert_eq!(counter_of("0::/jobs/7\n", mount.path()), Some(two));
        let one = file("memory/jobs/7/memory.oom_control");
        assert_eq!(counter_of("5:cpu:/\n4:memory:/jobs/7\n0::/\n", mount.path()), Some(one));
    }

    #[test]
    fn a_kill_is_claimed_once_and_the_limit_is_named() {
        let group = tempfile::tempdir().unwrap();
        let counter = group.path().join("memory.events");
        let count = |n: u32| std::fs::write(&counter, format!("low 0\noom 5\noom_kill {n}\n")).unwrap();
        count(2);
        std::fs::write(group.path().join("memory.max"), "268435456\n").unwrap();
        let mut kills = OomKills { claimed: HashMap::from([(counter.clone(), 2)]) };
        assert_eq!(kills.claim(&counter), None);
        count(3);
        assert!(kills.claim(&counter).unwrap().ends_with("limit 256 MiB)"));
        assert_eq!(kills.claim(&counter), None, "O1");
        assert_eq!(kills.claim(Path::new("/nowhere/memory.events")), None);
    }
}
