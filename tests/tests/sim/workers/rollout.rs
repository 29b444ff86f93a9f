//! A rollout worker: the real decisions, and tokens that are a hash of the data row, the sample and the weights, whoever
//! generates them at whatever attempt.
use super::{Brain, HEAD, Note};
use crate::chance::hash;
use crate::net::Message;
use crate::seen::Seen;
use crate::world::World;
use cohort_protocol::messages::rollout::{CoordinatorToRollout, RolloutToCoordinator, WeightsReady};
use cohort_protocol::version::PARTIAL_GROUPS;
use cohort_protocol::{
    FinishReason, GroupLease, LeasePurpose, PolicyVersion, SampleIx, Trajectory, TrajectoryBatch, VersionSpan,
};
use cohort_rollout::state::{Command, Event, Failure, LeaseKey, RolloutState};
use std::collections::BTreeMap;

/// The protocol version before partial groups: a group that is leased again begins at its first token.
const PROTOCOL: u16 = PARTIAL_GROUPS - 1;
/// Leases at once.
pub(crate) const CAPACITY: u16 = 2;
/// Tokens of a sample, the first one the prompt's.
const TOKENS: u32 = 5;

/// A rollout worker's memory.
#[derive(Debug)]
pub(crate) struct RolloutBrain {
    state: RolloutState,
    /// Version and digest in its engine.
    pub(crate) engine: Option<(PolicyVersion, u64)>,
    /// Leases in work, and what was in the engine when they began.
    generating: BTreeMap<LeaseKey, (GroupLease, (PolicyVersion, u64))>,
    tokens: u64,
}

impl RolloutBrain {
    pub(crate) fn new() -> Self {
        Self { state: RolloutState::new(CAPACITY), engine: None, generating: BTreeMap::new(), tokens: 0 }
    }

    pub(crate) fn running(&self) -> usize {
        self.state.running()
    }
}

impl World {
    fn rollout(&mut self, pid: u32) -> Option<&mut RolloutBrain> {
        match self.procs.get_mut(&pid).map(|p| &mut p.brain) {
            Some(Brain::Rollout(brain)) => Some(brain),
            _ => None,
        }
    }

    pub(super) fn rollout_mail(&mut self, pid: u32, note: Note) {
        let event = match note {
            Note::Connected(epoch) => Event::Connected(epoch, PROTOCOL),
            Note::Message(Message::ToRollout(message)) => match message {
                CoordinatorToRollout::Weights(weights) => Event::Weights(weights),
                CoordinatorToRollout::Lease(lease) => Event::Leased(Box::new(lease), Vec::new()),
                CoordinatorToRollout::Continue(more) => Event::Leased(Box::new(more.lease), more.parts),
                CoordinatorToRollout::Cancel(cancel) => Event::Cancelled(cancel),
                CoordinatorToRollout::Drain(reason) => Event::Drained(reason),
            },
            Note::Generated(key, made) => {
                let Some(brain) = self.rollout(pid) else { return };
                brain.generating.remove(&key);
                brain.tokens += u64::from(TOKENS);
                Event::Generated(key, made.map_err(|error| Failure { error, retryable: true }))
            }
            Note::Read(weights, sequence) => {
                let read = self.ring.finish_reading(pid, weights.slot, sequence, weights.version);
                self.swapped(pid, &weights, read)
            }
            Note::Brought(weights, brought) => self.swapped(pid, &weights, brought),
            _ => return,
        };
        self.rollout_event(pid, event);
    }

    /// W2 of the weights: a worker checks what it has read against the digest that the coordinator named.
    fn swapped(&mut self, pid: u32, weights: &WeightsReady, read: Result<u64, String>) -> Event {
        let checked = read.and_then(|digest| {
            let wanted = weights.digest;
            if digest == wanted { Ok(digest) } else { Err(format!("digest {digest:016x}, {wanted:016x} was named")) }
        });
        if let Ok(digest) = checked
            && let Some(brain) = self.rollout(pid)
        {
            brain.engine = Some((weights.version, digest));
            self.see(Seen::Took { pid, version: weights.version, digest });
        }
        Event::Swapped(weights.version, checked.map(drop))
    }

    pub(super) fn rollout_beats(&mut self, pid: u32) {
        let spins = self.procs.get(&pid).is_some_and(|p| p.spinning);
        let Some(brain) = self.rollout(pid) else { return };
        // Tokens come while something is generated.
        brain.tokens += u64::from(!spins && brain.state.running() > 0);
        let tokens = brain.tokens;
        self.rollout_event(pid, Event::Ticked(tokens));
    }

    pub(super) fn rollout_delivered(&mut self, pid: u32, batch: &TrajectoryBatch) {
        let TrajectoryBatch { epoch, purpose, group, attempt, .. } = *batch;
        self.rollout_event(pid, Event::Delivered(LeaseKey { epoch, purpose, group, attempt }));
    }

    fn rollout_event(&mut self, pid: u32, event: Event) {
        let mut commands = Vec::new();
        let Some(brain) = self.rollout(pid) else { return };
        brain.state.on_event(event, &mut commands);
        for command in commands {
            match command {
                Command::Swap(weights) => self.begin_swap(pid, weights),
                Command::Generate(lease, _) => self.generate(pid, *lease),
                // Not in the protocol that these workers speak.
                Command::HandIn(_) | Command::HandOver(_) => {}
                Command::Abort(key) => {
                    if let Some(brain) = self.rollout(pid) {
                        brain.generating.remove(&key);
                    }
                }
                Command::Ready(ready) => self.say(pid, Message::FromRollout(RolloutToCoordinator::Ready(ready))),
                Command::SwapFailed(failed) => self.say(pid, Message::FromRollout(RolloutToCoordinator::SwapFailed(failed))),
                Command::Beat(beat) => self.say(pid, Message::FromRollout(RolloutToCoordinator::Beat(beat))),
                Command::Fail(failed) => self.say(pid, Message::FromRollout(RolloutToCoordinator::LeaseFailed(failed))),
                Command::Send(batch) => self.say_bulk(pid, Message::FromRollout(RolloutToCoordinator::Trajectories(*batch))),
                Command::Leave(_) => self.kill(pid, "it left"),
            }
        }
    }

    fn begin_swap(&mut self, pid: u32, weights: WeightsReady) {
        let host = self.procs.get(&pid).map_or(HEAD, |p| p.host);
        if host != HEAD {
            return self.ask_host(host, pid, weights);
        }
        let sequence = self.ring.begin_reading(pid, weights.slot);
        let took = if self.chance.permille(100) { self.effort(pid, 500, 3000) } else { self.effort(pid, 5, 120) };
        self.later(took, pid, Note::Read(weights, sequence));
    }

    fn generate(&mut self, pid: u32, lease: GroupLease) {
        let fails = self.fails(self.setting.rates.lease_fails, lease.purpose);
        let took = if self.chance.permille(150) { self.effort(pid, 1500, 4000) } else { self.effort(pid, 150, 1200) };
        let key = LeaseKey::of(&lease);
        let Some(brain) = self.rollout(pid) else { return };
        let Some(engine) = brain.engine else { return };
        brain.generating.insert(key, (lease, engine));
        if fails {
            return self.later(took, pid, Note::Generated(key, Err("the environment is out of reach".into())));
        }
        self.finish_later(took, pid, key);
    }

    /// Work that ends after a while; a process that spins never ends it.
    pub(super) fn later(&mut self, took: std::time::Duration, pid: u32, note: Note) {
        self.agenda.put(self.now + took, crate::agenda::Happening::Mail { pid, note });
    }

    fn finish_later(&mut self, took: std::time::Duration, pid: u32, key: LeaseKey) {
        // The samples are made at the end, when it is known which versions they came from.
        self.agenda.put(self.now + took, crate::agenda::Happening::Sampled { pid, key });
    }

    pub(crate) fn sampled(&mut self, pid: u32, key: LeaseKey) {
        let Some(proc) = self.procs.get(&pid) else { return };
        if proc.stopped {
            let again = std::time::Duration::from_millis(200);
            return self.finish_later(again, pid, key);
        }
        if proc.spinning {
            return;
        }
        let Some(brain) = self.rollout(pid) else { return };
        let Some((lease, begun)) = brain.generating.get(&key) else { return };
        let ended = brain.engine.unwrap_or(*begun);
        let made = (0..lease.samples).map(|index| trajectory(lease, index, *begun, ended)).collect();
        self.rollout_mail(pid, Note::Generated(key, Ok(made)));
    }
}

/// A sample, the second half of it under the version that was there at the end.
fn trajectory(lease: &GroupLease, index: u16, begun: (PolicyVersion, u64), ended: (PolicyVersion, u64)) -> Trajectory {
    let purpose = match lease.purpose {
        LeasePurpose::Train => 0,
        LeasePurpose::Eval { step, greedy } => 2 + 2 * step + u64::from(greedy),
    };
    let middle = if begun.0 == ended.0 { TOKENS } else { 3 };
    let token = |at: u32| {
        let digest = if at < middle { begun.1 } else { ended.1 };
        let numbers = [lease.item.row, index.into(), at.into(), purpose, digest, lease.seed];
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        (hash(&[&bytes]) % 50_000) as u32
    };
    let span = |start, end, version| VersionSpan { start, len: end - start, version, exact: true };
    let mut spans = vec![span(1, middle, begun.0)];
    if middle < TOKENS {
        spans.push(span(middle, TOKENS, ended.0));
    }
    let tokens: Vec<u32> = (0..TOKENS).map(token).collect();
    let logp: Vec<f32> = (0..TOKENS).map(|at| if at == 0 { 0.0 } else { -0.5 }).collect();
    Trajectory {
        group: lease.group,
        sample: SampleIx(index),
        token_ids: tokens.into(),
        mask: (0..TOKENS).map(|at| u8::from(at > 0)).collect(),
        logp: logp.clone().into(),
        logp_sampled: logp.into(),
        spans,
        temperature: 1.0,
        turns: Vec::new(),
        finish: FinishReason::Stop,
        generate_us: 0,
        context_json: "{}".into(),
    }
}
