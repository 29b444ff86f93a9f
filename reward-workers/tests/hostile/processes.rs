//! Many processes, processes that would outlive it, and the death of those who watch.
use crate::attack::{Attack, can_confine, confiner, still_grades};
use cohort_protocol::ScoreOutcome;
use cohort_reward_workers::Reward;
use cohort_reward_workers::rewards::process::ProcessReward;
use std::time::{Duration, Instant};

#[tokio::test]
async fn bombs_are_killed_as_a_whole() {
    if !can_confine() {
        return;
    }
    // `grade` sees that nobody is left. Few are allowed, so that a bomb is small where it is not noticed at once.
    for body in [
        "while True: os.fork()",
        "if os.fork(): time.sleep(60)\nwhile True:\n    if os.fork() and os.fork(): os._exit(0)",
        "subprocess.Popen(['sh', '-c', 'bomb() { bomb | bomb & }; bomb'])\ntime.sleep(60)",
        "for _ in range(100): threading.Thread(target=time.sleep, args=(60,)).start()\ntime.sleep(60)",
    ] {
        let outcome = Attack::body(body).grade(|c| c.processes = 40).await;
        let error = outcome.error();
        assert!(
            error.contains("more than 40 processes and threads at once") && error.contains("processes = 40"),
            "{body}\n{error}"
        );
    }
    still_grades().await;
}

#[tokio::test]
async fn nobody_leaves_the_group_or_outlives_the_plug_in() {
    if !can_confine() {
        return;
    }
    let daemon = "def child():\n\
                  \x20   try: os.setsid()\n\
                  \x20   except OSError: pass\n\
                  \x20   if os.fork(): os._exit(0)\n\
                  \x20   time.sleep(300)\n\
                  if os.fork() == 0: child()\n\
                  os.wait()\n\
                  return 1";
    let bold = Attack::body(daemon);
    assert_eq!(bold.unconfined().await, 1.0);
    let escaped = bold.running();
    assert_eq!(escaped.len(), 1, "unconfined, a daemon stays");
    for pid in escaped {
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    }
    // Confined, `grade` finds nobody: of those that hold its output open, ignore signals, or start anew all the time, either.
    assert_eq!(Attack::body(daemon).grade(|_| {}).await.score(), 1.0);
    for body in [
        "os.setsid()\nreturn 1",
        "os.setpgid(0, 0)\nreturn 1",
        "subprocess.Popen(['sleep', '300'], start_new_session=True)\nreturn 1",
    ] {
        let error = Attack::body(body).grade(|_| {}).await;
        assert!(error.error().contains("PermissionError"), "{}", error.error());
    }
    let stubborn = "for s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\n\
                    if os.fork() == 0:\n\
                    \x20   while True:\n\
                    \x20       if os.fork(): os._exit(0)\n\
                    return 1";
    assert_eq!(Attack::body(stubborn).grade(|_| {}).await.score(), 1.0);
    let timed = "try: subprocess.run(['sleep', '60'], timeout=0.2)\n\
                 except subprocess.TimeoutExpired: return 1 + subprocess.call(['timeout', '0.2', 'sleep', '60']) / 1000";
    assert_eq!(Attack::body(timed).grade(|_| {}).await.score(), 1.124, "its own children are its own to kill");
}

#[tokio::test]
async fn the_death_of_the_program_is_told_as_it_was() {
    if !can_confine() {
        return;
    }
    for (body, words) in [
        ("os.kill(os.getpid(), signal.SIGKILL)", "signal: 9 (SIGKILL)"),
        ("ctypes.string_at(0)", "signal: 11 (SIGSEGV)"),
        ("os._exit(3)", "exit status: 3"),
        ("if os.fork() == 0: time.sleep(300)\nos._exit(3)", "exit status: 3"),
    ] {
        let outcome = Attack::body(body).grade(|_| {}).await;
        let error = outcome.error();
        assert!(error.contains(words) && error.contains("while it graded a group"), "{error}");
    }
    still_grades().await;
}

#[test]
fn everything_goes_with_a_host_that_is_killed() {
    // The host is another process of this test binary, killed while its plug-in is busy and has children of its own.
    const ROLE: &str = "COHORT_TEST_HOST_CONFIG";
    if let Ok(config) = std::env::var(ROLE) {
        let reward = ProcessReward::new("mine", serde_json::from_str(&config).unwrap(), &confiner()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(reward.score(&crate::attack::group()));
        return;
    }
    if !can_confine() {
        return;
    }
    let attack = Attack::body("if os.fork() == 0: time.sleep(300)\nopen(OUT + '/ready', 'w').close()\ntime.sleep(300)");
    let mut config = attack.config();
    config.write = vec![attack.out()];
    let mut host = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::everything_goes_with_a_host_that_is_killed"])
        .env(ROLE, serde_json::to_string(&config).unwrap())
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
    wait(&|| attack.out().join("ready").exists(), "the plug-in did not start");
    assert!(attack.running().len() >= 3, "keeper, program, child: {:?}", attack.running());
    host.kill().unwrap();
    host.wait().unwrap();
    wait(&|| attack.running().is_empty(), "something outlives the host");
    assert!(attack.scratch_is_empty());
}

#[tokio::test]
async fn a_program_that_hangs_is_killed_with_its_children() {
    if !can_confine() {
        return;
    }
    for body in ["subprocess.Popen(['sleep', '300'])\ntime.sleep(300)", "while True: pass"] {
        let outcome = Attack::body(body).grade(|c| c.timeout_s = 1.0).await;
        let ScoreOutcome::Failed { retryable, .. } = outcome.outcome else { panic!("scored") };
        assert!(retryable && outcome.error().contains("did not grade a group within 1s"), "{}", outcome.error());
        assert!(outcome.took >= Duration::from_secs(1) && outcome.took < Duration::from_secs(20), "{:?}", outcome.took);
    }
    still_grades().await;
}
