//! Actors: restarts, groups, giving up.
use super::{policy, soon};
use async_trait::async_trait;
use cohort_actors::supervision::actor::{
    ChildFactory, ChildSpec, ChildStatus, Fatal, SupervisorActor, SupervisorArgs, SupervisorMsg,
};
use cohort_actors::{ChildId, Restart, Strategy, SupervisionPolicy};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent, call_t};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

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
