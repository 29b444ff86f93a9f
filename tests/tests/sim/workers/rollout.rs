//! A rollout worker: the real decisions and the real tapes, and tokens that are a hash of the data row, the sample, the weights and all
//! that was said before them, whoever says them at whatever attempt.
use super::voice::{Voice, trajectory};
use super::{Brain, HEAD, Note};
use crate::agenda::Happening;
use crate::net::Message;
use crate::seen::Seen;
use crate::world::World;
use cohort_protocol::messages::rollout::{CoordinatorToRollout, PartialGroup, RolloutToCoordinator, WeightsReady};
use cohort_protocol::version::{PARTIAL_GROUPS, PROTOCOL};
use cohort_protocol::{GroupLease, PolicyVersion, TrajectoryBatch, TurnPart};
use cohort_rollout::state::{Command, Event, Failure, LeaseKey, RolloutState};
use cohort_rollout::tape::Tapes;
use std::collections::BTreeMap;
use std::time::Duration;

/// Leases at once.
pub(crate) const CAPACITY: u16 = 2;

/// A rollout worker's memory.
#[derive(Debug)]
pub(crate) struct RolloutBrain {
    state: RolloutState,
    /// Version and digest in its engine.
    pub(crate) engine: Option<(PolicyVersion, u64)>,
    /// Leases in work.
    generating: BTreeMap<LeaseKey, Generating>,
    /// What was said in leases that are in work or on their way.
    tapes: BTreeMap<LeaseKey, Tapes>,
    tokens: u64,
}

/// A lease in work.
#[derive(Debug)]
struct Generating {
    lease: GroupLease,
    voices: Vec<Voice>,
    begun: Duration,
    took: Duration,
}

impl RolloutBrain {
    pub(crate) fn new() -> Self {
        let (generating, tapes) = Default::default();
        Self { state: RolloutState::new(CAPACITY), engine: None, generating, tapes, tokens: 0 }
    }

    pub(crate) fn running(&self) -> usize {
        self.state.running()
    }

    /// Says what is due by then, with the weights that are in the engine.
    fn speak(&mut self, now: Duration) {
        let Some(engine) = self.engine else { return };
        for (key, Generating { lease, voices, begun, took }) in &mut self.generating {
            let Some(tapes) = self.tapes.get(key) else { continue };
            let part = now.saturating_sub(*begun).as_secs_f64() / took.as_secs_f64().max(1e-6);
            for voice in voices {
                self.tokens += voice.speak(lease, tapes, part, engine);
            }
        }
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
            Note::Connected(epoch) => {
                let host = self.procs.get(&pid).map_or(HEAD, |p| p.host);
                Event::Connected(epoch, self.protocol_of(host))
            }
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
        let now = self.now;
        if let Ok(digest) = checked
            && let Some(brain) = self.rollout(pid)
        {
            // What was said until here was said with the old ones.
            brain.speak(now);
            brain.engine = Some((weights.version, digest));
            self.see(Seen::Took { pid, version: weights.version, digest });
        }
        Event::Swapped(weights.version, checked.map(drop))
    }

    pub(super) fn rollout_beats(&mut self, pid: u32) {
        let spins = self.procs.get(&pid).is_some_and(|p| p.spinning);
        let Some(brain) = self.rollout(pid) else { return };
        // Tokens come while something is generated, also those of an environment.
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
                Command::Generate(lease, parts) => self.generate(pid, *lease, parts),
                Command::HandIn(keys) => keys.into_iter().for_each(|key| self.hand_in(pid, key)),
                Command::HandOver(keys) => {
                    for key in keys {
                        self.rollout(pid).and_then(|brain| brain.tapes.get(&key)).into_iter().for_each(Tapes::rewind);
                        self.hand_in(pid, key);
                    }
                }
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
        if let Some(brain) = self.rollout(pid) {
            brain.tapes.retain(|key, _| brain.state.holds(key));
        }
    }

    /// What the workers of a host speak: an older build speaks the version before partial groups.
    pub(crate) fn protocol_of(&self, host: u16) -> u16 {
        if self.setting.old_build == Some(host) { PARTIAL_GROUPS - 1 } else { PROTOCOL }
    }

    fn hand_in(&mut self, pid: u32, key: LeaseKey) {
        let now = self.now;
        let spins = self.procs.get(&pid).is_some_and(|p| p.spinning);
        let Some(brain) = self.rollout(pid) else { return };
        if !spins {
            brain.speak(now);
        }
        let parts = brain.tapes.get(&key).map_or_else(Vec::new, Tapes::hand_in);
        if parts.is_empty() {
            return;
        }
        self.see(Seen::HandedIn { pid, key, parts: parts.clone() });
        let LeaseKey { epoch, purpose, group, attempt } = key;
        let partial = PartialGroup { epoch, purpose, group, attempt, parts };
        self.say(pid, Message::FromRollout(RolloutToCoordinator::Partial(partial)));
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

    fn generate(&mut self, pid: u32, lease: GroupLease, parts: Vec<TurnPart>) {
        let fails = self.fails(self.setting.rates.lease_fails, lease.purpose);
        let took = if self.chance.permille(300) { self.effort(pid, 1500, 5000) } else { self.effort(pid, 150, 1200) };
        let (key, now) = (LeaseKey::of(&lease), self.now);
        let Some(brain) = self.rollout(pid) else { return };
        let voices = (0..lease.samples).map(Voice::new).collect();
        brain.tapes.insert(key, Tapes::new(lease.samples, parts));
        brain.generating.insert(key, Generating { lease, voices, begun: now, took });
        // What others said of it is played at once.
        brain.speak(now);
        if fails {
            return self.later(took, pid, Note::Generated(key, Err("the environment is out of reach".into())));
        }
        self.finish_later(took, pid, key);
    }

    /// Work that ends after a while; a process that spins never ends it.
    pub(super) fn later(&mut self, took: Duration, pid: u32, note: Note) {
        self.agenda.put(self.now + took, Happening::Mail { pid, note });
    }

    fn finish_later(&mut self, took: Duration, pid: u32, key: LeaseKey) {
        // The samples are made at the end, when it is known which versions they came from.
        self.agenda.put(self.now + took, Happening::Sampled { pid, key });
    }

    pub(crate) fn sampled(&mut self, pid: u32, key: LeaseKey) {
        let now = self.now;
        let Some(proc) = self.procs.get(&pid) else { return };
        if proc.stopped {
            return self.finish_later(Duration::from_millis(200), pid, key);
        }
        if proc.spinning {
            return;
        }
        let Some(brain) = self.rollout(pid) else { return };
        brain.speak(now);
        let Some(Generating { lease, voices, .. }) = brain.generating.get(&key) else { return };
        let made = voices.iter().map(|voice| trajectory(lease, voice)).collect();
        self.rollout_mail(pid, Note::Generated(key, Ok(made)));
    }
}
