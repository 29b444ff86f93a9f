//! The promise of synchronous runs, on real processes: the final weights are the same bits for any number of workers and
//! threads, in one process or in many, killed at any named point or not, resumed or not. After each run the accounts
//! balance. A tiny random model is trained; what is tried here does not depend on its size.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
use rusqlite::Connection;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const STEPS: u64 = 4;
/// Longest that a run may take, restarts included.
const PATIENCE: Duration = Duration::from_secs(120);
const CONFIG: &str = r#"
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

struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rows: String = (0..20).map(|i| format!("{{\"prompt\": \"Say {i}.\", \"answer\": \"{i}\"}}\n")).collect();
        std::fs::write(dir.path().join("prompts.jsonl"), rows).unwrap();
        std::fs::write(dir.path().join("run.toml"), CONFIG).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cluster"));
        command.current_dir(self.dir.path()).args(arguments).stdin(Stdio::null());
        command
    }

    fn launch(&self, name: &str, extra: &[&str]) -> Command {
        let mut arguments = vec!["launch", "run.toml", "--json", "--run-dir", name];
        arguments.extend(extra);
        self.command(&arguments)
    }

    /// Runs to the end; gives the report.
    fn report(&self, command: &mut Command) -> Value {
        let out = wait(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        assert!(out.status.success(), "{}: {}", out.status, String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout).unwrap();
        serde_json::from_str(text.lines().last().unwrap()).unwrap()
    }

    fn audit(&self, name: &str) {
        let out = self.command(&["audit", name, "--json"]).output().unwrap();
        let report: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert!(out.status.success() && report["balanced"] == true, "{report}");
        assert_eq!(report["generated"], STEPS * 4, "{report}");
        assert_eq!(report["consumed"], STEPS * 4, "{report}");
        assert_eq!(report["in_flight"], 0, "{report}");
    }
}

fn wait(mut child: Child) -> std::process::Output {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            let _ = child.kill();
            let out = child.wait_with_output().unwrap();
            panic!("the run did not end within {PATIENCE:?}: {}", String::from_utf8_lossy(&out.stderr));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

fn hash(report: &Value) -> String {
    let hash = report["weights_sha256"].as_str().unwrap().to_owned();
    assert_eq!(hash.len(), 64, "{report}");
    assert_eq!(report["max_logprob_diff"], 0.0, "{report}");
    assert!(report["logprob_tokens_compared"].as_u64().unwrap() > 300, "{report}");
    hash
}

/// Workers of a role that had a hand in a consumed group.
fn had_a_hand(run: &Path, column: &str, table: &str) -> i64 {
    let ledger = Connection::open(run.join("ledger.sqlite")).unwrap();
    ledger.query_row(&format!("SELECT count(DISTINCT {column}) FROM {table}"), [], |row| row.get(0)).unwrap()
}

#[test]
fn workers_threads_and_processes_do_not_change_a_bit() {
    let desk = Desk::new();
    let reference = hash(&desk.report(&mut desk.launch("one", &["--threads", "1"])));
    desk.audit("one");
    let kinds: [(&str, &[&str]); 4] = [
        ("three", &["--workers", "rollout=3,reward=2"]),
        ("two-threads", &["--threads", "2"]),
        ("processes", &["--processes"]),
        ("many-processes", &["--processes", "--workers", "rollout=3,reward=2", "--threads", "2"]),
    ];
    for (name, extra) in kinds {
        assert_eq!(hash(&desk.report(&mut desk.launch(name, extra))), reference, "{name}");
        desk.audit(name);
    }
    assert_eq!(had_a_hand(&desk.path("many-processes"), "worker", "trajectories"), 3, "every rollout worker had its share");
    let other = desk.report(&mut desk.launch("other", &["--seed", "7"]));
    assert_ne!(hash(&other), reference, "another seed is another run");
    let hashed = desk.command(&["hash", "one/checkpoints/step-4", "--json"]).output().unwrap();
    let hashed: Value = serde_json::from_slice(&hashed.stdout).unwrap();
    assert_eq!(hashed["weights"], reference.as_str(), "`hash` and `launch` name the same weights");
}

#[test]
fn a_kill_at_every_named_point_does_not_change_a_bit() {
    let desk = Desk::new();
    let reference = hash(&desk.report(&mut desk.launch("calm", &[])));
    let points = ["mid-decode", "trajectory-sent", "score-sent", "intent-committed", "learner-backward", "checkpoint", "publish"];
    for point in points {
        let marks = desk.path(&format!("{point}-marks"));
        std::fs::create_dir(&marks).unwrap();
        let mut launch = desk.launch(point, &["--processes", "--workers", "rollout=2"]);
        launch.env("COHORT_CRASH", format!("{point}:2")).env("COHORT_CRASH_DIR", &marks);
        let report = desk.report(&mut launch);
        assert_eq!(hash(&report), reference, "{point}");
        assert!(report["restarts"].as_u64().unwrap() >= 1, "{point}: somebody was killed and started again: {report}");
        assert_eq!(std::fs::read_dir(&marks).unwrap().count(), 1, "{point} was hit");
        desk.audit(point);
    }
}

/// Processes that carry this run's directory in their arguments.
fn alive(run: &Path) -> Vec<i32> {
    let wanted = run.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(" worker ") && line.contains(&wanted) {
            found.push(pid);
        }
    }
    found
}

#[test]
fn the_agents_death_takes_everything_with_it_and_a_resume_ends_in_the_same_bits() {
    let desk = Desk::new();
    let reference = hash(&desk.report(&mut desk.launch("calm", &[])));
    let mut agent = desk.launch("killed", &["--processes"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    // Half-way: the first step is committed, the last is not.
    let committed = || {
        let metrics = std::fs::read_to_string(desk.path("killed/metrics.jsonl")).unwrap_or_default();
        metrics.lines().count()
    };
    while committed() < 1 && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = agent.kill();
    agent.wait().unwrap();
    let killed = Instant::now();
    let run = desk.path("killed").canonicalize().unwrap();
    while !alive(&run).is_empty() {
        assert!(killed.elapsed() < Duration::from_secs(5), "still there: {:?}", alive(&run));
        std::thread::sleep(Duration::from_millis(20));
    }
    let refused = desk.launch("killed", &[]).output().unwrap();
    assert_eq!(refused.status.code(), Some(5), "a run directory in use is not taken: {refused:?}");
    let resumed = desk.report(&mut desk.command(&["launch", "--resume", "killed", "--json"]));
    assert_eq!(hash_of(&resumed), reference);
    desk.audit("killed");
}

fn hash_of(report: &Value) -> String {
    report["weights_sha256"].as_str().unwrap().to_owned()
}
