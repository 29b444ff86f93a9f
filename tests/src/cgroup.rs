//! A control group with a limit on memory, v1 or v2, for tests of what the kernel does when memory runs out. Takes root; a test
//! that cannot have one says so loudly.
use crate::wrapped::wrapped;
use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes that one [`MemoryGroup::hold`] takes.
pub const HELD: u64 = 8 << 20;

/// A group of its own; removed when dropped, once its processes have ended.
#[derive(Debug)]
pub struct MemoryGroup {
    path: PathBuf,
    limit: &'static str,
    unlimited: &'static str,
}

impl MemoryGroup {
    /// A group without a limit yet; `None`, said on stderr, where that is not permitted.
    pub fn new() -> Result<Option<Self>> {
        let name = format!("cohort-test-{}", std::process::id());
        let one = (Path::new("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "-1");
        let two = (Path::new("/sys/fs/cgroup"), "memory.max", "max");
        for (root, limit, unlimited) in [one, two] {
            let path = root.join(&name);
            if std::fs::create_dir(&path).is_err() {
                continue;
            }
            let group = Self { path, limit, unlimited };
            if group.path.join(limit).is_file() {
                return Ok(Some(group));
            }
        }
        // Past the capture of the test's output.
        writeln!(
            std::io::stderr(),
            "SKIPPED: no control group for memory can be made; run the tests as root, with cgroups mounted"
        )?;
        Ok(None)
    }

    /// The command, to be run within the group.
    #[must_use]
    pub fn within(&self, command: &Command) -> Command {
        let mut joined = Command::new("sh");
        joined.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]).arg(self.path.join("cgroup.procs"));
        wrapped(joined, command)
    }

    /// Bytes that its processes hold and that no file stands behind.
    pub fn anonymous(&self) -> Result<u64> {
        let stat = std::fs::read_to_string(self.path.join("memory.stat"))?;
        let value = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        value("total_rss ").or_else(|| value("anon ")).context("memory.stat names no anonymous memory")
    }

    /// Limits it to so many bytes; `None`: no longer.
    pub fn limit(&self, bytes: Option<u64>) -> Result<()> {
        let text = bytes.map_or_else(|| self.unlimited.to_owned(), |bytes| bytes.to_string());
        let path = self.path.join(self.limit);
        std::fs::write(&path, text).with_context(|| path.display().to_string())
    }

    /// [`HELD`] more are held within the group until the answer is dropped, by a program that the kernel would rather kill than
    /// whoever is not marked. Several small ones, not one that is large: the kernel chooses its next victim while the pages of the
    /// last one are still on their way back, and while any of these lives, that is one of these. (What counts for it is a
    /// process's pages, those of its program among them, and `oom_score_adj` thousandths of the limit. So the limit must be
    /// several times what a worker's program takes.)
    pub fn hold(&self) -> Result<Held> {
        let dd = "echo 999 >/proc/self/oom_score_adj && exec dd if=/dev/zero count=1 bs=\"$0\" 2>/dev/null";
        let mut command = Command::new("sh");
        command.args(["-c", dd, &HELD.to_string()]);
        // Nobody reads what it writes, so that it keeps its one block.
        Ok(Held(self.within(&command).stdout(Stdio::piped()).spawn()?))
    }
}

/// A program of the test's that holds memory; ended when dropped.
#[derive(Debug)]
pub struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        // The kernel may have been first.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let begun = Instant::now();
        // Processes that were killed are on their way out.
        while std::fs::remove_dir(&self.path).is_err() && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Marks a process as the first that the kernel is to take when memory runs out.
pub fn mark(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/oom_score_adj");
    let before: i32 = std::fs::read_to_string(&path)?.trim().parse()?;
    ensure!(before == 500, "a worker offers itself before the agent and the coordinator: {before}");
    std::fs::write(&path, "1000").with_context(|| path)
}
