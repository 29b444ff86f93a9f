//! One hostile program: written, graded with, looked after.
use cohort_actors::confine::{self, Confiner};
use cohort_protocol::{GroupId, LeasePurpose, SampleIx, ScoreOutcome, Turn, TurnRole};
use cohort_reward_workers::rewards::process::{ProcessConfig, ProcessReward};
use cohort_reward_workers::{Reward, SampleInput, ScoreInput, scaffold};
use serde_json::Map;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Before every program: what it needs to be hostile. `HOST` is this process, `OUT` a folder that is none of its business.
const HEAD: &str = "import ctypes, json, os, resource, signal, socket, struct, subprocess, sys, threading, time\n\
                    HOST, OUT, TMP = int(os.environ['HOST']), os.environ['OUT'], os.environ['TMPDIR']\n\
                    libc = ctypes.CDLL(None, use_errno=True)\n";

pub(crate) fn confiner() -> Confiner {
    Confiner::by(env!("CARGO_BIN_EXE_confine_under_test"))
}

/// Whether this kernel can confine; where it cannot, says loudly that nothing was tried.
pub(crate) fn can_confine() -> bool {
    match confine::support().missing() {
        None => true,
        Some(missing) => {
            // Past the capture of the test's output.
            let mut stderr = std::io::stderr();
            writeln!(stderr, "SKIPPED: hostile programs: {missing}").unwrap();
            false
        }
    }
}

/// The interpreter itself, not a shim of it: quick to start.
fn python() -> &'static str {
    static PYTHON: OnceLock<String> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let found = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
        String::from_utf8(found.stdout).unwrap().trim().to_owned()
    })
}

/// A plug-in's folder, a folder outside with a secret, one for scratch folders.
pub(crate) struct Attack {
    root: tempfile::TempDir,
    source: String,
}

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) outcome: ScoreOutcome,
    pub(crate) took: Duration,
}

impl Attack {
    /// A whole program.
    pub(crate) fn program(source: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        for folder in ["plugin/runs/a", "out", "scratch"] {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        std::fs::write(root.path().join("out/secret"), "secret").unwrap();
        std::fs::write(root.path().join("plugin/runs/a/ledger.sqlite"), "secret").unwrap();
        std::fs::write(root.path().join("plugin/cohort_reward.py"), scaffold::PYTHON_SDK).unwrap();
        Self { root, source: format!("{HEAD}{source}\n") }
    }

    /// The body of a grading function; what it returns is the score.
    pub(crate) fn body(body: &str) -> Self {
        let body: String = body.lines().map(|line| format!("    {line}\n")).collect();
        Self::program(&format!("from cohort_reward import reward, run\n@reward\ndef mine(turns, item, context):\n{body}run()"))
    }

    /// A program that talks the protocol by hand: after `say` and `hear` are defined.
    pub(crate) fn talk(body: &str) -> Self {
        Self::program(&format!(
            "def raw(data): sys.stdout.buffer.write(data); sys.stdout.buffer.flush()\n\
             def say(body): raw(struct.pack('<I', len(body)) + body)\n\
             def hear(): return json.loads(sys.stdin.buffer.read(struct.unpack('<I', sys.stdin.buffer.read(4))[0]))\n\
             HELLO = json.dumps(dict(type='hello', role='reward', protocol_min=1, protocol_max=1)).encode()\n{body}"
        ))
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.root.path().join("out")
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.root.path().join("plugin")
    }

    /// Found in the environment of everything that it starts.
    fn mark(&self) -> String {
        format!("COHORT_TEST_MARK={}", self.root.path().display())
    }

    pub(crate) fn config(&self) -> ProcessConfig {
        std::fs::write(self.folder().join("plugin.py"), &self.source).unwrap();
        let mut config = ProcessConfig::new([python(), "plugin.py"]);
        config.working_dir = Some(self.folder());
        (config.attempts, config.timeout_s, config.start_timeout_s) = (1, 90.0, 90.0);
        for (name, value) in [
            ("HOST", std::process::id().to_string()),
            ("OUT", self.out().display().to_string()),
            ("TMPDIR", self.root.path().join("scratch").display().to_string()),
            ("COHORT_TEST_MARK", self.root.path().display().to_string()),
        ] {
            config.env.insert(name.to_owned(), value);
        }
        config
    }

    pub(crate) fn reward(&self, confiner: &Confiner, change: impl FnOnce(&mut ProcessConfig)) -> ProcessReward {
        let mut config = self.config();
        change(&mut config);
        ProcessReward::new("mine", config, &confiner.clone().hiding(&self.folder().join("runs"))).unwrap()
    }

    /// Grades with it once, confined; then nothing of it is left.
    pub(crate) async fn grade(&self, change: impl FnOnce(&mut ProcessConfig)) -> Outcome {
        self.grade_by(&confiner(), change).await
    }

    pub(crate) async fn grade_by(&self, confiner: &Confiner, change: impl FnOnce(&mut ProcessConfig)) -> Outcome {
        let reward = self.reward(confiner, change);
        let begun = Instant::now();
        let outcome = reward.score(&group()).await.remove(0);
        let took = begun.elapsed();
        drop(reward);
        assert_eq!(self.running(), [] as [i32; 0], "what is left running of\n{}", self.source);
        assert!(self.scratch_is_empty(), "scratch is left of\n{}", self.source);
        Outcome { outcome, took }
    }

    /// Grades with it once, not confined: the score of a successful attack.
    pub(crate) async fn unconfined(&self) -> f64 {
        let reward = self.reward(&confiner(), |c| c.confine = false);
        match reward.score(&group()).await.remove(0) {
            ScoreOutcome::Scored(score) => score.score,
            ScoreOutcome::Failed { error, .. } => panic!("does not even work unconfined: {error}\n{}", self.source),
        }
    }

    pub(crate) fn scratch_is_empty(&self) -> bool {
        std::fs::read_dir(self.root.path().join("scratch")).unwrap().next().is_none()
    }

    /// Its processes, zombies apart.
    pub(crate) fn running(&self) -> Vec<i32> {
        let mark = self.mark().into_bytes();
        let is_ours = |pid: &i32| {
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|variable| variable == mark)
        };
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_ours).collect()
    }
}

impl Outcome {
    /// The error, which must name the plug-in.
    pub(crate) fn error(&self) -> &str {
        match &self.outcome {
            ScoreOutcome::Failed { error, .. } if error.starts_with("reward \"mine\": ") => error,
            other => panic!("no error that names the plug-in: {other:?}"),
        }
    }

    pub(crate) fn score(&self) -> f64 {
        match &self.outcome {
            ScoreOutcome::Scored(score) => score.score,
            ScoreOutcome::Failed { error, .. } => panic!("{error}"),
        }
    }
}

pub(crate) fn group() -> ScoreInput {
    let turns = vec![Turn::text(TurnRole::User, "q"), Turn::text(TurnRole::Assistant, "a")];
    let samples = vec![SampleInput { sample: SampleIx(0), turns, context: Map::new() }];
    ScoreInput { purpose: LeasePurpose::Train, group: GroupId(5), seed: 11, item: Map::new(), samples }
}

/// Bodies that must fail with an error that has one of the words in it (separated by `|`), and that give a positive score
/// unconfined where `open` says so. Afterwards this process still grades.
pub(crate) async fn refused(attacks: &[(&str, &str, bool)]) {
    if !can_confine() {
        return;
    }
    for (body, words, open) in attacks {
        let attack = Attack::body(body);
        if *open {
            assert!(attack.unconfined().await > 0.0, "unconfined:\n{body}");
        }
        let attack = Attack::body(body);
        let outcome = attack.grade(|_| {}).await;
        let error = outcome.error();
        assert!(words.split('|').any(|word| error.contains(word)), "{words} of\n{body}\n{error}");
        unharmed(&attack.out());
    }
    still_grades().await;
}

fn unharmed(out: &Path) {
    let left: Vec<_> = std::fs::read_dir(out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["secret"]);
    assert_eq!(std::fs::read_to_string(out.join("secret")).unwrap(), "secret");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(out.join("secret")).unwrap().permissions().mode() & 0o077, 0o044);
}

/// An honest plug-in, confined, in this process.
pub(crate) async fn still_grades() {
    let honest = Attack::body("return len(turns) / 4");
    assert_eq!(honest.grade(|_| {}).await.score(), 0.5);
}
