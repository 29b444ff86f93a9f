//! Supervision of real actors and real processes.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "outside of `#[test]` functions the lint does not see that this is a test"
)]
use async_trait::async_trait;
use cohort_actors::backoff::BackoffPolicy;
use cohort_actors::parent;
use cohort_actors::supervision::actor::{
    ChildFactory, ChildSpec, ChildStatus, Fatal, SupervisorActor, SupervisorArgs, SupervisorMsg,
};
use cohort_actors::supervision::process::{ProcessSpec, ProcessStatus, ProcessSupervisor, exit};
use cohort_actors::{ChildId, Restart, Shutdown, Strategy, SupervisionPolicy};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent, call_t};
use std::collections::HashMap;
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(SOON, work).await.unwrap_or_else(|_| panic!("{what}: nothing within {SOON:?}"))
}

fn policy(strategy: Strategy, max_restarts: u32) -> SupervisionPolicy {
    let backoff =
        BackoffPolicy { base: Duration::from_millis(5), max: Duration::from_millis(20), jitter: 0.5, first_at_once: true };
    SupervisionPolicy { strategy, max_restarts, backoff, ..SupervisionPolicy::default() }
}

// ---- actors ----

/// An actor that dies as it is told.
struct Mortal;

enum Die {
    Panic,
    Fail,
    Fatally,
}

impl Actor for Mortal {
    type Msg = Die;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Die>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(&self, _: ActorRef<Die>, message: Die, (): &mut ()) -> Result<(), ActorProcessingErr> {
        match message {
            Die::Panic => panic!("told to panic"),
            Die::Fail => Err("told to fail".into()),
            Die::Fatally => Err(Fatal("told to fail for good".into()).into()),
        }
    }
}

/// Starts mortals and tells the test about each.
struct Mortals {
    id: ChildId,
    born: mpsc::UnboundedSender<(ChildId, u32, ActorCell)>,
    stillborn: u32,
}

#[async_trait]
impl ChildFactory for Mortals {
    async fn spawn(&self, supervisor: ActorCell, incarnation: u32) -> Result<ActorCell, ActorProcessingErr> {
        if (1..=self.stillborn).contains(&incarnation) {
            return Err("not ready yet".into());
        }
        let (actor, _) = Actor::spawn_linked(None, Mortal, (), supervisor).await?;
        let _ = self.born.send((self.id.clone(), incarnation, actor.get_cell()));
        Ok(actor.get_cell())
    }
}

/// A grandparent that notes why its supervisor failed.
struct Top(mpsc::UnboundedSender<String>);

impl Actor for Top {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        event: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(_, error) => drop(self.0.send(error.to_string())),
            SupervisionEvent::ActorTerminated(..) => drop(self.0.send("terminated".to_owned())),
            _ => {}
        }
        Ok(())
    }
}

struct Tree {
    supervisor: ActorRef<SupervisorMsg>,
    born: mpsc::UnboundedReceiver<(ChildId, u32, ActorCell)>,
    births: mpsc::UnboundedSender<(ChildId, u32, ActorCell)>,
    top: mpsc::UnboundedReceiver<String>,
    alive: HashMap<ChildId, ActorCell>,
}

impl Tree {
    async fn grow(policy: SupervisionPolicy, children: &[&str]) -> Self {
        let (births, born) = mpsc::unbounded_channel();
        let (noted, top) = mpsc::unbounded_channel();
        let (grandparent, _) = Actor::spawn(None, Top(noted), ()).await.unwrap();
        let args = SupervisorArgs {
            policy,
            seed: 1,
            grace: Duration::from_secs(5),
            children: children.iter().map(|name| spec(name, &births, 0)).collect(),
        };
        let (supervisor, _) = Actor::spawn_linked(None, SupervisorActor, args, grandparent.get_cell()).await.unwrap();
        let mut tree = Self { supervisor, born, births, top, alive: HashMap::new() };
        for name in children {
            assert_eq!(tree.birth().await, (ChildId::from(name), 0));
        }
        tree
    }

    async fn birth(&mut self) -> (ChildId, u32) {
        let (id, incarnation, actor) = soon("birth", self.born.recv()).await.unwrap();
        self.alive.insert(id.clone(), actor);
        (id, incarnation)
    }

    fn kill(&self, name: &str, how: Die) {
        self.alive[&ChildId::from(name)].send_message(how).unwrap();
    }

    async fn status(&self) -> Vec<ChildStatus> {
        call_t!(self.supervisor, SupervisorMsg::Status, 20_000).unwrap()
    }
}

fn spec(name: &str, births: &mpsc::UnboundedSender<(ChildId, u32, ActorCell)>, stillborn: u32) -> ChildSpec {
    let id = ChildId::from(name);
    let factory = Arc::new(Mortals { id: id.clone(), born: births.clone(), stillborn });
    ChildSpec { id, restart: Restart::Permanent, factory }
}

#[tokio::test]
async fn an_actor_is_restarted_however_it_dies() {
    let mut tree = Tree::grow(policy(Strategy::OneForOne, 10), &["a", "b"]).await;
    for (n, how) in [(1, Die::Panic), (2, Die::Fail)] {
        tree.kill("a", how);
        assert_eq!(tree.birth().await, ("a".into(), n));
    }
    tree.alive[&ChildId::from("a")].kill();
    assert_eq!(tree.birth().await, ("a".into(), 3));
    tree.alive[&ChildId::from("a")].stop(None);
    assert_eq!(tree.birth().await, ("a".into(), 4));
    let status = tree.status().await;
    assert_eq!((status[0].restarts, status[1].restarts), (4, 0));
    let found = call_t!(tree.supervisor, SupervisorMsg::Lookup, 20_000, "a".into()).unwrap();
    assert_eq!(found.unwrap().get_id(), tree.alive[&ChildId::from("a")].get_id());
}

#[tokio::test]
async fn groups_are_restarted_together_and_in_order() {
    let mut tree = Tree::grow(policy(Strategy::RestForOne, 10), &["a", "b", "c"]).await;
    tree.kill("b", Die::Panic);
    assert_eq!([tree.birth().await, tree.birth().await], [("b".into(), 1), ("c".into(), 1)]);
    let mut tree = Tree::grow(policy(Strategy::OneForAll, 10), &["a", "b", "c"]).await;
    tree.kill("b", Die::Fail);
    for name in ["a", "b", "c"] {
        assert_eq!(tree.birth().await, (name.into(), 1));
    }
}

#[tokio::test]
async fn children_can_be_added_fail_to_start_and_be_removed() {
    let mut tree = Tree::grow(policy(Strategy::OneForOne, 10), &["a"]).await;
    tree.supervisor.send_message(SupervisorMsg::Add(spec("late", &tree.births, 2))).unwrap();
    assert_eq!(tree.birth().await, ("late".into(), 0));
    tree.kill("late", Die::Panic);
    assert_eq!(tree.birth().await, ("late".into(), 3), "two starts failed");
    let late = tree.alive[&ChildId::from("late")].clone();
    tree.supervisor.send_message(SupervisorMsg::Remove("late".into())).unwrap();
    soon("end", late.wait(None)).await.unwrap();
    assert_eq!(tree.status().await.iter().map(|s| s.id.to_string()).collect::<Vec<_>>(), ["a"]);
}

#[tokio::test]
async fn a_supervisor_that_gives_up_names_the_first_cause_and_leaves_no_orphans() {
    let mut tree = Tree::grow(policy(Strategy::OneForOne, 2), &["a", "b"]).await;
    tree.kill("a", Die::Fail);
    tree.birth().await;
    tree.kill("a", Die::Panic);
    tree.birth().await;
    tree.kill("a", Die::Panic);
    let since = Instant::now();
    let why = soon("escalation", tree.top.recv()).await.unwrap();
    assert!(since.elapsed() < Duration::from_secs(1), "escalated after {:?}", since.elapsed());
    assert!(why.contains("a failed 3 times") && why.contains("first cause: a: told to fail"), "{why}");
    soon("end of b", tree.alive[&ChildId::from("b")].wait(None)).await.unwrap();
}

#[tokio::test]
async fn a_fatal_failure_is_not_restarted() {
    let mut tree = Tree::grow(policy(Strategy::OneForOne, 10), &["a", "b"]).await;
    tree.kill("a", Die::Fatally);
    let why = soon("escalation", tree.top.recv()).await.unwrap();
    assert_eq!(why, "a cannot run: told to fail for good");
    tree.born.close();
    assert!(soon("no birth", tree.born.recv()).await.is_none());
}

#[tokio::test]
async fn a_supervisor_told_to_stop_stops_its_children() {
    let mut tree = Tree::grow(policy(Strategy::OneForOne, 10), &["a", "b"]).await;
    tree.supervisor.send_message(SupervisorMsg::Stop).unwrap();
    assert_eq!(soon("end", tree.top.recv()).await.unwrap(), "terminated");
    for child in tree.alive.values() {
        soon("end of a child", child.wait(None)).await.unwrap();
    }
}

// ---- processes ----

fn shell(id: &str, script: &str, log: Option<&Path>) -> ProcessSpec {
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
async fn until(supervisor: &ProcessSupervisor, what: &str, wanted: impl Fn(&ProcessStatus) -> bool) -> ProcessStatus {
    let mut watch = supervisor.watch();
    let status = soon(what, watch.wait_for(|all| all.first().is_some_and(&wanted))).await.unwrap();
    status[0].clone()
}

fn alive(pid: u32) -> bool {
    // A zombie is dead: it only waits to be counted.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

async fn gone(pid: u32, within: Duration) {
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

// ---- a child that outlives its agent ----

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
                    args: ["--exact", "child_main", "--nocapture"].map(Into::into).to_vec(),
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
        .args(["--exact", "child_main", "--nocapture"])
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
            args: ["--exact", "crash_main"].map(Into::into).to_vec(),
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
