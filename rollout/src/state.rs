//! What a rollout worker decides: pure, driven by [`Event`]s, answering with [`Command`]s.
//!
//! Invariants
//! - **W1** of one lease (group, attempt) at most one generation runs, and at most one batch or failure leaves.
//! - **W2** a lease lives as long as the connection over which it came: with another one, of this epoch or the next, every
//!   running lease is forgotten, since the coordinator has given it to others and counts on the room.
//! - **W3** a lease is taken only for the weights in the engine, or where it follows newer ones ([`GroupLease::follows`]) for any
//!   that are no older than it says, in the middle of a swap too; any other is refused as retryable.
//! - **W4** at most `capacity` leases run; one more is refused as retryable.
//! - **W5** what running leases have is handed in every two seconds; all that the leases of a lost connection have, over the
//!   next one, before anything else is said there. An older coordinator, which would not know the message, gets none.
use cohort_protocol::messages::rollout::{CancelLease, LeaseFailed, Ready, RolloutBeat, SwapFailed, WeightsReady};
use cohort_protocol::version::PARTIAL_GROUPS;
use cohort_protocol::{
    AttemptId, Epoch, GroupId, GroupLease, LeasePurpose, PolicyVersion, Trajectory, TrajectoryBatch, TurnPart,
};
use std::collections::BTreeSet;

/// Seconds between two looks at what running leases have.
const HAND_IN_TICKS: u32 = 2;

/// One attempt at one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseKey {
    /// Epoch of the coordinator that gave it.
    pub epoch: Epoch,
    /// Training or evaluation.
    pub purpose: LeasePurpose,
    /// The group.
    pub group: GroupId,
    /// Which attempt.
    pub attempt: AttemptId,
}

impl LeaseKey {
    /// Of a lease.
    #[must_use]
    pub fn of(lease: &GroupLease) -> Self {
        Self { epoch: lease.epoch, purpose: lease.purpose, group: lease.group, attempt: lease.attempt }
    }
}

/// Why a generation came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Place, value and remedy.
    pub error: String,
    /// Whether another worker or a later try could do it.
    pub retryable: bool,
}

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// A session with the coordinator began, the first or another, in this protocol version.
    Connected(Epoch, u16),
    /// New weights are in the ring.
    Weights(WeightsReady),
    /// A swap ended; `Err` where the engine still holds what it held.
    Swapped(PolicyVersion, Result<(), String>),
    /// A lease came, with what others had of its group.
    Leased(Box<GroupLease>, Vec<TurnPart>),
    /// A lease's samples are complete, in order, or will not be.
    Generated(LeaseKey, Result<Vec<Trajectory>, Failure>),
    /// A batch was delivered.
    Delivered(LeaseKey),
    /// A batch could not be delivered though the epoch is the same.
    Undelivered(LeaseKey, String),
    /// A lease is no longer wanted.
    Cancelled(CancelLease),
    /// The coordinator lets the worker go.
    Drained(String),
    /// A second has passed; tokens sampled so far.
    Ticked(u64),
}

/// Something to do.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// Move the engine to these weights and report `Swapped`.
    Swap(WeightsReady),
    /// Generate a lease's samples, going on from these parts, and report `Generated`.
    Generate(Box<GroupLease>, Vec<TurnPart>),
    /// Hand in what these leases have that was not handed in.
    HandIn(Vec<LeaseKey>),
    /// Hand in all of what these leases have, from its beginning: others will go on with them.
    HandOver(Vec<LeaseKey>),
    /// Stop generating; nothing is to be reported.
    Abort(LeaseKey),
    /// Control message.
    Ready(Ready),
    /// Control message.
    SwapFailed(SwapFailed),
    /// Control message.
    Beat(RolloutBeat),
    /// Control message.
    Fail(LeaseFailed),
    /// Bulk message.
    Send(Box<TrajectoryBatch>),
    /// End the worker.
    Leave(String),
}

/// See the module.
#[derive(Debug)]
pub struct RolloutState {
    capacity: u16,
    epoch: Option<Epoch>,
    protocol: u16,
    ticks: u32,
    version: Option<PolicyVersion>,
    /// The swap in work and the one that came meanwhile.
    swapping: Option<WeightsReady>,
    next_swap: Option<WeightsReady>,
    /// Whether this connection's coordinator asked for the swap in work.
    asked: bool,
    running: BTreeSet<LeaseKey>,
    /// Whose batch is on its way.
    delivering: BTreeSet<LeaseKey>,
}

impl RolloutState {
    /// A worker that takes `capacity` leases at once and has no weights yet.
    #[must_use]
    pub fn new(capacity: u16) -> Self {
        let (epoch, version, swapping, next_swap) = Default::default();
        let (running, delivering) = Default::default();
        Self { capacity, epoch, protocol: 0, ticks: 0, version, swapping, next_swap, asked: false, running, delivering }
    }

    /// Leases in work.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Whether a lease is in work or its batch on its way.
    #[must_use]
    pub fn holds(&self, key: &LeaseKey) -> bool {
        self.running.contains(key) || self.delivering.contains(key)
    }

    /// Decides.
    pub fn on_event(&mut self, event: Event, out: &mut Vec<Command>) {
        match event {
            Event::Connected(epoch, protocol) => self.on_connected(epoch, protocol, out),
            Event::Weights(weights) => self.on_weights(weights, out),
            Event::Swapped(version, result) => self.on_swapped(version, result, out),
            Event::Leased(lease, parts) => self.on_leased(lease, parts, out),
            Event::Generated(key, result) => self.on_generated(key, result, out),
            Event::Delivered(key) => {
                self.delivering.remove(&key);
            }
            Event::Undelivered(key, error) => {
                self.delivering.remove(&key);
                if self.epoch == Some(key.epoch) {
                    out.push(failed(key, Failure { error, retryable: true }));
                }
            }
            Event::Cancelled(cancel) => self.on_cancelled(&cancel, out),
            Event::Drained(reason) => {
                self.abort_all(out);
                out.push(Command::Leave(reason));
            }
            Event::Ticked(tokens) => self.on_ticked(tokens, out),
        }
    }

    fn on_ticked(&mut self, tokens: u64, out: &mut Vec<Command>) {
        let running = u16::try_from(self.running.len()).unwrap_or(u16::MAX);
        out.push(Command::Beat(RolloutBeat { tokens, running }));
        self.ticks = self.ticks.wrapping_add(1);
        if self.protocol >= PARTIAL_GROUPS && running > 0 && self.ticks.is_multiple_of(HAND_IN_TICKS) {
            out.push(Command::HandIn(self.running.iter().copied().collect()));
        }
    }

    fn on_connected(&mut self, epoch: Epoch, protocol: u16, out: &mut Vec<Command>) {
        let had: Vec<LeaseKey> = self.running.union(&self.delivering).copied().collect();
        if protocol >= PARTIAL_GROUPS && !had.is_empty() {
            out.push(Command::HandOver(had));
        }
        self.delivering.clear();
        self.abort_all(out);
        (self.epoch, self.protocol) = (Some(epoch), protocol);
        // Whoever asked for these swaps is not there any more to be answered.
        (self.asked, self.next_swap) = (false, None);
        // A swap in work will say `Ready` itself.
        if self.swapping.is_none() {
            out.push(self.ready());
        }
    }

    fn on_weights(&mut self, weights: WeightsReady, out: &mut Vec<Command>) {
        if self.swapping.is_some() {
            self.next_swap = Some(weights);
            return;
        }
        (self.swapping, self.asked) = (Some(weights.clone()), true);
        out.push(Command::Swap(weights));
    }

    fn on_swapped(&mut self, version: PolicyVersion, result: Result<(), String>, out: &mut Vec<Command>) {
        self.swapping = None;
        match result {
            Ok(()) => self.version = Some(version),
            Err(error) if self.asked => out.push(Command::SwapFailed(SwapFailed { version, error })),
            // Another coordinator may ask for the same version: this is no answer to that.
            Err(_) => {}
        }
        if let Some(next) = self.next_swap.take() {
            self.on_weights(next, out);
            return;
        }
        // After a failure this says which version is still there; the coordinator decides when the next try is made.
        out.push(self.ready());
    }

    fn on_leased(&mut self, lease: Box<GroupLease>, parts: Vec<TurnPart>, out: &mut Vec<Command>) {
        let key = LeaseKey::of(&lease);
        if self.epoch != Some(lease.epoch) || self.running.contains(&key) {
            return;
        }
        let at_hand = match self.version {
            Some(version) if lease.follows => version >= lease.version,
            version => self.swapping.is_none() && version == Some(lease.version),
        };
        let refusal = if !at_hand {
            let holds = self.version.map_or_else(|| "none".into(), |v| v.to_string());
            Some(format!("the lease is for version {}, this worker holds {holds}", lease.version))
        } else if self.running.len() >= usize::from(self.capacity) {
            Some(format!("this worker already runs its {} leases", self.capacity))
        } else {
            None
        };
        match refusal {
            Some(error) => out.push(failed(key, Failure { error, retryable: true })),
            None => {
                self.running.insert(key);
                out.push(Command::Generate(lease, parts));
            }
        }
    }

    fn on_generated(&mut self, key: LeaseKey, result: Result<Vec<Trajectory>, Failure>, out: &mut Vec<Command>) {
        if !self.running.remove(&key) || self.epoch != Some(key.epoch) {
            return;
        }
        let LeaseKey { epoch, purpose, group, attempt } = key;
        if result.is_ok() {
            self.delivering.insert(key);
        }
        out.push(match result {
            Ok(trajectories) => Command::Send(Box::new(TrajectoryBatch { epoch, purpose, group, attempt, trajectories })),
            Err(failure) => failed(key, failure),
        });
    }

    fn on_cancelled(&mut self, cancel: &CancelLease, out: &mut Vec<Command>) {
        let Some(epoch) = self.epoch else { return };
        let key = LeaseKey { epoch, purpose: cancel.purpose, group: cancel.group, attempt: cancel.attempt };
        if self.running.remove(&key) {
            out.push(Command::Abort(key));
        }
    }

    fn abort_all(&mut self, out: &mut Vec<Command>) {
        out.extend(std::mem::take(&mut self.running).into_iter().map(Command::Abort));
    }

    fn ready(&self) -> Command {
        Command::Ready(Ready { version: self.version, capacity: self.capacity })
    }
}

fn failed(key: LeaseKey, failure: Failure) -> Command {
    let LeaseKey { epoch, purpose, group, attempt } = key;
    let Failure { error, retryable } = failure;
    Command::Fail(LeaseFailed { epoch, purpose, group, attempt, error, retryable })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_protocol::{SampledItem, SamplingParams};
    use proptest::prelude::*;

    fn lease(epoch: u64, group: u64, attempt: u32, version: u64) -> Box<GroupLease> {
        Box::new(GroupLease {
            epoch: Epoch(epoch),
            purpose: LeasePurpose::Train,
            group: GroupId(group),
            attempt: AttemptId(attempt),
            version: PolicyVersion(version),
            follows: false,
            samples: 2,
            item: SampledItem { row: 0, json: "{}".into() },
            seed: 1,
            sampling: SamplingParams::plain(1.0, 4),
        })
    }

    fn weights(version: u64) -> WeightsReady {
        WeightsReady { version: PolicyVersion(version), slot: 0, digest: 0 }
    }

    fn feed(state: &mut RolloutState, event: Event) -> Vec<Command> {
        let mut out = Vec::new();
        state.on_event(event, &mut out);
        out
    }

    fn at_version(capacity: u16, version: u64) -> RolloutState {
        let mut state = RolloutState::new(capacity);
        feed(&mut state, Event::Connected(Epoch(1), 4));
        feed(&mut state, Event::Weights(weights(version)));
        feed(&mut state, Event::Swapped(PolicyVersion(version), Ok(())));
        state
    }

    #[test]
    fn weights_first_then_leases() {
        let mut state = RolloutState::new(2);
        let ready = |version: Option<u64>| Command::Ready(Ready { version: version.map(PolicyVersion), capacity: 2 });
        assert_eq!(feed(&mut state, Event::Connected(Epoch(1), 4)), [ready(None)]);
        assert!(matches!(
            feed(&mut state, Event::Leased(lease(1, 0, 1, 0), vec![]))[..],
            [Command::Fail(LeaseFailed { retryable: true, .. })]
        ));
        assert_eq!(feed(&mut state, Event::Weights(weights(0))), [Command::Swap(weights(0))]);
        assert_eq!(feed(&mut state, Event::Weights(weights(1))), []);
        assert_eq!(feed(&mut state, Event::Swapped(PolicyVersion(0), Ok(()))), [Command::Swap(weights(1))]);
        let torn = SwapFailed { version: PolicyVersion(1), error: "torn".into() };
        let out = feed(&mut state, Event::Swapped(PolicyVersion(1), Err("torn".into())));
        assert_eq!(out, [Command::SwapFailed(torn), ready(Some(0))], "what failed, and what is still there");
        assert!(matches!(feed(&mut state, Event::Leased(lease(1, 0, 1, 0), vec![]))[..], [Command::Generate(..)]));
        assert_eq!(feed(&mut state, Event::Leased(lease(1, 0, 1, 0), vec![])), [], "the same lease twice is one lease");
        assert!(matches!(feed(&mut state, Event::Leased(lease(1, 1, 1, 1), vec![]))[..], [Command::Fail(_)]));
    }

    #[test]
    fn a_lease_that_follows_is_taken_under_newer_weights_and_in_the_middle_of_a_swap() {
        let mut state = at_version(3, 2);
        let follows = |group, version| {
            let mut lease = lease(1, group, 1, version);
            lease.follows = true;
            Event::Leased(lease, vec![])
        };
        assert!(matches!(feed(&mut state, follows(0, 1))[..], [Command::Generate(..)]), "newer than it asks for");
        assert!(matches!(feed(&mut state, follows(1, 3))[..], [Command::Fail(_)]), "older than it asks for");
        assert!(
            matches!(feed(&mut state, Event::Leased(lease(1, 2, 1, 1), vec![]))[..], [Command::Fail(_)]),
            "that very version"
        );
        feed(&mut state, Event::Weights(weights(3)));
        assert!(matches!(feed(&mut state, follows(3, 2))[..], [Command::Generate(..)]));
        assert_eq!(state.running(), 2, "a swap stops nothing");
    }

    #[test]
    fn a_new_connection_forgets_the_leases_of_the_old_one() {
        let mut state = at_version(2, 0);
        let key = LeaseKey::of(&lease(1, 0, 1, 0));
        feed(&mut state, Event::Leased(lease(1, 0, 1, 0), vec![]));
        feed(&mut state, Event::Leased(lease(1, 1, 1, 0), vec![]));
        let out = feed(&mut state, Event::Connected(Epoch(1), 3));
        assert!(matches!(out[..], [Command::Abort(_), Command::Abort(_), Command::Ready(_)]), "{out:?}");
        assert_eq!(feed(&mut state, Event::Generated(key, Ok(vec![]))), []);
        let again = feed(&mut state, Event::Leased(lease(1, 0, 2, 0), vec![]));
        assert!(matches!(again[..], [Command::Generate(..)]), "there is room for what is leased again: {again:?}");
        feed(
            &mut state,
            Event::Cancelled(CancelLease { purpose: LeasePurpose::Train, group: GroupId(0), attempt: AttemptId(2) }),
        );
        feed(&mut state, Event::Leased(lease(1, 0, 1, 0), vec![]));
        let out = feed(&mut state, Event::Connected(Epoch(2), 3));
        assert!(matches!(out[..], [Command::Abort(k), Command::Ready(_)] if k == key), "{out:?}");
        assert_eq!(feed(&mut state, Event::Generated(key, Ok(vec![]))), []);
        assert_eq!(feed(&mut state, Event::Leased(lease(1, 0, 1, 0), vec![])), [], "a lease of the old epoch is no lease");
    }

    /// Whoever is told of a failure takes it for that of its own request.
    #[test]
    fn a_swap_that_an_older_connection_asked_for_fails_without_a_word() {
        let mut state = at_version(2, 0);
        let ready = Command::Ready(Ready { version: Some(PolicyVersion(0)), capacity: 2 });
        let torn = || Event::Swapped(PolicyVersion(1), Err("torn".into()));
        feed(&mut state, Event::Weights(weights(1)));
        feed(&mut state, Event::Weights(weights(2)));
        assert_eq!(feed(&mut state, Event::Connected(Epoch(2), 4)), [], "the swap will say what there is");
        assert_eq!(feed(&mut state, torn()), [ready], "the one that came meanwhile is the older connection's too");
        feed(&mut state, Event::Weights(weights(1)));
        feed(&mut state, Event::Connected(Epoch(2), 4));
        feed(&mut state, Event::Weights(weights(1)));
        assert_eq!(feed(&mut state, torn()), [Command::Swap(weights(1))], "asked for again");
        let out = feed(&mut state, torn());
        assert!(matches!(out[..], [Command::SwapFailed(_), Command::Ready(_)]), "{out:?}");
    }

    #[test]
    fn what_runs_is_handed_in_and_what_a_connection_leaves_behind_is_handed_over() {
        let mut state = at_version(2, 0);
        let [first, second] = [0, 1].map(|group| LeaseKey::of(&lease(1, group, 1, 0)));
        let tick = |state: &mut RolloutState| feed(state, Event::Ticked(5)).split_off(1);
        assert_eq!(tick(&mut state), [], "nothing runs");
        feed(&mut state, Event::Leased(lease(1, 0, 1, 0), vec![]));
        feed(&mut state, Event::Leased(lease(1, 1, 1, 0), vec![]));
        assert_eq!(tick(&mut state), [Command::HandIn(vec![first, second])]);
        assert_eq!(tick(&mut state), [], "every other second");
        feed(&mut state, Event::Generated(first, Ok(vec![])));
        assert_eq!(tick(&mut state), [Command::HandIn(vec![second])], "the batch is on its way");
        assert!(state.holds(&first) && state.holds(&second));
        let out = feed(&mut state, Event::Connected(Epoch(2), 4));
        assert_eq!(out[..2], [Command::HandOver(vec![first, second]), Command::Abort(second)], "also what was not delivered");
        assert!(!state.holds(&first) && !state.holds(&second));
        feed(&mut state, Event::Leased(lease(2, 1, 2, 0), vec![]));
        let third = LeaseKey::of(&lease(2, 1, 2, 0));
        feed(&mut state, Event::Generated(third, Ok(vec![])));
        feed(&mut state, Event::Delivered(third));
        assert!(matches!(feed(&mut state, Event::Connected(Epoch(2), 4))[..], [Command::Ready(_)]), "nothing is left behind");
        feed(&mut state, Event::Connected(Epoch(2), 3));
        feed(&mut state, Event::Leased(lease(2, 3, 1, 0), vec![]));
        assert_eq!([tick(&mut state), tick(&mut state)], [vec![], vec![]], "an older coordinator does not know the message");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Lease(u64, u32),
        Done(u64, u32, bool),
        Cancel(u64, u32),
        Connect(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..4, 1u32..3).prop_map(|(g, a)| Step::Lease(g, a)),
            (0u64..4, 1u32..3, any::<bool>()).prop_map(|(g, a, ok)| Step::Done(g, a, ok)),
            (0u64..4, 1u32..3).prop_map(|(g, a)| Step::Cancel(g, a)),
            (1u64..3).prop_map(Step::Connect),
        ]
    }

    proptest! {
        #[test]
        fn each_generation_started_ends_once(steps in prop::collection::vec(step(), 0..60), capacity in 1u16..4) {
            let mut state = at_version(capacity, 0);
            let mut epoch = 1;
            let mut started = BTreeSet::new();
            for step in steps {
                let key = |g, a| LeaseKey::of(&lease(epoch, g, a, 0));
                let out = match step {
                    Step::Lease(g, a) => feed(&mut state, Event::Leased(lease(epoch, g, a, 0), vec![])),
                    Step::Done(g, a, ok) => {
                        let result = if ok { Ok(vec![]) } else { Err(Failure { error: "e".into(), retryable: false }) };
                        feed(&mut state, Event::Generated(key(g, a), result))
                    }
                    Step::Cancel(g, a) => {
                        let cancel = CancelLease { purpose: LeasePurpose::Train, group: GroupId(g), attempt: AttemptId(a) };
                        feed(&mut state, Event::Cancelled(cancel))
                    }
                    Step::Connect(e) => {
                        epoch = e;
                        feed(&mut state, Event::Connected(Epoch(e), 4))
                    }
                };
                for command in out {
                    match command {
                        Command::Generate(lease, _) => prop_assert!(started.insert(LeaseKey::of(&lease))),
                        Command::Abort(key) => prop_assert!(started.remove(&key)),
                        Command::Send(batch) => {
                            prop_assert_eq!(batch.epoch, Epoch(epoch));
                            let TrajectoryBatch { epoch, purpose, group, attempt, .. } = *batch;
                            let was_started = started.remove(&LeaseKey { epoch, purpose, group, attempt });
                            prop_assert!(was_started);
                        }
                        Command::Fail(failed) => {
                            let LeaseFailed { epoch, purpose, group, attempt, retryable, .. } = failed;
                            let was_started = started.remove(&LeaseKey { epoch, purpose, group, attempt });
                            prop_assert!(was_started || retryable);
                        }
                        _ => {}
                    }
                }
                prop_assert_eq!(started.len(), state.running());
                prop_assert!(started.len() <= usize::from(capacity));
            }
        }
    }
}
