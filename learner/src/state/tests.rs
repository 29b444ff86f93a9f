//! What the learner answers, epoch by epoch.
use super::*;
use cohort_protocol::messages::learner::{Fault, LoadFrom};
use proptest::prelude::*;

const PATIENCE: Patience = Patience { state: 5, micro_batch: 3, publish: 2 };

fn step(epoch: u64, n: u64) -> StepRequest {
    let intent = StepIntent { step: StepId(n), base: PolicyVersion(n - 1), groups: Vec::new(), digests: Vec::new() };
    StepRequest { epoch: Epoch(epoch), intent, groups: Vec::new(), replay: false, hash: false }
}

fn commit(n: u64) -> StepCommit {
    let (step, version) = (StepId(n), PolicyVersion(n));
    StepCommit { step, version, weights_sha256: String::new(), weights_digest: n, metrics: Vec::new() }
}

fn loaded(version: u64) -> Outcome {
    Outcome::Loaded { version: PolicyVersion(version), digest: version, sha256: String::new() }
}

fn after(state: &mut LearnerState, event: Event) -> Vec<Command> {
    let mut out = Vec::new();
    state.on_event(event, &mut out);
    out
}

fn ask(state: &mut LearnerState, request: CoordinatorToLearner) -> Vec<Command> {
    after(state, Event::Received(request))
}

/// Connected in epoch 1 and holding version 0.
fn ready() -> LearnerState {
    let mut state = LearnerState::new(PATIENCE, None);
    assert_eq!(after(&mut state, Event::Connected(Epoch(1))), [Command::Send(LearnerToCoordinator::Ready(None))]);
    let load = Load { epoch: Epoch(1), from: LoadFrom::Base, version: PolicyVersion(0) };
    assert!(matches!(ask(&mut state, CoordinatorToLearner::Load(load))[..], [Command::Start(Job::Load(_))]));
    after(&mut state, Event::Finished(loaded(0)));
    assert_eq!(state.held(), Some(PolicyVersion(0)));
    state
}

#[test]
fn the_same_step_again_is_answered_from_memory() {
    let mut state = ready();
    assert!(matches!(ask(&mut state, CoordinatorToLearner::Step(step(1, 1)))[..], [Command::Start(Job::Step(_))]));
    assert_eq!(ask(&mut state, CoordinatorToLearner::Step(step(1, 1))), [], "it is being done");
    after(&mut state, Event::Finished(Outcome::Stepped(commit(1))));
    let again = ask(&mut state, CoordinatorToLearner::Step(step(1, 1)));
    assert!(matches!(&again[..], [Command::Send(LearnerToCoordinator::Stepped(s))] if s.commit == commit(1)));
    let hashed = StepRequest { hash: true, ..step(1, 1) };
    assert!(matches!(ask(&mut state, CoordinatorToLearner::Step(hashed))[..], [Command::Start(Job::Hash(_))]));
    // Other groups for the step just done are another matter.
    let mut state = ready();
    ask(&mut state, CoordinatorToLearner::Step(step(1, 1)));
    after(&mut state, Event::Finished(Outcome::Stepped(commit(1))));
    let mut other = step(1, 1);
    other.intent.digests.push("x".into());
    assert!(matches!(&ask(&mut state, CoordinatorToLearner::Step(other))[..], [Command::Send(LearnerToCoordinator::Failed(_))]));
}

#[test]
fn answers_do_not_cross_epochs_and_ready_waits() {
    let mut state = ready();
    ask(&mut state, CoordinatorToLearner::Step(step(1, 1)));
    assert_eq!(after(&mut state, Event::Connected(Epoch(2))), []);
    assert_eq!(ask(&mut state, CoordinatorToLearner::Step(step(1, 1))), [], "a request of the old epoch");
    let out = after(&mut state, Event::Finished(Outcome::Stepped(commit(1))));
    assert_eq!(out, [Command::Send(LearnerToCoordinator::Ready(Some(PolicyVersion(1))))]);
}

#[test]
fn lost_weights_are_not_stepped_on() {
    let mut state = ready();
    ask(&mut state, CoordinatorToLearner::Step(step(1, 1)));
    let failure = Failure { error: "NaN".into(), fatal: true, fault: Fault::Compute, aftermath: Aftermath::WeightsLost };
    let out = after(&mut state, Event::Finished(Outcome::Failed(failure)));
    assert!(matches!(&out[..], [Command::Send(LearnerToCoordinator::Failed(f))] if f.fatal && f.what == "step 1"));
    assert_eq!(state.held(), None);
    let out = ask(&mut state, CoordinatorToLearner::Step(step(1, 1)));
    assert!(matches!(&out[..], [Command::Send(LearnerToCoordinator::Failed(f))] if f.error.contains("load first")));
}

#[test]
fn a_state_lost_with_a_rank_is_said_to_be_none_and_is_no_failure() {
    let lost = || {
        let aftermath = Aftermath::LostWithRank;
        let failure = Failure { error: "part 1 of 2 is gone".into(), fatal: false, fault: Fault::Worker, aftermath };
        Event::Finished(Outcome::Failed(failure))
    };
    let save = CheckpointRequest { epoch: Epoch(1), version: PolicyVersion(0), cursor_json: "{}".into() };
    for request in [CoordinatorToLearner::Step(step(1, 1)), CoordinatorToLearner::Checkpoint(save)] {
        let mut state = ready();
        ask(&mut state, request.clone());
        assert_eq!(after(&mut state, lost()), [Command::Send(LearnerToCoordinator::Ready(None))]);
        assert_eq!(state.held(), None);
        // Once, also where a greeting waited for it.
        let mut state = ready();
        ask(&mut state, request);
        after(&mut state, Event::Connected(Epoch(2)));
        assert_eq!(after(&mut state, lost()), [Command::Send(LearnerToCoordinator::Ready(None))]);
        let load = Load { epoch: Epoch(2), from: LoadFrom::Base, version: PolicyVersion(0) };
        assert!(matches!(ask(&mut state, CoordinatorToLearner::Load(load))[..], [Command::Start(Job::Load(_))]));
    }
}

#[test]
fn a_checkpoint_on_its_way_is_finished_before_leaving() {
    let mut state = ready();
    let save = CheckpointRequest { epoch: Epoch(1), version: PolicyVersion(0), cursor_json: "{}".into() };
    ask(&mut state, CoordinatorToLearner::Checkpoint(save));
    assert_eq!(ask(&mut state, CoordinatorToLearner::Drain("done".into())), []);
    let saved = Outcome::Saved { dir: "d".into(), manifest_sha256: "m".into() };
    let out = after(&mut state, Event::Finished(saved));
    assert!(matches!(&out[..], [Command::Send(LearnerToCoordinator::CheckpointSaved(_)), Command::Leave(_)]));
    assert!(matches!(ask(&mut ready(), CoordinatorToLearner::Drain("done".into()))[..], [Command::Leave(_)]));
}

#[test]
fn progress_goes_on_within_a_jobs_patience_and_stops_after_it() {
    let mut state = ready();
    let beat = |state: &mut LearnerState, micro_batches| match &after(state, Event::Beat(micro_batches))[..] {
        [Command::Send(LearnerToCoordinator::Beat(beat))] => beat.progress,
        other => panic!("{other:?}"),
    };
    let idle = beat(&mut state, 0);
    assert_eq!(beat(&mut state, 0), idle, "nothing is asked of it");
    ask(&mut state, CoordinatorToLearner::Step(step(1, 1)));
    let counts: Vec<u64> = [0, 0, 0, 0, 0].map(|n| beat(&mut state, n) - idle).to_vec();
    assert_eq!(counts, [1, 2, 3, 3, 3], "a micro-batch that takes longer than it may");
    assert_eq!([1, 1, 1, 1, 1].map(|n| beat(&mut state, n) - idle), [4, 5, 6, 7, 7], "another one came after all");
    after(&mut state, Event::Finished(Outcome::Stepped(commit(1))));
    let save = CheckpointRequest { epoch: Epoch(1), version: PolicyVersion(1), cursor_json: "{}".into() };
    ask(&mut state, CoordinatorToLearner::Checkpoint(save));
    let moved: Vec<u64> = (0..8).map(|_| beat(&mut state, 1) - idle).collect();
    assert_eq!(moved, [8, 9, 10, 11, 12, 12, 12, 12], "a checkpoint has patience of its own");
}

#[test]
fn a_dead_engine_ends_the_worker_after_it_was_said() {
    let mut state = ready();
    ask(&mut state, CoordinatorToLearner::Step(step(1, 1)));
    let failure = Failure { error: "gone".into(), fatal: false, fault: Fault::Compute, aftermath: Aftermath::EngineLost };
    let out = after(&mut state, Event::Finished(Outcome::Failed(failure)));
    assert!(matches!(&out[..], [Command::Send(LearnerToCoordinator::Failed(_)), Command::Fail(_)]));
}

fn events() -> impl Strategy<Value = Event> {
    let (e, v) = (1u64..4, 0u64..4);
    prop_oneof![
        e.clone().prop_map(|e| Event::Connected(Epoch(e))),
        (e.clone(), v.clone()).prop_map(|(e, v)| {
            let (epoch, version) = (Epoch(e), PolicyVersion(v));
            Event::Received(CoordinatorToLearner::Load(Load { epoch, from: LoadFrom::Base, version }))
        }),
        (e.clone(), 1u64..5).prop_map(|(e, n)| Event::Received(CoordinatorToLearner::Step(step(e, n)))),
        (e, v).prop_map(|(e, v)| {
            let publish = PublishRequest { epoch: Epoch(e), version: PolicyVersion(v), slot: 0 };
            Event::Received(CoordinatorToLearner::Publish(publish))
        }),
        Just(Event::Beat(3)),
    ]
}

proptest! {
    /// Whatever comes in whatever order: one job at a time, each step from the version held, each answer in its epoch.
    #[test]
    fn one_job_at_a_time(events in proptest::collection::vec((events(), any::<bool>()), 1..60)) {
        let (mut state, mut running, mut epoch) = (LearnerState::new(PATIENCE, None), None::<Job>, None);
        for (event, finish) in events {
            if let Event::Connected(e) = event { epoch = Some(e); }
            let held = state.held();
            let mut out = after(&mut state, event);
            if finish && let Some(job) = running.take() {
                out.extend(after(&mut state, Event::Finished(match job {
                    Job::Load(load) => loaded(load.version.0),
                    Job::Step(request) => Outcome::Stepped(commit(request.intent.step.0)),
                    Job::Hash(commit) => Outcome::Stepped(commit),
                    Job::Publish(_) => Outcome::Published { digest: 0, publish_us: 1 },
                    Job::Checkpoint(_) => Outcome::Saved { dir: String::new(), manifest_sha256: String::new() },
                })));
            }
            for command in out {
                match command {
                    Command::Start(job) => {
                        prop_assert!(running.is_none(), "a second job beside {:?}", running);
                        if let Job::Step(request) = &job { prop_assert_eq!(held, Some(request.intent.base)); }
                        running = Some(job);
                    }
                    Command::Send(LearnerToCoordinator::Stepped(s)) => prop_assert_eq!(Some(s.epoch), epoch),
                    Command::Send(LearnerToCoordinator::Failed(f)) => prop_assert_eq!(Some(f.epoch), epoch),
                    Command::Send(LearnerToCoordinator::Ready(v)) => {
                        prop_assert!(running.is_none());
                        prop_assert_eq!(v, state.held());
                    }
                    _ => {}
                }
            }
        }
    }
}
