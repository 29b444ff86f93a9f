//! The state machine against a model that keeps the whole history and counts anew at every failure, over 10,000 random
//! lives of a supervisor in virtual time.
use super::state::{ChildId, Command, Escalation, Event, Exit, Restart, Strategy, SupervisionPolicy, SupervisionState};
use crate::backoff::BackoffPolicy;
use proptest::prelude::*;
use proptest::strategy::Strategy as Generate;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const CHILDREN: usize = 4;

/// What the world does next to the supervisor.
#[derive(Debug, Clone)]
enum Step {
    /// A running child ends after so many milliseconds.
    Exit { child: usize, after: u64, exit: Exit },
    /// A child that was told to stop does so, after so many milliseconds, in whichever way.
    Stopped { after: u64, exit: Exit },
    /// Time passes, timers fire.
    Wait(u64),
}

fn exit() -> impl Generate<Value = Exit> {
    prop_oneof![
        12 => (0u32..1000).prop_map(|n| Exit::Failed(format!("cause {n}"))),
        1 => Just(Exit::Done),
        1 => (0u32..1000).prop_map(|n| Exit::Fatal(format!("fatal {n}"))),
    ]
}

fn step() -> impl Generate<Value = Step> {
    prop_oneof![
        5 => (0..CHILDREN, 0u64..3000, exit()).prop_map(|(child, after, exit)| Step::Exit { child, after, exit }),
        4 => (0u64..200, exit()).prop_map(|(after, exit)| Step::Stopped { after, exit }),
        3 => (0u64..8000).prop_map(Step::Wait),
    ]
}

fn strategies() -> impl Generate<Value = Strategy> {
    prop_oneof![Just(Strategy::OneForOne), Just(Strategy::OneForAll), Just(Strategy::RestForOne)]
}

fn restarts() -> impl Generate<Value = Restart> {
    prop_oneof![4 => Just(Restart::Transient), 2 => Just(Restart::Permanent), 1 => Just(Restart::Temporary)]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Up(Instant),
    ToldToStop,
    Down,
}

/// The world outside the supervisor, and the whole history.
struct World {
    policy: SupervisionPolicy,
    restart: Vec<Restart>,
    state: SupervisionState,
    start: Instant,
    now: Instant,
    seen: Vec<Seen>,
    /// Every failure that a restart answered: when, who, why, how long it had been up.
    failures: Vec<(Instant, usize, String, Duration)>,
    /// For each child, the earliest and latest time of the start that is owed to it.
    owed: BTreeMap<usize, (Instant, Instant)>,
    escalated: Option<Escalation>,
    ended: Vec<bool>,
}

fn id(child: usize) -> ChildId {
    ChildId::from(format!("child-{child}"))
}

fn number(id: &ChildId) -> usize {
    id.0.trim_start_matches("child-").parse().unwrap()
}

impl World {
    fn new(policy: SupervisionPolicy, restart: Vec<Restart>, seed: u64) -> Self {
        let start = Instant::now();
        let mut world = Self {
            policy,
            restart: restart.clone(),
            state: SupervisionState::new(policy, seed),
            start,
            now: start,
            seen: vec![Seen::Down; CHILDREN],
            failures: Vec::new(),
            owed: BTreeMap::new(),
            escalated: None,
            ended: vec![false; CHILDREN],
        };
        for (child, restart) in restart.into_iter().enumerate() {
            world.owed.insert(child, (start, start));
            world.event(Event::Add(id(child), restart));
        }
        world
    }

    fn ms(&self) -> u128 {
        (self.now - self.start).as_millis()
    }

    /// Feeds one event and checks every command against what the world knows.
    fn event(&mut self, event: Event) {
        let mut out = Vec::new();
        self.state.on_event(self.now, event, &mut out);
        let mut last_started = None;
        let mut last_stopped = None;
        for command in out {
            match command {
                Command::Start { child, .. } => {
                    let child = number(&child);
                    assert_eq!(self.escalated, None, "R1: a start after an escalation");
                    assert_eq!(self.seen[child], Seen::Down, "a child is started once");
                    let (from, to) = self.owed.remove(&child).unwrap_or_else(|| panic!("nobody asked for child {child}"));
                    assert!(self.now >= from, "R2: child {child} at {} ms is early", self.ms());
                    // Held back by others that stop, it may come later than `to`; `check_timers` sees to the rest.
                    let _ = to;
                    if self.policy.strategy != Strategy::OneForOne {
                        assert!(!self.seen.contains(&Seen::ToldToStop), "R4: a start while another stops");
                    }
                    assert!(last_started.is_none_or(|last| last < child), "R4: starts in order");
                    last_started = Some(child);
                    self.seen[child] = Seen::Up(self.now);
                }
                Command::Stop(child) => {
                    let child = number(&child);
                    assert!(matches!(self.seen[child], Seen::Up(_)), "only what runs is stopped");
                    assert!(last_stopped.is_none_or(|last| last > child), "R4: stops in reverse order");
                    last_stopped = Some(child);
                    self.seen[child] = Seen::ToldToStop;
                }
                Command::Escalate(escalation) => {
                    assert_eq!(self.escalated, None, "one escalation");
                    self.escalated = Some(escalation);
                }
            }
        }
        self.check_timers();
    }

    /// Nothing that is due and may start is left waiting, and the supervisor asks to be woken for the rest.
    fn check_timers(&self) {
        if self.escalated.is_some() {
            assert_eq!(self.state.next_wake(), None);
            return;
        }
        let held = self.policy.strategy != Strategy::OneForOne && self.seen.contains(&Seen::ToldToStop);
        if held {
            return;
        }
        for (child, (from, to)) in &self.owed {
            if self.seen[*child] == Seen::Down {
                let wake = self.state.next_wake().unwrap_or_else(|| panic!("child {child} is forgotten"));
                assert!(wake > self.now && wake <= *to.max(from), "R2: woken at the latest when child {child} is due");
            }
        }
    }

    /// Lets time pass to `until`, waking the supervisor whenever it wants to be.
    fn wait(&mut self, until: Instant) {
        while let Some(wake) = self.state.next_wake().filter(|&wake| wake <= until) {
            self.now = wake.max(self.now);
            self.event(Event::Tick);
        }
        self.now = until;
        self.event(Event::Tick);
    }

    /// What the model says of a failure of `child` now: the limits of its delay, or the escalation.
    fn verdict(&self, child: usize, cause: &str, up: Duration) -> Result<(Duration, Duration), (usize, String)> {
        let mine =
            |&&(_, c, _, _): &&(Instant, usize, String, Duration)| self.policy.strategy != Strategy::OneForOne || c == child;
        let recent: Vec<_> = self.failures.iter().filter(mine).filter(|(at, ..)| self.now - *at < self.policy.window).collect();
        if recent.len() >= self.policy.max_restarts as usize {
            let first = recent.first().map_or((child, cause.to_owned()), |(_, c, cause, _)| (*c, cause.clone()));
            return Err(first);
        }
        // Failures in a row, back to the last one that came after a stable run.
        let mut series = 1;
        if up < self.policy.stable_after {
            for (.., up) in self.failures.iter().filter(mine).rev() {
                series += 1;
                if *up >= self.policy.stable_after {
                    break;
                }
            }
        }
        let ceiling = self.policy.backoff.ceiling(series);
        Ok((ceiling.mul_f64(1.0 - self.policy.backoff.jitter), ceiling))
    }

    fn exit(&mut self, child: usize, exit: Exit) {
        let Seen::Up(since) = self.seen[child] else { return };
        let up = self.now - since;
        self.seen[child] = Seen::Down;
        let before = self.escalated.clone();
        let cause = match (&exit, self.restart[child]) {
            (Exit::Fatal(cause), _) => {
                self.ended[child] = true;
                self.event(Event::Exited(id(child), exit.clone()));
                let expected = Escalation::Fatal { child: id(child), cause: cause.clone() };
                assert_eq!(self.escalated, before.or(Some(expected)));
                return;
            }
            (Exit::Done, Restart::Permanent) => "it ended and should not have".to_owned(),
            (Exit::Done, _) | (Exit::Failed(_), Restart::Temporary) => {
                self.ended[child] = true;
                self.event(Event::Exited(id(child), exit));
                assert_eq!(self.escalated, before);
                return;
            }
            (Exit::Failed(cause), _) => cause.clone(),
        };
        match self.verdict(child, &cause, up) {
            Ok((shortest, longest)) => {
                self.failures.push((self.now, child, cause, up));
                let group = match self.policy.strategy {
                    Strategy::OneForOne => child..child + 1,
                    Strategy::OneForAll => 0..CHILDREN,
                    Strategy::RestForOne => child..CHILDREN,
                };
                let due = (self.now + shortest, self.now + longest);
                for other in group.filter(|&other| !self.ended[other]) {
                    let owed = self.owed.entry(other).or_insert(due);
                    *owed = (owed.0.max(due.0), owed.1.max(due.1));
                }
                self.event(Event::Exited(id(child), exit));
                assert_eq!(self.escalated, None, "R1: escalated early");
            }
            Err((first, first_cause)) => {
                self.event(Event::Exited(id(child), exit));
                let Some(Escalation::TooManyRestarts { child: last, first_child, first_cause: named, last_cause, .. }) =
                    &self.escalated
                else {
                    panic!("R1: no escalation at {} ms: {:?}", self.ms(), self.escalated)
                };
                assert_eq!((last, first_child, named, last_cause), (&id(child), &id(first), &first_cause, &cause), "R3");
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Exit { child, after, exit } => {
                self.wait(self.now + Duration::from_millis(after));
                self.exit(child, exit);
            }
            Step::Stopped { after, exit } => {
                self.wait(self.now + Duration::from_millis(after));
                if let Some(child) = self.seen.iter().position(|&s| s == Seen::ToldToStop) {
                    self.seen[child] = Seen::Down;
                    self.event(Event::Exited(id(child), exit));
                }
            }
            Step::Wait(ms) => self.wait(self.now + Duration::from_millis(ms)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ten_thousand_lives(
        strategy in strategies(),
        max_restarts in 0u32..5,
        window in 1u64..10,
        restart in proptest::collection::vec(restarts(), CHILDREN),
        seed: u64,
        steps in proptest::collection::vec(step(), 0..40),
    ) {
        let policy = SupervisionPolicy {
            strategy,
            max_restarts,
            window: Duration::from_secs(window),
            backoff: BackoffPolicy { base: Duration::from_millis(100), ..BackoffPolicy::RESTART },
            stable_after: Duration::from_secs(2),
        };
        let mut world = World::new(policy, restart, seed);
        for step in steps {
            world.step(step);
        }
        world.owed.clear();
        world.event(Event::Stop);
        assert_eq!(world.state.next_wake(), None);
        for child in 0..CHILDREN {
            if world.seen[child] == Seen::ToldToStop {
                world.seen[child] = Seen::Down;
                world.event(Event::Exited(id(child), Exit::Done));
            }
        }
        prop_assert!(world.state.is_idle());
        prop_assert!(!world.seen.iter().any(|s| matches!(s, Seen::Up(_))), "orphans: {:?}", world.seen);
    }
}

#[test]
fn dynamic_children_come_and_go() {
    let now = Instant::now();
    let mut state = SupervisionState::new(SupervisionPolicy::default(), 0);
    let mut out = Vec::new();
    state.on_event(now, Event::Add(id(0), Restart::Transient), &mut out);
    state.on_event(now, Event::Add(id(0), Restart::Transient), &mut out);
    assert_eq!(out, [Command::Start { child: id(0), incarnation: 0 }], "a name in use is ignored");
    out.clear();
    state.on_event(now, Event::Exited(id(0), Exit::Failed("x".into())), &mut out);
    assert_eq!(out, [Command::Start { child: id(0), incarnation: 1 }], "the first restart is immediate");
    assert_eq!(state.restarts(&id(0)), Some(1));
    out.clear();
    state.on_event(now, Event::Remove(id(0)), &mut out);
    assert_eq!(out, [Command::Stop(id(0))]);
    state.on_event(now, Event::Exited(id(0), Exit::Failed("told to".into())), &mut out);
    assert_eq!(out.len(), 1, "what was removed is not restarted");
    assert_eq!(state.children().count(), 0);
}

#[test]
fn an_escalation_reads_well() {
    let escalation = Escalation::TooManyRestarts {
        child: id(2),
        failures: 21,
        max_restarts: 20,
        window: Duration::from_secs(60),
        first_child: id(1),
        first_cause: "killed by signal 9 (SIGKILL)".into(),
        last_cause: "exit code 3".into(),
    };
    assert_eq!(
        escalation.to_string(),
        "child-2 failed 21 times within 60s, 20 restarts are allowed; first cause: child-1: killed by signal 9 (SIGKILL); \
         last: exit code 3"
    );
}
