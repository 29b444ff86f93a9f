//! Processes: exit codes, signals, descriptors.
use super::{SOON, policy, soon};
use cohort_actors::supervision::process::{ProcessSpec, ProcessStatus, ProcessSupervisor, exit};
use cohort_actors::{Restart, Shutdown, Strategy};
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) fn shell(id: &str, script: &str, log: Option<&Path>) -> ProcessSpec {
    ProcessSpec {
        id: id.into(),
        restart: Restart::Transient,
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: Vec::new(),
        log: log.map(Into::into),
        inherit: Vec::new(),
        grace: Duration::from_millis(500),
    }
}

/// Waits until the only child's status is as wanted.
pub(super) async fn until(supervisor: &ProcessSupervisor, what: &str, wanted: impl Fn(&ProcessStatus) -> bool) -> ProcessStatus {
    let mut watch = supervisor.watch();
    let status = soon(what, watch.wait_for(|all| all.first().is_some_and(&wanted))).await.unwrap();
    status[0].clone()
}

pub(super) fn alive(pid: u32) -> bool {
    // A zombie is dead: it only waits to be counted.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

pub(super) async fn gone(pid: u32, within: Duration) {
    let since = Instant::now();
    while alive(pid) {
        assert!(since.elapsed() < within, "process {pid} is still there after {within:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_is_restarted_with_its_cause() {
    let shutdown = Shutdown::new();
    let (supervisor, task) = ProcessSupervisor::start(policy(Strategy::OneForOne, 10), 1, shutdown.clone());
    supervisor.add(shell("w", "exec sleep 600", None)).await;
    let mut pids = Vec::new();
    for restarts in 0..3 {
        let status = until(&supervisor, "start", |s| s.pid.is_some() && s.restarts == restarts).await;
        pids.push(status.pid.unwrap());
        signal(pids[restarts as usize], rustix::process::Signal::KILL);
    }
    let status = until(&supervisor, "restart", |s| s.pid.is_some() && s.restarts == 3).await;
    assert_eq!(status.last_exit.unwrap().text, "killed by signal 9 (SIGKILL)");
    pids.push(status.pid.unwrap());
    supervisor.kill("w".into(), "silent for 5 s").await;
    let status = until(&supervisor, "restart", |s| s.pid.is_some() && s.restarts == 4).await;
    assert_eq!(status.last_exit.unwrap().text, "killed by signal 9 (SIGKILL): silent for 5 s");
    pids.push(status.pid.unwrap());
    shutdown.trigger("test");
    soon("end", task).await.unwrap().unwrap();
    assert!(pids.iter().all(|&pid| !alive(pid)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_decide() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let start = || ProcessSupervisor::start(policy(Strategy::OneForOne, 2), 1, Shutdown::new());

    let (supervisor, _task) = start();
    supervisor.add(shell("done", "exit 0", None)).await;
    let done = until(&supervisor, "end", |s| s.phase == "ended").await;
    assert_eq!((done.restarts, done.last_exit.unwrap().code), (0, Some(0)));

    let (supervisor, task) = start();
    supervisor.add(shell("bad", "echo first >&2; echo 'no such model' >&2; exit 3", Some(&log))).await;
    let why = soon("escalation", task).await.unwrap().unwrap_err().to_string();
    assert!(why.contains("bad failed 3 times within 60s, 2 restarts are allowed"), "{why}");
    assert!(why.contains("first cause: bad: exit code 3; last words: no such model"), "{why}");
    assert_eq!(std::fs::read_to_string(&log).unwrap().matches("no such model").count(), 3);
    drop(supervisor);

    let (supervisor, task) = start();
    supervisor.add(shell("other", "exec sleep 600", None)).await;
    let other = until(&supervisor, "start", |s| s.pid.is_some()).await.pid.unwrap();
    supervisor.add(shell("refused", &format!("exit {}", exit::NO_RESTART), None)).await;
    let why = soon("escalation", task).await.unwrap().unwrap_err().to_string();
    assert_eq!(why, "refused cannot run: exit code 78");
    assert!(!alive(other), "the others are stopped before the supervisor ends");

    let (supervisor, task) = start();
    supervisor.add(shell("final", "echo 'no space; make some' >&2; exit 108", Some(&log))).await;
    let why = soon("escalation", task).await.unwrap().unwrap_err().to_string();
    assert_eq!(why, "final cannot run: exit code 108; last words: no space; make some");
    assert_eq!([101, 108, 8, -1].map(exit::final_code), [None, Some(8), None, None]);

    let (supervisor, task) = start();
    supervisor.add(ProcessSpec { program: "/no/such/program".into(), ..shell("missing", "", None) }).await;
    let why = soon("escalation", task).await.unwrap().unwrap_err().to_string();
    assert!(why.contains("/no/such/program"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_does_not_listen_is_killed_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let shutdown = Shutdown::new();
    let (supervisor, task) = ProcessSupervisor::start(policy(Strategy::OneForOne, 2), 1, shutdown.clone());
    let script = format!("trap '' TERM; sleep 600 & echo $! > {0}.tmp; mv {0}.tmp {0}; wait; sleep 600", pids.display());
    supervisor.add(shell("deaf", &script, None)).await;
    let pid = until(&supervisor, "start", |s| s.pid.is_some()).await.pid.unwrap();
    let grandchild: u32 = loop {
        if let Ok(text) = std::fs::read_to_string(&pids) {
            break text.trim().parse().unwrap();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    shutdown.trigger("test");
    soon("end", task).await.unwrap().unwrap();
    assert!(!alive(pid));
    gone(grandchild, SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_supervisor_leaves_no_orphans() {
    let (supervisor, task) = ProcessSupervisor::start(policy(Strategy::OneForOne, 2), 1, Shutdown::new());
    supervisor.add(shell("w", "exec sleep 600", None)).await;
    let pid = until(&supervisor, "start", |s| s.pid.is_some()).await.pid.unwrap();
    task.abort();
    gone(pid, SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptors_go_to_the_child_they_are_for() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut shared = tempfile::tempfile().unwrap();
    shared.write_all(b"weights").unwrap();
    shared.rewind().unwrap();
    let number = shared.as_raw_fd();
    let (supervisor, _task) = ProcessSupervisor::start(policy(Strategy::OneForOne, 2), 1, Shutdown::new());
    let mut heir = shell("heir", &format!("cat /proc/self/fd/{number}"), Some(&log));
    heir.inherit = vec![Arc::new(shared.into())];
    let stranger = shell("stranger", &format!("test ! -e /proc/self/fd/{number}"), None);
    supervisor.add(heir).await;
    until(&supervisor, "end", |s| s.phase == "ended").await;
    supervisor.add(stranger).await;
    let mut watch = supervisor.watch();
    let all = soon("end", watch.wait_for(|all| all.len() == 2 && all[1].phase == "ended")).await.unwrap().clone();
    assert_eq!(all[1].last_exit.as_ref().unwrap().text, "exit code 0");
    let mut text = String::new();
    std::fs::File::open(&log).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "weights");
}
