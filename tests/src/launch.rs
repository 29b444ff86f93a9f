//! Starting whole runs as a user would, and looking at what they leave: for the end-to-end and chaos tests.
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A run of a tiny untrained model: seconds long, and every part of a real one. Its rewards are drawn from the group's
/// number, so that there is something to learn. Its data lies beside it.
pub const TINY: &str = r#"
[model]
path = "random://tiny?seed=5"
[agent]
max_new_tokens = 24
[environment]
type = "prompts"
path = "prompts.jsonl"
heldout = 2
max_turns = 1
[training]
steps = 4
groups_per_step = 4
group_size = 4
learning_rate = 1e-2
schedule = "constant"
warmup_ratio = 0.0
micro_batch_tokens = 128
[training.eval]
every = 0
samples = 1
greedy = false
[training.checkpoint]
every = 2
[[rewards.parts]]
type = "random"
[cluster]
capacity = 2
"#;

/// Groups that each of its steps consumes.
pub const GROUPS: u64 = 4;

/// Longer than any run of these tests takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The program, and a folder to run it in.
#[derive(Debug)]
pub struct Bench {
    program: PathBuf,
    folder: PathBuf,
}

/// A metric of every step of a run that has it in each.
pub fn metric(run: &Path, name: &str) -> Result<Vec<f64>> {
    let lines = std::fs::read_to_string(run.join("metrics.jsonl"))?;
    let value = |line: &str| -> Result<f64> {
        let line: Value = serde_json::from_str(line)?;
        line[name].as_f64().or_else(|| line["metrics"][name].as_f64()).with_context(|| format!("no {name} in {line}"))
    };
    lines.lines().map(value).collect()
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

    /// SHA-256 of the final weights of a run that was exact.
    pub fn weights(&self) -> Result<String> {
        ensure!(self.code == Some(0), "exit code {:?}: {}", self.code, self.stderr);
        ensure!(self.field("max_logprob_diff")? == 0.0 && self.number("logprob_tokens_compared")? > 300, "{:?}", self.report);
        let hash = self.field("weights_sha256")?.as_str().context("weights_sha256 is no string")?;
        ensure!(hash.len() == 64, "{hash}");
        Ok(hash.to_owned())
    }

    /// A count of the report.
    pub fn number(&self, name: &str) -> Result<u64> {
        self.field(name)?.as_u64().with_context(|| format!("{name} is no count"))
    }
}

impl Bench {
    /// A bench in an empty folder. `program`: `env!("CARGO_BIN_EXE_cluster_under_test")`. Commands run in another folder
    /// than the configuration's, so that whatever is relative to the working directory fails.
    pub fn new(program: &str, folder: &Path) -> Result<Self> {
        let rows: String = (0..20).map(|i| format!("{{\"prompt\": \"Say {i}.\", \"answer\": \"{i}\"}}\n")).collect();
        std::fs::write(folder.join("prompts.jsonl"), rows)?;
        std::fs::write(folder.join("tiny.toml"), TINY)?;
        std::fs::create_dir(folder.join("elsewhere"))?;
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

    /// The program and the tiny run's configuration, for a shell that launches it.
    #[must_use]
    pub fn program_and_config(&self) -> [PathBuf; 2] {
        [self.program.clone(), self.folder.join("tiny.toml")]
    }

    /// `cluster launch --resume`.
    #[must_use]
    pub fn resume(&self, name: &str, args: &[&str]) -> Command {
        let mut command = self.command("launch");
        command.arg("--resume").arg(self.run_dir(name)).arg("--json").args(args);
        command
    }

    /// `cluster status RUN --json`, once there is one.
    pub fn status(&self, name: &str) -> Result<Option<Value>> {
        let output = self.command("status").arg(self.run_dir(name)).arg("--json").output()?;
        Ok(output.status.success().then(|| serde_json::from_slice(&output.stdout)).transpose()?)
    }

    /// The process of an actor of a run, by what `status` says and the system confirms; `None` while it has none.
    pub fn process_of(&self, name: &str, actor: &str) -> Result<Option<u32>> {
        let Some(status) = self.status(name)? else { return Ok(None) };
        let actors = status["actors"].as_array().context("status has no actors")?;
        let pid = actors.iter().find(|a| a["name"] == actor).and_then(|a| a["pid"].as_u64());
        let pid = pid.map(u32::try_from).transpose()?;
        let alive = processes_of(&self.run_dir(name))?;
        Ok(pid.filter(|pid| alive.contains(pid)))
    }

    /// Any subcommand.
    #[must_use]
    pub fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(self.folder.join("elsewhere")).arg(subcommand).env_remove("COHORT_CRASH");
        // The tests may themselves run under a scheduler.
        command.env_remove("SLURM_PROCID").env_remove("RANK");
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

/// Worker processes of the host whose command line names the run directory.
pub fn processes_of(run_dir: &Path) -> Result<Vec<u32>> {
    let run_dir = run_dir.canonicalize()?;
    let needle = run_dir.to_str().context("run directory is no text")?.as_bytes();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        // A process that ended meanwhile has no command line.
        let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let worker = command_line.split(|&b| b == 0).any(|argument| argument == b"worker");
        if worker && command_line.windows(needle.len()).any(|window| window == needle) {
            found.push(pid);
        }
    }
    Ok(found)
}
