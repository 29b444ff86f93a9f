//! Starting whole runs as a user would, and looking at what they leave: for the end-to-end and chaos tests.
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A run of a tiny untrained model at the order desk: seconds long, and every part of a real one.
pub const TINY: &str = r#"
[model]
path = "random://tiny"

[agent]
type = "tool"
max_new_tokens = 6

[environment]
type = "order_desk"
max_turns = 2
heldout = 4

[training]
steps = 3
groups_per_step = 3
group_size = 2
learning_rate = 1e-3
schedule = "linear"
warmup_ratio = 0.0

[training.eval]
every = 0
samples = 1
greedy = true

[training.checkpoint]
every = 2

# An untrained model never gets the answer right: lengths differ, so that there is something to learn.
[[rewards.parts]]
type = "length"
max = 1
slack = 80

[cluster]
capacity = 2
"#;

/// Longer than any run of these tests takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The program, and a folder to run it in.
#[derive(Debug)]
pub struct Bench {
    program: PathBuf,
    folder: PathBuf,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// The report, where there is one.
    pub report: Option<Value>,
    /// What it said on stderr.
    pub stderr: String,
}

impl Ended {
    /// A field of the report.
    pub fn field(&self, name: &str) -> Result<&Value> {
        let report = self.report.as_ref().with_context(|| format!("no report; exit code {:?}: {}", self.code, self.stderr))?;
        report.get(name).with_context(|| format!("no {name} in {report}"))
    }

    /// SHA-256 of the final weights.
    pub fn weights(&self) -> Result<String> {
        Ok(self.field("weights_sha256")?.as_str().context("weights_sha256 is no string")?.to_owned())
    }
}

impl Bench {
    /// A bench in an empty folder. `program`: `env!("CARGO_BIN_EXE_cluster_under_test")`.
    pub fn new(program: &str, folder: &Path) -> Result<Self> {
        std::fs::write(folder.join("tiny.toml"), TINY)?;
        Ok(Self { program: program.into(), folder: folder.to_owned() })
    }

    /// Directory of the run of that name.
    #[must_use]
    pub fn run_dir(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// `cluster launch` of the tiny run under a name, with further arguments.
    #[must_use]
    pub fn launch(&self, name: &str, args: &[&str]) -> Command {
        let mut command = self.command("launch");
        command.arg(self.folder.join("tiny.toml")).arg("--run-dir").arg(self.run_dir(name)).arg("--json").args(args);
        command
    }

    /// `cluster launch --resume`.
    #[must_use]
    pub fn resume(&self, name: &str, args: &[&str]) -> Command {
        let mut command = self.command("launch");
        command.arg("--resume").arg(self.run_dir(name)).arg("--json").args(args);
        command
    }

    /// Any subcommand.
    #[must_use]
    pub fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(&self.folder).arg(subcommand).env_remove("COHORT_CRASH");
        command
    }

    /// Arms a crash point for a launch, once for the whole run.
    pub fn arm(&self, command: &mut Command, point: &str) -> Result<()> {
        let markers = self.folder.join(format!("crashes-{}", point.replace(':', "-")));
        std::fs::create_dir_all(&markers)?;
        command.env("COHORT_CRASH", point).env("COHORT_CRASH_DIR", markers);
        Ok(())
    }

    /// Whether an armed crash point was reached.
    pub fn crashed(&self, point: &str) -> Result<bool> {
        let markers = self.folder.join(format!("crashes-{}", point.replace(':', "-")));
        Ok(std::fs::read_dir(markers)?.next().is_some())
    }

    /// `cluster audit RUN --json`: its report, and that the exit code agrees with it.
    pub fn audit(&self, name: &str) -> Result<Value> {
        let output = self.command("audit").arg(self.run_dir(name)).arg("--json").output()?;
        let text = String::from_utf8(output.stdout)?;
        let report: Value = serde_json::from_str(text.lines().last().unwrap_or_default())
            .with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))?;
        ensure!(report["balanced"] == Value::Bool(output.status.success()), "{report} and {:?}", output.status);
        Ok(report)
    }

    /// Audits and requires balance, with so many groups consumed and none in flight.
    pub fn balanced(&self, name: &str, consumed: u64) -> Result<()> {
        let report = self.audit(name)?;
        ensure!(
            report["balanced"] == Value::Bool(true) && report["consumed"] == consumed && report["in_flight"] == 0,
            "{report}"
        );
        Ok(())
    }
}

/// Runs a command to its end.
pub fn finish(command: &mut Command) -> Result<Ended> {
    wait(start(command)?, PATIENCE)
}

/// Starts a command with its output captured in files, so that nothing blocks on a full pipe.
pub fn start(command: &mut Command) -> Result<Running> {
    let (out, err) = (tempfile::NamedTempFile::new()?, tempfile::NamedTempFile::new()?);
    let args: Vec<OsString> = command.get_args().map(OsString::from).collect();
    let child = command.stdin(Stdio::null()).stdout(out.reopen()?).stderr(err.reopen()?).spawn();
    Ok(Running { child: child.with_context(|| format!("{args:?}"))?, out, err })
}

/// A command under way; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    out: tempfile::NamedTempFile,
    err: tempfile::NamedTempFile,
}

impl Running {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said on stderr.
    pub fn stderr(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.err.path())?)
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already as a rule.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the end of a command, at most so long.
pub fn wait(mut running: Running, patience: Duration) -> Result<Ended> {
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = running.child.try_wait()? {
            break status;
        }
        if begun.elapsed() > patience {
            bail!("not over after {patience:?}: {}", running.stderr()?);
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let stdout = std::fs::read_to_string(running.out.path())?;
    let report = stdout.lines().last().and_then(|line| serde_json::from_str(line).ok());
    Ok(Ended { code: status.code(), report, stderr: running.stderr()? })
}

/// Sends a signal.
pub fn signal(pid: u32, name: &str) -> Result<()> {
    let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status()?;
    ensure!(status.success(), "kill -{name} {pid}: {status}");
    Ok(())
}

/// Waits until `probe` gives something, at most so long.
pub fn until<T>(what: &str, patience: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        ensure!(begun.elapsed() < patience, "no {what} within {patience:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// `status.json` of a run, if it is there.
pub fn status(run_dir: &Path) -> Result<Option<Value>> {
    let Ok(text) = std::fs::read_to_string(run_dir.join("status.json")) else { return Ok(None) };
    Ok(serde_json::from_str(&text).ok())
}

/// Processes of the host whose command line names the run directory.
pub fn processes_of(run_dir: &Path) -> Result<Vec<u32>> {
    let needle = run_dir.to_str().context("run directory is no text")?.as_bytes();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        // A process that ended meanwhile has no command line.
        let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if command_line.windows(needle.len()).any(|window| window == needle) {
            found.push(pid);
        }
    }
    Ok(found)
}
