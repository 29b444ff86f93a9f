//! Processes that this binary is the body of: what outlives its agent, and what dies at a crash point.
use super::processes::{alive, gone, shell, until};
use super::{policy, soon};
use cohort_actors::supervision::process::{ProcessSpec, ProcessSupervisor};
use cohort_actors::{Shutdown, Strategy, parent};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const ROLE: &str = "COHORT_TEST_ROLE";
const PIDS: &str = "COHORT_TEST_PIDS";

/// Not a test of its own: this binary, started by the tests below as the agent or as its child.
#[test]
fn child_main() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        match role.as_str() {
            "agent" => {
                let (supervisor, task) = ProcessSupervisor::start(policy(Strategy::OneForOne, 2), 1, Shutdown::new());
                let spec = |id: &str, role: &str| ProcessSpec {
                    program: std::env::current_exe().unwrap(),
                    args: ["--exact", "orphans::child_main", "--nocapture"].map(Into::into).to_vec(),
                    env: vec![(ROLE.into(), role.into())],
                    ..shell(id, "", None)
                };
                supervisor.add(spec("quick", "worker")).await;
                supervisor.add(spec("slow", "worker-without-signal")).await;
                task.await.unwrap().unwrap();
            }
            worker => {
                let shutdown = Shutdown::new();
                assert!(parent::exit_with_parent(&shutdown).unwrap());
                assert_eq!(parent::incarnation().unwrap(), 0);
                if worker == "worker-without-signal" {
                    // Leaves only the pipe to tell it.
                    rustix::process::set_parent_process_death_signal(None).unwrap();
                }
                let pids = std::env::var(PIDS).unwrap();
                let mut file = std::fs::OpenOptions::new().append(true).create(true).open(pids).unwrap();
                file.write_all(format!("{}\n", std::process::id()).as_bytes()).unwrap();
                // Deaf to the signal to leave: the watch makes it leave all the same.
                std::future::pending::<()>().await;
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_gone_within_five_seconds_of_the_agents_death() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let mut agent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "orphans::child_main", "--nocapture"])
        .env(ROLE, "agent")
        .env(PIDS, &pids)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let children: Vec<u32> = soon("children", async {
        loop {
            let text = std::fs::read_to_string(&pids).unwrap_or_default();
            if text.lines().count() == 2 && text.ends_with('\n') {
                return text.lines().map(|line| line.parse().unwrap()).collect();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(children.iter().all(|&pid| alive(pid)));
    agent.kill().unwrap();
    agent.wait().unwrap();
    for pid in children {
        gone(pid, Duration::from_secs(5)).await;
    }
}

/// One crash per run, however often the process is restarted.
#[test]
fn crash_main() {
    if std::env::var(ROLE).as_deref() != Ok("crasher") {
        return;
    }
    cohort_actors::crash::arm_from_env().unwrap();
    for _ in 0..3 {
        cohort_actors::crash::crash_point(cohort_actors::crash::PUBLISH);
        cohort_actors::crash::crash_point(cohort_actors::crash::CHECKPOINT);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_point_kills_once() {
    let dir = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let shutdown = Shutdown::new();
    let (supervisor, task) = ProcessSupervisor::start(policy(Strategy::OneForOne, 5), 1, shutdown.clone());
    supervisor
        .add(ProcessSpec {
            program: std::env::current_exe().unwrap(),
            args: ["--exact", "orphans::crash_main"].map(Into::into).to_vec(),
            env: vec![
                (ROLE.into(), "crasher".into()),
                (cohort_actors::crash::ENV.into(), "publish:2,checkpoint:3".into()),
                (cohort_actors::crash::ENV_DIR.into(), dir.path().into()),
            ],
            ..shell("crasher", "", None)
        })
        .await;
    let last = until(&supervisor, "end", |s| {
        seen.lock().unwrap().push(s.last_exit.clone());
        s.phase == "ended"
    })
    .await;
    assert_eq!((last.restarts, last.last_exit.unwrap().text.as_str()), (2, "exit code 0"));
    let mut markers: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    markers.sort();
    assert_eq!(markers, ["checkpoint-3.crashed", "publish-2.crashed"]);
    let signals: Vec<_> = seen.lock().unwrap().iter().flatten().filter_map(|exit| exit.signal).collect();
    assert!(signals.iter().all(|&signal| signal == 9), "{signals:?}");
    shutdown.trigger("test");
    soon("end", task).await.unwrap().unwrap();
}
