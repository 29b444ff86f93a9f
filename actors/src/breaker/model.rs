//! The breaker against a model that keeps every call ever made and counts anew each time, over 10,000 random histories in
//! virtual time.
use super::state::*;
use proptest::prelude::*;
use std::time::{Duration, Instant};

#[derive(Debug, Clone)]
enum Step {
    Request,
    Report {
        which: prop::sample::Index,
        outcome: Outcome,
    },
    Wait(u64),
    /// A quick call from start to end; makes long closed histories likely.
    Call(Outcome),
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![5 => Just(Outcome::Success), 4 => Just(Outcome::Failure), 1 => Just(Outcome::Cancelled)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Request),
        3 => (any::<prop::sample::Index>(), outcome()).prop_map(|(which, outcome)| Step::Report { which, outcome }),
        2 => (0u64..2000).prop_map(Step::Wait),
        1 => (0u64..70_000).prop_map(Step::Wait),
        12 => outcome().prop_map(Step::Call),
    ]
}

/// Everything that happened since the present phase began, and how it began.
#[derive(Debug, Clone)]
struct Model {
    policy: BreakerPolicy,
    phase: Phase,
    /// Beginning of the phase; while open also when it ends.
    since: Instant,
    wait: Duration,
    /// Ends of calls let through in this phase: when, and whether they failed.
    ends: Vec<(Instant, bool)>,
    let_through: u32,
    generation: u32,
}

impl Model {
    fn enter(&mut self, phase: Phase, now: Instant, wait: Duration) {
        let (policy, generation) = (self.policy, self.generation + 1);
        *self = Self { policy, phase, since: now, wait, ends: Vec::new(), let_through: 0, generation };
    }

    fn request(&mut self, now: Instant) -> bool {
        if self.phase == Phase::Open && now.duration_since(self.since) >= self.wait {
            self.enter(Phase::HalfOpen, now, self.wait);
        }
        let allowed = match self.phase {
            Phase::Closed => true,
            Phase::Open => false,
            Phase::HalfOpen => self.let_through < 3,
        };
        self.let_through += u32::from(allowed);
        allowed
    }

    fn report(&mut self, now: Instant, started: Instant, generation: u32, outcome: Outcome) {
        if generation != self.generation {
            return;
        }
        let failed = match outcome {
            Outcome::Cancelled => return self.let_through -= 1,
            Outcome::Failure => true,
            Outcome::Success => now.duration_since(started) > self.policy.slow_after,
        };
        self.ends.push((now, failed));
        match self.phase {
            Phase::HalfOpen if failed => {
                let wait = (self.wait * 2).min(Duration::from_secs(60));
                self.enter(Phase::Open, now, wait);
            }
            Phase::HalfOpen if self.ends.len() == 3 => self.enter(Phase::Closed, now, Duration::ZERO),
            Phase::Closed => {
                let row = self.ends.iter().rev().take_while(|(_, failed)| *failed).count();
                let recent: Vec<_> =
                    self.ends.iter().filter(|(at, _)| now.duration_since(*at) < Duration::from_secs(10)).collect();
                let bad = recent.iter().filter(|(_, failed)| *failed).count();
                if row >= 5 || (recent.len() >= 20 && bad * 2 >= recent.len()) {
                    self.enter(Phase::Open, now, Duration::from_secs(1));
                }
            }
            Phase::HalfOpen | Phase::Open => {}
        }
    }

    fn phase(&self, now: Instant) -> Phase {
        match self.phase {
            Phase::Open if now.duration_since(self.since) >= self.wait => Phase::HalfOpen,
            phase => phase,
        }
    }
}

struct Call {
    permit: Permit,
    started: Instant,
    generation: u32,
}

fn request(state: &mut BreakerState, model: &mut Model, now: Instant, running: &mut Vec<Call>) {
    let expected = model.request(now);
    match state.request(now) {
        Decision::Call(permit) => {
            assert!(expected, "B1, B2: let through while {:?}", model.phase);
            running.push(Call { permit, started: now, generation: model.generation });
        }
        Decision::Reject { retry_after } => {
            assert!(!expected, "rejected while {:?}", model.phase);
            assert!(retry_after > Duration::ZERO && retry_after <= Duration::from_secs(60));
            if model.phase == Phase::Open {
                assert_eq!(retry_after, model.wait - now.duration_since(model.since));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ten_thousand_histories(steps in proptest::collection::vec(step(), 0..120)) {
        let policy = BreakerPolicy { slow_after: Duration::from_secs(3), ..BreakerPolicy::default() };
        let start = Instant::now();
        let mut now = start;
        let mut state = BreakerState::new(policy);
        let mut model = Model {
            policy, phase: Phase::Closed, since: start, wait: Duration::ZERO, ends: Vec::new(), let_through: 0, generation: 0,
        };
        let mut running: Vec<Call> = Vec::new();
        for step in steps {
            match step {
                Step::Request => request(&mut state, &mut model, now, &mut running),
                Step::Wait(ms) => now += Duration::from_millis(ms),
                Step::Report { which, outcome } if !running.is_empty() => {
                    let call = running.swap_remove(which.index(running.len()));
                    state.report(now, call.permit, outcome);
                    model.report(now, call.started, call.generation, outcome);
                }
                Step::Report { .. } => {}
                Step::Call(outcome) => {
                    let before = running.len();
                    request(&mut state, &mut model, now, &mut running);
                    if running.len() > before && let Some(call) = running.pop() {
                        now += Duration::from_millis(20);
                        state.report(now, call.permit, outcome);
                        model.report(now, call.started, call.generation, outcome);
                    }
                }
            }
            prop_assert_eq!(state.phase(now), model.phase(now));
        }
    }
}

#[test]
fn waits_double_to_a_minute() {
    let mut now = Instant::now();
    let mut state = BreakerState::new(BreakerPolicy::default());
    let call = |state: &mut BreakerState, now, outcome| {
        let Decision::Call(permit) = state.request(now) else { panic!("rejected") };
        state.report(now, permit, outcome);
    };
    for _ in 0..5 {
        assert_eq!(state.phase(now), Phase::Closed);
        call(&mut state, now, Outcome::Failure);
    }
    let mut waits = Vec::new();
    for _ in 0..8 {
        let Decision::Reject { retry_after } = state.request(now) else { panic!("open and let through") };
        waits.push(retry_after.as_secs());
        now += retry_after;
        call(&mut state, now, Outcome::Failure);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
}
