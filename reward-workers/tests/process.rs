//! The `process` reward with real python3 children: what a plug-in can do wrong, and that nothing of it is a score.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
use cohort_actors::confine::{self, Confiner};
use cohort_protocol::{GroupId, LeasePurpose, SampleIx, ScoreOutcome, Turn, TurnRole};
use cohort_reward_workers::rewards::process::{ProcessConfig, ProcessReward};
use cohort_reward_workers::{Reward, SampleInput, ScoreInput, conformance, scaffold};
use serde_json::{Map, json};
use std::path::Path;
use std::time::{Duration, Instant};

fn group(samples: u16) -> ScoreInput {
    let samples = (0..samples)
        .map(|i| SampleInput {
            sample: SampleIx(i),
            turns: vec![Turn::text(TurnRole::User, "q"), Turn::text(TurnRole::Assistant, format!("answer {i}"))],
            context: Map::new(),
        })
        .collect();
    let item = json!({"answer": "answer 1"}).as_object().unwrap().clone();
    ScoreInput { purpose: LeasePurpose::Train, group: GroupId(5), seed: 11, item, samples }
}

fn confiner() -> Confiner {
    Confiner::by(env!("CARGO_BIN_EXE_confine_under_test"))
}

/// As users run it: confined where the kernel can; its own folder is open to these tests' notes.
fn in_folder(command: [&str; 2], folder: &Path) -> ProcessConfig {
    let mut config = ProcessConfig::new(command);
    config.working_dir = Some(folder.to_owned());
    config.confine = confine::support().missing().is_none();
    if config.confine {
        config.write = vec![folder.to_owned()];
    }
    config
}

/// A plug-in file with the SDK beside it.
struct PlugIn(tempfile::TempDir);

impl PlugIn {
    fn new(source: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("plugin.py"), source).unwrap();
        std::fs::write(dir.path().join("cohort_reward.py"), scaffold::PYTHON_SDK).unwrap();
        Self(dir)
    }

    /// With the usual first lines before and `run()` after the body.
    fn graded_by(body: &str) -> Self {
        Self::new(&format!("import os, sys, time\nfrom cohort_reward import reward, run\n{body}\nrun()\n"))
    }

    fn config(&self) -> ProcessConfig {
        in_folder(["python3", "plugin.py"], self.0.path())
    }

    fn reward(&self, change: impl FnOnce(&mut ProcessConfig)) -> ProcessReward {
        let mut config = self.config();
        change(&mut config);
        ProcessReward::new("mine", config, &confiner()).unwrap()
    }

    async fn failure(&self, change: impl FnOnce(&mut ProcessConfig)) -> (String, bool) {
        match self.reward(change).score(&group(2)).await.remove(0) {
            ScoreOutcome::Failed { error, retryable } => (error, retryable),
            ScoreOutcome::Scored(score) => panic!("scored {}", score.score),
        }
    }
}

fn scores(outcomes: &[ScoreOutcome]) -> Vec<f64> {
    outcomes
        .iter()
        .map(|o| match o {
            ScoreOutcome::Scored(score) => score.score,
            ScoreOutcome::Failed { error, .. } => panic!("{error}"),
        })
        .collect()
}

fn pid_file(dir: &Path) -> rustix::process::Pid {
    let text = std::fs::read_to_string(dir.join("pid")).unwrap();
    rustix::process::Pid::from_raw(text.parse().unwrap()).unwrap()
}

fn is_running(pid: rustix::process::Pid) -> bool {
    rustix::process::test_kill_process(pid).is_ok()
}

#[tokio::test]
async fn grades_samples_and_groups_sync_and_async_whatever_it_prints() {
    let plugin = PlugIn::new(
        "print('before the import')\n\
         import os, subprocess\n\
         from cohort_reward import reward\n\
         print('after it')\n\
         @reward\n\
         def mine(turns, item, context, options):\n\
         \x20   print('x' * 100_000)\n\
         \x20   os.write(1, b'straight to the descriptor')\n\
         \x20   subprocess.run(['echo', 'from a child'])\n\
         \x20   return {'score': turns[-1]['content'] == item['answer'], 'breakdown': {'bonus': options['bonus']}}\n",
    );
    let reward = plugin.reward(|c| {
        c.options = json!({"bonus": 3}).as_object().unwrap().clone();
    });
    let got = reward.score(&group(3)).await;
    assert_eq!(scores(&got), [0.0, 1.0, 0.0]);
    let ScoreOutcome::Scored(first) = &got[0] else { unreachable!() };
    assert_eq!(first.breakdown, [("bonus".to_owned(), 3.0)]);
    let plugin = PlugIn::graded_by(
        "import asyncio\n@reward(group=True)\nasync def rank(turns, item, contexts, seed):\n    await asyncio.sleep(0)\n    \
         return [seed + i for i, _ in enumerate(turns)]",
    );
    assert_eq!(scores(&plugin.reward(|_| {}).score(&group(3)).await), [11.0, 12.0, 13.0]);
}

#[tokio::test]
async fn an_exception_or_nan_fails_its_sample_with_the_traceback() {
    let plugin = PlugIn::graded_by(
        "@reward\ndef mine(turns, item, context, sample):\n    if sample == 0: return float('nan')\n    \
         if sample == 1: return item['missing']\n    return None if sample == 2 else 1",
    );
    let got = plugin.reward(|_| {}).score(&group(4)).await;
    for (outcome, want) in got.iter().zip(["must be a finite number", "KeyError: 'missing'", "return a number"]) {
        let ScoreOutcome::Failed { error, retryable } = outcome else { panic!("{outcome:?}") };
        assert!(!retryable && error.starts_with("reward \"mine\": sample ") && error.contains(want), "{error}");
    }
    let ScoreOutcome::Failed { error, .. } = &got[1] else { unreachable!() };
    assert!(error.contains("plugin.py\", line 6, in mine"), "{error}");
    assert_eq!(scores(&got[3..]), [1.0]);
}

#[tokio::test]
async fn a_wrong_count_names_both_numbers() {
    let plugin = PlugIn::graded_by("@reward(group=True)\ndef rank(turns, item, contexts):\n    return [1]");
    let (why, retryable) = plugin.failure(|_| {}).await;
    assert!(!retryable && why.contains("returned 1 results for a group of 2 samples"), "{why}");
}

#[tokio::test]
async fn a_hanging_child_is_killed_and_the_next_one_answers() {
    let plugin = PlugIn::graded_by(
        "@reward\ndef mine(turns, item, context):\n    if not os.path.exists('hung'):\n        \
         open('hung', 'w').close(); open('pid', 'w').write(str(os.getpid()))\n        while True: pass\n    return 1",
    );
    let reward = plugin.reward(|c| c.timeout_s = 1.0);
    let begun = Instant::now();
    assert_eq!(scores(&reward.score(&group(1)).await), [1.0]);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert!(!is_running(pid_file(plugin.0.path())));
    let plugin = PlugIn::graded_by("@reward\ndef mine(turns, item, context):\n    time.sleep(60)");
    let (why, retryable) = plugin.failure(|c| (c.timeout_s, c.attempts) = (0.3, 1)).await;
    assert!(retryable && why.contains("did not grade a group within 300ms") && why.contains("raise timeout_s"), "{why}");
}

#[tokio::test]
async fn a_dying_child_is_restarted_until_its_limit_and_then_names_the_first_cause() {
    let plugin = PlugIn::graded_by(
        "@reward\ndef mine(turns, item, context):\n    if not os.path.exists('died'):\n        open('died', 'w').close()\n        \
         os._exit(3)\n    return 1",
    );
    assert_eq!(scores(&plugin.reward(|_| {}).score(&group(1)).await), [1.0], "the second try is answered");
    let plugin =
        PlugIn::graded_by("@reward\ndef mine(turns, item, context):\n    sys.stderr.write('out of luck\\n')\n    os._exit(3)");
    let reward = plugin.reward(|c| (c.max_restarts, c.attempts) = (1, 3));
    let outcomes = reward.score(&group(1)).await;
    let ScoreOutcome::Failed { error, retryable } = &outcomes[0] else { panic!("{outcomes:?}") };
    assert!(
        !retryable && error.contains("given up") && error.contains("1 restarts are allowed") && error.contains("exit status: 3"),
        "{error}"
    );
    assert!(error.contains("out of luck"), "{error}");
}

#[tokio::test]
async fn what_is_no_plug_in_is_named_with_the_remedy() {
    for (source, want) in [
        ("import os\nos.write(1, b'hello world, this is text')\nimport time; time.sleep(60)", "import cohort_reward first"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("def f(:", "SyntaxError"),
        ("pass", "ended with exit status: 0 before its hello"),
        ("from cohort_reward import run\nrun()", "no function is marked @reward"),
        (
            "from cohort_reward import reward, run\n@reward\ndef a(t, i, c): return 1\n@reward\ndef b(t, i, c): return 1\nrun()",
            "two functions are marked @reward: a and b",
        ),
        (
            "import cohort_reward\ncohort_reward.PROTOCOL = 9\n@cohort_reward.reward\ndef f(t, i, c): return 1\ncohort_reward.run()",
            "speaks plug-in protocol 9 to 9, this build speaks 1",
        ),
        ("import os, struct\nos.write(1, struct.pack('<I', 12) + b'{\"type\": 1}x')\nimport time; time.sleep(60)", "not JSON"),
    ] {
        let (why, _) = PlugIn::new(source).failure(|c| c.attempts = 1).await;
        assert!(why.starts_with("reward \"mine\": ") && why.contains(want), "{source}: {why}");
    }
    let (why, retryable) = PlugIn::new("").failure(|c| c.command = vec!["./no-such-program".into()]).await;
    assert!(!retryable && why.contains("cannot be started") && why.contains("no-such-program"), "{why}");
}

#[tokio::test]
async fn nonsense_in_place_of_an_answer_is_an_error() {
    let talk = |answer: &str| {
        PlugIn::new(&format!(
            "import sys, json, struct\n\
             def say(body): sys.stdout.buffer.write(struct.pack('<I', len(body)) + body); sys.stdout.buffer.flush()\n\
             def hear(): return json.loads(sys.stdin.buffer.read(struct.unpack('<I', sys.stdin.buffer.read(4))[0]))\n\
             say(json.dumps(dict(type='hello', role='reward', protocol_min=1, protocol_max=1)).encode())\n\
             hear(); q = hear()\n{answer}\nhear()\n"
        ))
    };
    for (answer, want) in [
        ("say(b'{\"type\": \"scores\", \"id\": 1, \"scores\": [NaN, 1]}')", "NaN and Infinity are not JSON"),
        ("say(b'{\"type\": \"scores\", \"id\": 1, \"scores\": [1]}')", "1 scores for a group of 2 samples"),
        ("say(b'{\"type\": \"scores\", \"id\": 7, \"scores\": [1, 1]}')", "answered id 7 where 1 was asked"),
        ("say(b'{\"type\": \"jokes\", \"id\": 1}')", "expected \"scores\" or \"error\""),
        ("print('debugging', flush=True)", "debugging"),
        ("sys.stdout.buffer.write(b'\\xff\\xff'); sys.exit(1)", "exit status: 1 while it graded"),
    ] {
        let (why, _) = talk(answer).failure(|c| (c.attempts, c.timeout_s) = (1, 5.0)).await;
        assert!(why.contains(want), "{answer}: {why}");
    }
}

#[tokio::test]
async fn options_are_checked_against_the_declared_schema() {
    let plugin = PlugIn::graded_by(
        "@reward(options={'type': 'object', 'properties': {'k': {'type': 'integer'}}, 'required': ['k']})\n\
         def mine(turns, item, context, options):\n    return options['k']",
    );
    let (why, retryable) = plugin.failure(|c| c.options = json!({"k": "three"}).as_object().unwrap().clone()).await;
    assert!(!retryable && why.contains("options/k") && why.contains("integer"), "{why}");
    let reward = plugin.reward(|c| c.options = json!({"k": 3}).as_object().unwrap().clone());
    assert_eq!(scores(&reward.score(&group(1)).await), [3.0]);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn memory_is_capped() {
    let plugin = PlugIn::graded_by("@reward\ndef mine(turns, item, context):\n    return len(bytearray(2 << 30))");
    let (why, retryable) = plugin.failure(|c| c.memory_mib = 512).await;
    assert!(!retryable && why.contains("MemoryError") && why.contains("memory_mib = 512"), "{why}");
}

#[tokio::test]
async fn children_and_grandchildren_die_with_the_reward() {
    let plugin = PlugIn::graded_by(
        "import subprocess\n@reward\ndef mine(turns, item, context):\n    \
         open('pid', 'w').write(str(subprocess.Popen(['sleep', '300']).pid))\n    return 1",
    );
    let reward = plugin.reward(|_| {});
    assert_eq!(scores(&reward.score(&group(1)).await), [1.0]);
    let grandchild = pid_file(plugin.0.path());
    assert!(is_running(grandchild));
    drop(reward);
    // The kill has been sent; its new parent reaps it.
    let begun = Instant::now();
    while is_running(grandchild) && !is_zombie(grandchild) {
        assert!(begun.elapsed() < Duration::from_secs(5), "the grandchild lives on");
        std::thread::yield_now();
    }
}

fn is_zombie(pid: rustix::process::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

#[cfg(target_os = "linux")]
#[test]
fn the_child_dies_with_the_worker_even_while_it_hangs() {
    // The worker is another process of this test binary, killed while its child is busy.
    const ROLE: &str = "COHORT_TEST_WORKER_DIR";
    if let Ok(dir) = std::env::var(ROLE) {
        let config = in_folder(["python3", "plugin.py"], Path::new(&dir));
        let reward = ProcessReward::new("mine", config, &confiner()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(reward.score(&group(1)));
        return;
    }
    let plugin = PlugIn::graded_by(
        "@reward\ndef mine(turns, item, context):\n    open('tmp', 'w').write(str(os.getpid())); os.rename('tmp', 'pid')\n    \
         while True: pass",
    );
    let mut worker = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_child_dies_with_the_worker_even_while_it_hangs"])
        .env(ROLE, plugin.0.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let wait = |until: &dyn Fn() -> bool, what: &str| {
        let begun = Instant::now();
        while !until() {
            assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait(&|| plugin.0.path().join("pid").exists(), "the child did not start");
    let child = pid_file(plugin.0.path());
    worker.kill().unwrap();
    worker.wait().unwrap();
    wait(&|| !is_running(child) || is_zombie(child), "the child outlives its worker");
}

#[tokio::test]
async fn the_scaffold_conforms_and_its_config_builds() {
    let dir = tempfile::tempdir().unwrap();
    let files = scaffold::init_plugin(dir.path(), "python").unwrap();
    let config = in_folder(["python3", "my_reward.py"], dir.path());
    let confined = config.confine;
    let report = conformance(config, &confiner(), Map::new()).await;
    assert!(report.passed(), "{report:?}");
    assert_eq!(report.checks.len(), 6);
    let toml: toml::Table = std::fs::read_to_string(&files[2]).unwrap().parse().unwrap();
    let mut rewards: cohort_reward_workers::RewardsConfig = toml["rewards"].clone().try_into().unwrap();
    rewards.resolve_paths(dir.path());
    rewards.parts[1].options.insert("confine".to_owned(), confined.into());
    let reward = cohort_reward_workers::Registry::confining(&confiner()).build(&rewards).unwrap();
    let mut input = group(1);
    input.samples[0].context = json!({"correct": 1, "format": 1}).as_object().unwrap().clone();
    let got = reward.score(&input).await;
    let ScoreOutcome::Scored(score) = &got[0] else { panic!("{got:?}") };
    let names: Vec<_> = score.breakdown.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["order_desk", "order_desk/correct", "order_desk/format", "my_reward", "my_reward/characters"]);
    assert!(score.score > 1.0 && score.score < 1.1);
}

#[tokio::test]
async fn conformance_says_what_is_wrong() {
    let report = conformance(PlugIn::new("import nothing_like_it").config(), &confiner(), Map::new()).await;
    assert!(!report.passed() && report.checks.len() == 1, "{report:?}");
    let plugin = PlugIn::graded_by("import random\n@reward\ndef mine(turns, item, context):\n    return random.random()");
    let report = conformance(plugin.config(), &confiner(), Map::new()).await;
    let failed: Vec<_> = report.checks.iter().filter(|c| !c.passed).map(|c| c.name).collect();
    assert_eq!(failed, ["deterministic"], "{report:?}");
}
