//! Who is there: every process below the keeper, to whom orphans come (it is their subreaper), so that none is missed.
use rustix::process::{Pid, WaitOptions, waitpid};
use std::fs;
use std::path::PathBuf;

/// What was counted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Census {
    /// Processes, each before its children.
    pub(super) processes: Vec<i32>,
    /// Their threads together, each process's first one included.
    pub(super) tasks: u32,
    /// Resident pages together, those that several share counted for each.
    pub(super) pages: u64,
}

/// Counts what is below `keeper`, until there are more than `enough` tasks.
pub(super) fn census(keeper: Pid, enough: u32) -> Census {
    let mut census = Census::default();
    let mut open = children(keeper.as_raw_pid()).children;
    while let Some(process) = open.pop() {
        let below = children(process);
        census.tasks += below.tasks;
        census.pages += pages(process);
        census.processes.push(process);
        open.extend(below.children);
        if census.tasks > enough {
            break;
        }
    }
    census
}

struct Below {
    tasks: u32,
    children: Vec<i32>,
}

/// A process's threads and their children. One that has just ended has none.
fn children(process: i32) -> Below {
    let mut below = Below { tasks: 0, children: Vec::new() };
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    for thread in threads {
        below.tasks += 1;
        let listed = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        below.children.extend(listed.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    below
}

fn pages(process: i32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0)
}

impl Census {
    /// Memory of all together in bytes, what several share counted once. Costs a walk over every mapping.
    pub(super) fn proportional(&self) -> u64 {
        let of = |process: &i32| {
            let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
            let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
            line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib << 10)
        };
        let page = rustix::param::page_size() as u64;
        self.processes.iter().map(|process| of(process).unwrap_or_else(|| pages(*process) * page)).sum()
    }

    /// Files that one of them holds open, as paths that lead to them.
    ///
    /// Errors: a process that lets nobody look.
    pub(super) fn open_files(&self) -> Result<Vec<PathBuf>, String> {
        let mut files = Vec::new();
        for process in &self.processes {
            match fs::read_dir(format!("/proc/{process}/fd")) {
                Ok(descriptors) => files.extend(descriptors.flatten().map(|entry| entry.path())),
                Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                    return Err(format!("its process {process} cannot be watched: {e}"));
                }
                // It has ended.
                Err(_) => {}
            }
        }
        Ok(files)
    }
}

/// Takes leave of orphans that have ended; `ours` is waited for by somebody else.
pub(super) fn bury(keeper: Pid, ours: Pid) {
    let adopted = children(keeper.as_raw_pid()).children;
    for pid in adopted.into_iter().filter_map(Pid::from_raw).filter(|pid| *pid != ours) {
        // Those that live stay.
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
}
