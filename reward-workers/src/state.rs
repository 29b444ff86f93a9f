//! What a reward worker decides. Pure: no clock, no IO.
//!
//! Invariants
//! - **W1** at most `capacity` groups are graded at once; the rest wait in order of arrival.
//! - **W2** one (purpose, group, attempt) of an epoch is graded once, however often it arrives; a later attempt replaces an
//!   earlier one, whose outcome is dropped.
//! - **W3** with a new epoch everything of the old one is forgotten, and nothing of it is sent.
//! - **W4** a drained worker takes nothing more and stops when its last reply is acknowledged or dropped.
//! - **W5** the progress counter moves with every group that is started or graded, and with every beat while the last of
//!   these is no longer ago than a grader may take; the coordinator replaces a worker whose counter stands still.
//!
//! Queue: 4 x capacity requests wait at most; further ones are refused unacknowledged, and the coordinator sends them again.
use cohort_protocol::messages::reward::{RewardBeat, ScoreReply, ScoreRequest};
use cohort_protocol::{AttemptId, Epoch, GroupId, LeasePurpose};
use std::collections::{HashMap, VecDeque};

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Welcomed, at the start or after a loss.
    Connected(Epoch),
    /// A request arrived.
    Requested(ScoreRequest),
    /// A group has its outcomes.
    Graded(ScoreReply),
    /// A reply was acknowledged, or dropped for good.
    Settled(ReplyKey),
    /// A second has passed.
    Tick,
    /// The coordinator wants the worker to leave.
    Drain,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Tell the coordinator the capacity.
    SayReady(u16),
    /// Acknowledge the request just handled; without this command it is refused.
    Accept,
    /// Grade a group.
    Grade(ScoreRequest),
    /// Send a reply until it is acknowledged.
    Reply(ScoreReply),
    /// Send a beat; the breakers are filled in by the actor.
    Beat(RewardBeat),
    /// Leave.
    Stop,
}

/// Identifies a request and its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReplyKey {
    /// Epoch of the request.
    pub epoch: Epoch,
    /// Training or evaluation.
    pub purpose: LeasePurpose,
    /// Group.
    pub group: GroupId,
    /// Attempt.
    pub attempt: AttemptId,
}

impl ReplyKey {
    /// Of a reply.
    #[must_use]
    pub fn of_reply(reply: &ScoreReply) -> Self {
        Self { epoch: reply.epoch, purpose: reply.purpose, group: reply.group, attempt: reply.attempt }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Grading,
    Replying,
}

/// The worker's state.
#[derive(Debug)]
pub struct RewardState {
    capacity: u16,
    epoch: Option<Epoch>,
    work: HashMap<(LeasePurpose, GroupId), (AttemptId, Stage)>,
    queue: VecDeque<ScoreRequest>,
    running: usize,
    progress: u64,
    /// Beats since a group was started or graded, and how many of them a grader may take.
    still: u64,
    patience: u64,
    draining: bool,
}

impl RewardState {
    /// A worker that is not connected yet, whose graders need `patience` beats for a group at most.
    #[must_use]
    pub fn new(capacity: u16, patience: u64) -> Self {
        Self {
            capacity: capacity.max(1),
            epoch: None,
            work: HashMap::new(),
            queue: VecDeque::new(),
            running: 0,
            progress: 0,
            still: 0,
            patience,
            draining: false,
        }
    }

    /// Takes one event and appends what to do.
    pub fn on_event(&mut self, event: Event, out: &mut Vec<Command>) {
        match event {
            Event::Connected(epoch) => self.on_connected(epoch, out),
            Event::Requested(request) => self.on_requested(request, out),
            Event::Graded(reply) => self.on_graded(reply, out),
            Event::Settled(key) => self.on_settled(key),
            Event::Tick => self.on_tick(out),
            Event::Drain => self.draining = true,
        }
        self.start_waiting(out);
        if self.draining && self.work.is_empty() {
            out.push(Command::Stop);
        }
    }

    fn on_connected(&mut self, epoch: Epoch, out: &mut Vec<Command>) {
        if self.epoch != Some(epoch) {
            self.epoch = Some(epoch);
            // Groups still being graded finish unheard: their replies are of another epoch (W3).
            self.work.clear();
            self.queue.clear();
        }
        if !self.draining {
            out.push(Command::SayReady(self.capacity));
        }
    }

    fn on_requested(&mut self, request: ScoreRequest, out: &mut Vec<Command>) {
        if self.epoch != Some(request.epoch) {
            // Of a coordinator that is gone: taken from its hands and forgotten.
            out.push(Command::Accept);
            return;
        }
        let key = (request.purpose, request.group);
        match self.work.get(&key) {
            Some((attempt, _)) if *attempt >= request.attempt => out.push(Command::Accept),
            known => {
                if self.draining || (known.is_none() && self.queue.len() >= 4 * usize::from(self.capacity)) {
                    return;
                }
                self.queue.retain(|waiting| (waiting.purpose, waiting.group) != key);
                self.work.insert(key, (request.attempt, Stage::Waiting));
                self.queue.push_back(request);
                out.push(Command::Accept);
            }
        }
    }

    fn on_graded(&mut self, reply: ScoreReply, out: &mut Vec<Command>) {
        self.running = self.running.saturating_sub(1);
        self.moved();
        if self.epoch != Some(reply.epoch) {
            return;
        }
        if let Some((attempt, stage)) = self.work.get_mut(&(reply.purpose, reply.group))
            && *attempt == reply.attempt
        {
            *stage = Stage::Replying;
            out.push(Command::Reply(reply));
        }
    }

    fn on_settled(&mut self, key: ReplyKey) {
        let current = self.work.get(&(key.purpose, key.group));
        if self.epoch == Some(key.epoch) && current == Some(&(key.attempt, Stage::Replying)) {
            self.work.remove(&(key.purpose, key.group));
        }
    }

    fn start_waiting(&mut self, out: &mut Vec<Command>) {
        while self.running < usize::from(self.capacity) {
            let Some(request) = self.queue.pop_front() else { break };
            self.work.insert((request.purpose, request.group), (request.attempt, Stage::Grading));
            self.running += 1;
            self.moved();
            out.push(Command::Grade(request));
        }
    }

    fn moved(&mut self) {
        self.progress += 1;
        self.still = 0;
    }

    fn on_tick(&mut self, out: &mut Vec<Command>) {
        self.still += 1;
        if self.running > 0 && self.still <= self.patience {
            self.progress += 1;
        }
        let running = u16::try_from(self.running + self.queue.len()).unwrap_or(u16::MAX);
        out.push(Command::Beat(RewardBeat { progress: self.progress, running, breakers: Vec::new() }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const PATIENCE: u64 = 3;

    fn request(epoch: u64, group: u64, attempt: u32) -> ScoreRequest {
        ScoreRequest {
            epoch: Epoch(epoch),
            purpose: LeasePurpose::Train,
            group: GroupId(group),
            attempt: AttemptId(attempt),
            item_json: "{}".into(),
            seed: 0,
            samples: vec![],
        }
    }

    fn reply(to: &ScoreRequest) -> ScoreReply {
        ScoreReply { epoch: to.epoch, purpose: to.purpose, group: to.group, attempt: to.attempt, outcomes: vec![], score_us: 0 }
    }

    fn feed(state: &mut RewardState, event: Event) -> Vec<Command> {
        let mut out = Vec::new();
        state.on_event(event, &mut out);
        out
    }

    #[test]
    fn a_group_is_accepted_graded_and_answered_once() {
        let mut state = RewardState::new(1, PATIENCE);
        assert_eq!(feed(&mut state, Event::Connected(Epoch(1))), [Command::SayReady(1)]);
        let (first, second) = (request(1, 0, 1), request(1, 1, 1));
        assert_eq!(feed(&mut state, Event::Requested(first.clone())), [Command::Accept, Command::Grade(first.clone())]);
        assert_eq!(feed(&mut state, Event::Requested(first.clone())), [Command::Accept], "known already");
        assert_eq!(feed(&mut state, Event::Requested(second.clone())), [Command::Accept], "waits");
        let out = feed(&mut state, Event::Graded(reply(&first)));
        assert_eq!(out, [Command::Reply(reply(&first)), Command::Grade(second)]);
        feed(&mut state, Event::Settled(ReplyKey::of_reply(&reply(&first))));
        assert_eq!(state.work.len(), 1);
    }

    #[test]
    fn a_new_epoch_forgets_and_a_later_attempt_replaces() {
        let mut state = RewardState::new(2, PATIENCE);
        feed(&mut state, Event::Connected(Epoch(1)));
        let old = request(1, 0, 1);
        feed(&mut state, Event::Requested(old.clone()));
        feed(&mut state, Event::Requested(request(1, 0, 2)));
        assert_eq!(feed(&mut state, Event::Graded(reply(&old))), [], "the earlier attempt is dropped");
        feed(&mut state, Event::Connected(Epoch(2)));
        assert_eq!(feed(&mut state, Event::Graded(reply(&request(1, 0, 2)))), [], "the old epoch is dropped");
        assert_eq!(feed(&mut state, Event::Requested(request(1, 5, 1))), [Command::Accept]);
        assert_eq!((state.running, state.work.len()), (0, 0));
    }

    #[test]
    fn reconnecting_to_the_same_epoch_keeps_the_work() {
        let mut state = RewardState::new(1, PATIENCE);
        feed(&mut state, Event::Connected(Epoch(1)));
        let one = request(1, 0, 1);
        feed(&mut state, Event::Requested(one.clone()));
        assert_eq!(feed(&mut state, Event::Connected(Epoch(1))), [Command::SayReady(1)]);
        assert_eq!(feed(&mut state, Event::Graded(reply(&one))), [Command::Reply(reply(&one))]);
    }

    #[test]
    fn drains_after_the_last_reply() {
        let mut state = RewardState::new(1, PATIENCE);
        feed(&mut state, Event::Connected(Epoch(1)));
        let one = request(1, 0, 1);
        feed(&mut state, Event::Requested(one.clone()));
        assert_eq!(feed(&mut state, Event::Drain), []);
        assert_eq!(feed(&mut state, Event::Requested(request(1, 1, 1))), [], "refused");
        feed(&mut state, Event::Graded(reply(&one)));
        assert_eq!(feed(&mut state, Event::Settled(ReplyKey::of_reply(&reply(&one)))), [Command::Stop]);
        assert_eq!(feed(&mut RewardState::new(1, PATIENCE), Event::Drain), [Command::Stop]);
    }

    #[test]
    fn a_grader_within_its_time_is_progress_and_one_beyond_it_is_not() {
        let mut state = RewardState::new(1, PATIENCE);
        feed(&mut state, Event::Connected(Epoch(1)));
        let beat = |state: &mut RewardState| match &feed(state, Event::Tick)[..] {
            [Command::Beat(beat)] => beat.progress,
            other => panic!("{other:?}"),
        };
        assert_eq!([beat(&mut state), beat(&mut state)], [0, 0], "nothing is asked of it");
        feed(&mut state, Event::Requested(request(1, 1, 1)));
        assert_eq!([0; 5].map(|_| beat(&mut state)), [2, 3, 4, 4, 4], "started, three beats of patience, then it hangs");
        feed(&mut state, Event::Requested(request(1, 2, 1)));
        assert_eq!(beat(&mut state), 4, "a group that waits is no progress");
        feed(&mut state, Event::Graded(reply(&request(1, 1, 1))));
        assert_eq!(beat(&mut state), 7, "one graded, the next started");
    }

    proptest! {
        #[test]
        fn never_over_capacity_and_each_accepted_request_is_answered_once(
            capacity in 1u16..4, steps in proptest::collection::vec((0u8..4, 0u64..6, 1u32..4), 1..200)
        ) {
            let mut state = RewardState::new(capacity, PATIENCE);
            let (mut grading, mut replies, mut replied) = (Vec::new(), Vec::new(), HashSet::new());
            feed(&mut state, Event::Connected(Epoch(1)));
            for (kind, group, attempt) in steps {
                let event = match kind {
                    0 | 1 => Event::Requested(request(1, group, attempt)),
                    2 if !grading.is_empty() => Event::Graded(reply(&grading.remove(group as usize % grading.len()))),
                    3 if !replies.is_empty() => Event::Settled(replies.remove(group as usize % replies.len())),
                    _ => Event::Tick,
                };
                for command in feed(&mut state, event) {
                    match command {
                        Command::Grade(request) => grading.push(request),
                        Command::Reply(reply) => {
                            let key = ReplyKey::of_reply(&reply);
                            prop_assert!(state.work.contains_key(&(key.purpose, key.group)));
                            replied.insert(key);
                            replies.push(key);
                        }
                        _ => {}
                    }
                }
                prop_assert!(grading.len() <= usize::from(capacity));
            }
            while let Some(request) = grading.pop() {
                for command in feed(&mut state, Event::Graded(reply(&request))) {
                    match command {
                        Command::Grade(request) => grading.push(request),
                        Command::Reply(reply) => replies.push(ReplyKey::of_reply(&reply)),
                        _ => {}
                    }
                }
            }
            for key in replies {
                feed(&mut state, Event::Settled(key));
            }
            prop_assert!(state.work.is_empty() && state.queue.is_empty() && state.running == 0);
        }
    }
}
