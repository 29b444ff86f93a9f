//! A rank is gone, or computes something else: who notices, and that the step has the same bits.
use super::{Session, bare, commits, config, engine, model, requests, toy};
use crate::toy::{Hook, Moment, Toy};
use cohort_engine::{Backend, EngineHandle, EngineOptions};
use cohort_protocol::StepCommit;
use cohort_protocol::messages::learner::{CoordinatorToLearner, LearnerToCoordinator, StepRequest};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// An engine that, once it is armed, says when it is about to do something, and goes on when the sender is dropped.
pub(super) struct Halting {
    pub(super) engine: EngineHandle,
    armed: Arc<AtomicBool>,
    begun: mpsc::UnboundedReceiver<()>,
    pub(super) go: std::sync::mpsc::Sender<()>,
}

pub(super) fn halting(moment: Moment) -> Halting {
    let (begins, begun) = mpsc::unbounded_channel();
    let (tell, go) = std::sync::mpsc::channel();
    let (go, armed) = (Mutex::new(go), Arc::new(AtomicBool::new(false)));
    let arm = armed.clone();
    let hook = move || {
        if arm.load(Ordering::Relaxed) {
            // Nobody may be interested any more.
            let _ = begins.send(());
            let _ = go.lock().unwrap().recv();
        }
    };
    let toy = Toy { on: Some((moment, Hook(Arc::new(hook)))), ..Toy::new(model().spec, model().weights().unwrap()) };
    let engine = EngineHandle::start(move || Ok(Box::new(toy)), EngineOptions::default()).unwrap();
    Halting { engine, armed, begun, go: tell }
}

impl Halting {
    pub(super) fn arm(&self) {
        self.armed.store(true, Ordering::Relaxed);
    }

    pub(super) async fn halts(&mut self) {
        timeout(Duration::from_secs(30), self.begun.recv()).await.expect("it comes to that").unwrap();
    }
}

/// Rank 1 dies in the middle of the first step and is replaced; both steps have the bits of `alone`.
pub(super) async fn lose_a_follower(session: &mut Session, requests: &[StepRequest], alone: &[StepCommit]) {
    let mut first = halting(Moment::Backward);
    first.arm();
    session.join(1, first.engine.clone()).await;
    session.ask(&requests[0]).await;
    first.halts().await;
    session.kill(1);
    session.join(1, engine(toy)).await;
    match session.answer().await {
        LearnerToCoordinator::Stepped(stepped) => assert_eq!(bare(stepped.commit), alone[0]),
        other => panic!("{other:?}"),
    }
    drop(first.go);
    assert_eq!(session.step(&requests[1]).await, alone[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_loses_a_follower_is_taken_again_to_the_same_bits() {
    let training = config(2);
    let alone = commits(1, &training, toy).await;
    let requests = requests(2, &training);
    let mut session = Session::new(2, training, toy).await;
    lose_a_follower(&mut session, &requests, &alone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_survivor_of_a_lost_lead_joins_the_next_one() {
    let training = config(2);
    let alone = commits(1, &training, toy).await;
    let requests = requests(2, &training);
    let mut session = Session::whole(2, training, toy).await;
    assert_eq!(session.step(&requests[0]).await, alone[0]);
    session.kill(0);
    session.join(0, engine(toy)).await;
    let meet = CoordinatorToLearner::Meet("here".into());
    session.followers[0].sender().send(&meet).await.unwrap();
    session.load().await;
    assert_eq!(session.step(&requests[0]).await, alone[0], "the follower was ahead of the base model");
    assert_eq!(session.step(&requests[1]).await, alone[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_not_finite_stops_the_run_whoever_met_it() {
    let training = config(2);
    for poisoned in [0, 1] {
        let mut session = Session::new(2, training.clone(), if poisoned == 0 { poison } else { toy }).await;
        session.join(1, engine(if poisoned == 1 { poison } else { toy })).await;
        session.ask(&requests(1, &training)[0]).await;
        match session.answer().await {
            LearnerToCoordinator::Failed(failed) => {
                assert!(failed.fatal && failed.error.contains("log-prob is NaN at group"), "{failed:?}");
                assert_eq!(failed.error.starts_with("learner-1: "), poisoned == 1, "{failed:?}");
            }
            other => panic!("{other:?}"),
        }
    }
}

fn poison() -> Box<dyn Backend> {
    Box::new(Toy { poison_forward: Some(1), ..Toy::new(model().spec, model().weights().unwrap()) })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_computes_something_else_stops_the_run() {
    let training = config(2);
    let requests = requests(2, &training);
    let mut session = Session::new(2, training, toy).await;
    let follower = engine(toy);
    session.join(1, follower.clone()).await;
    session.step(&requests[0]).await;
    follower.flip_weight_bit("model.norm.weight", 0, 1).await.unwrap();
    session.ask(&requests[1]).await;
    match session.answer().await {
        LearnerToCoordinator::Failed(failed) => {
            assert!(failed.fatal && failed.error.contains("on learner-1: one of the machines computes wrongly"), "{failed:?}");
        }
        other => panic!("{other:?}"),
    }
}
