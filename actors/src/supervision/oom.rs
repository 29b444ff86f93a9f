//! Whether the kernel killed a process because memory ran out: what the process's control group counts, `memory.events` of
//! cgroup v2 or `memory.oom_control` of v1.
//!
//! The counter names nobody, and others may be in the group: a kill counts for the end of a child that follows within
//! [`FRESH`], which a process needs to give its memory back.
//!
//! Invariants
//! - **O1** a count is claimed once: a later kill by hand is not called one for want of memory.
//! - **O2** nor is one that comes after the kernel killed somebody else in the group, [`FRESH`] later.
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// How long after a kill was counted a child's end may be that kill.
const FRESH: Duration = Duration::from_secs(5);
/// Between two looks at the counters.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// Counters of the control groups that children were started in.
#[derive(Debug, Default)]
pub(super) struct OomKills {
    counters: HashMap<PathBuf, Count>,
}

#[derive(Debug, Default)]
struct Count {
    /// So many are somebody's.
    claimed: u64,
    /// More than that, and when they were first seen.
    seen: Option<(u64, Instant)>,
}

impl Count {
    fn look(&mut self, count: u64, now: Instant) {
        match self.seen {
            Some((seen, at)) if now.duration_since(at) >= FRESH => {
                self.claimed = seen;
                self.seen = (count > seen).then_some((count, now));
            }
            Some(_) => {}
            None => self.seen = (count > self.claimed).then_some((count, now)),
        }
    }

    fn claim(&mut self, count: u64) -> bool {
        let fresh = count > self.claimed;
        (self.claimed, self.seen) = (self.claimed.max(count), None);
        fresh
    }
}

impl OomKills {
    /// A process was started: gives the counter that will tell of its end, where there is one.
    pub(super) fn watch(&mut self, pid: u32) -> Option<PathBuf> {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let counter = counter_of(&groups, Path::new(MOUNT))?;
        if !self.counters.contains_key(&counter) {
            let claimed = count_in(&std::fs::read_to_string(&counter).ok()?)?;
            self.counters.insert(counter.clone(), Count { claimed, seen: None });
        }
        Some(counter)
    }

    /// Every [`LOOK`]: kills that no child's end has followed were somebody else's (O2).
    pub(super) fn look(&mut self, now: Instant) {
        for (counter, known) in &mut self.counters {
            if let Some(count) = std::fs::read_to_string(counter).ok().as_deref().and_then(count_in) {
                known.look(count, now);
            }
        }
    }

    /// A process was killed: says so if memory ran out in its group just before.
    pub(super) fn claim(&mut self, counter: &Path) -> Option<String> {
        let count = count_in(&std::fs::read_to_string(counter).ok()?)?;
        if !self.counters.get_mut(counter)?.claim(count) {
            return None;
        }
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
        let mut kills = OomKills { counters: HashMap::from([(counter.clone(), Count { claimed: 2, seen: None })]) };
        assert_eq!(kills.claim(&counter), None);
        count(3);
        assert!(kills.claim(&counter).unwrap().ends_with("limit 256 MiB)"));
        assert_eq!(kills.claim(&counter), None, "O1");
        assert_eq!(kills.claim(Path::new("/nowhere/memory.events")), None);
    }

    #[test]
    fn a_kill_of_somebody_else_is_not_claimed_for_long() {
        let begun = Instant::now();
        let at = |s: u64| begun + Duration::from_secs(s);
        let mut count = Count::default();
        count.look(1, at(0));
        count.look(1, at(4));
        count.look(2, at(4));
        assert!(Count { seen: count.seen, ..Count::default() }.claim(2), "a child that ends now may be one of them");
        count.look(2, at(5));
        assert!(!Count { claimed: count.claimed, seen: count.seen }.claim(1), "O2: the first one was not a child");
        count.look(2, at(9));
        assert!(Count { claimed: count.claimed, seen: count.seen }.claim(2), "the second is seen since 5 s");
        count.look(2, at(10));
        assert!(!count.claim(2), "O2");
        assert!(count.claim(3));
        assert!(!count.claim(3), "O1");
    }
}
