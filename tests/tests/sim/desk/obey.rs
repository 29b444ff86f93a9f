//! What the controller orders, done: messages to workers, payloads kept and forgotten, facts to the journal.
use super::{Body, Core, Delivery, Kept};
use crate::hosts::HostNote;
use crate::net::{Message, Way, WireId};
use crate::seen::Seen;
use crate::workers::{Brain, Note};
use crate::world::World;
use cohort_cluster::agent::nodes::event as nodes;
use cohort_cluster::controller::{Command, ConnId, DeliveryId, Event, Fact, Work};
use cohort_cluster::coordinator::payload::{group_payload, samples_to_score};
use cohort_cluster::ledger::Entry;
use cohort_learner::advantage::Advantage;
use cohort_protocol::messages::learner::{CheckpointRequest, CoordinatorToLearner, Load, LoadFrom, PublishRequest, StepRequest};
use cohort_protocol::messages::reward::{CoordinatorToReward, ScoreRequest};
use cohort_protocol::messages::rollout::{CancelLease, ContinuedLease, CoordinatorToRollout, WeightsReady};
use cohort_protocol::version::PARTIAL_GROUPS;
use cohort_protocol::{
    AttemptId, GroupLease, GroupPayload, PolicyVersion, SampledItem, SamplingParams, StepIntent, TrajectoryBatch,
};
use std::sync::Arc;

/// Key of every draw of the run.
const SEED: u64 = 7;

fn item(cursor: u64) -> SampledItem {
    SampledItem { row: cursor, json: format!("{{\"row\":{cursor}}}") }
}

impl World {
    pub(super) fn obey(&mut self, command: Command) {
        self.see(Seen::Ordered(command.clone()));
        let Some(core) = &mut self.desk.core else { return };
        let epoch = core.state.epoch();
        match command {
            Command::Record { id, facts } => {
                let entries = facts.into_iter().filter_map(|fact| core.entry(fact)).collect();
                core.journal.push_back((id, entries));
                self.begin_writing();
            }
            Command::Lease { conn, work, attempt, version, cursor, samples } => {
                let follows = core.state.plan().is_asynchronous() && work.is_training();
                let sampling = SamplingParams::plain(1.0, 4);
                let (purpose, group) = (work.purpose, work.group);
                let item = item(cursor);
                let lease = GroupLease { epoch, purpose, group, attempt, version, follows, samples, item, seed: SEED, sampling };
                self.send_lease(conn, lease);
            }
            Command::CancelLease { conn, work, attempt } => {
                let cancel = CancelLease { purpose: work.purpose, group: work.group, attempt };
                self.tell_worker(conn, Message::ToRollout(CoordinatorToRollout::Cancel(cancel)));
            }
            Command::Weights { conn, version, slot, digest } => {
                let ready = WeightsReady { version, slot, digest };
                self.tell_worker(conn, Message::ToRollout(CoordinatorToRollout::Weights(ready)));
            }
            Command::Score { conn, work, attempt, cursor } => self.send_score(conn, work, attempt, cursor),
            Command::Keep { delivery, work } => self.keep(delivery, work),
            Command::Discard { delivery, .. } => {
                if let Some(delivery) = core.deliveries.remove(&delivery) {
                    self.count("discarded");
                    self.send(delivery.wire, Way::Down, Message::Ack(delivery.bulk));
                }
            }
            Command::Forget(works) => {
                for work in &works {
                    core.kept.remove(work);
                    core.partials.forget(work);
                }
            }
            Command::Load { conn, from, version } => self.send_load(conn, from, version),
            Command::Step { conn, intent, replay, hash } => self.send_step(conn, intent, replay, hash),
            Command::Publish { conn, version, slot } => {
                let publish = PublishRequest { epoch, version, slot };
                self.tell_worker(conn, Message::ToLearner(CoordinatorToLearner::Publish(publish)));
            }
            Command::Checkpoint { conn, version, cursor } => {
                let save = CheckpointRequest { epoch, version, cursor_json: cursor.to_string() };
                self.tell_worker(conn, Message::ToLearner(CoordinatorToLearner::Checkpoint(save)));
            }
            Command::Meet { conn, place } => self.tell_worker(conn, Message::ToLearner(CoordinatorToLearner::Meet(place))),
            Command::Replace { worker, pid, conn, why } => {
                core.conns.remove(&conn.0);
                self.count("replaced");
                self.close_wire(conn.0);
                self.head(nodes::Event::Hangs { worker, pid, why });
            }
            Command::Finish(outcome) => self.outcome = Some(outcome),
            Command::Phase(_)
            | Command::Committed(_)
            | Command::Evaluated(_)
            | Command::NoRoom { .. }
            | Command::RoomAgain { .. }
            | Command::Notice(_) => {}
        }
    }

    fn send_lease(&mut self, conn: ConnId, lease: GroupLease) {
        let speaks = self.net.wires.get(&conn.0).map_or(0, |wire| self.protocol_of(wire.host));
        let Some(core) = &self.desk.core else { return };
        let parts = match speaks < PARTIAL_GROUPS {
            true => Vec::new(),
            false => core.partials.begun(&lease, core.state.version(), core.state.plan().max_staleness),
        };
        if parts.is_empty() {
            return self.tell_worker(conn, Message::ToRollout(CoordinatorToRollout::Lease(lease)));
        }
        self.count("groups that went on");
        let more = ContinuedLease { lease, parts };
        self.see(Seen::Continued(more.clone()));
        self.tell_worker(conn, Message::ToRollout(CoordinatorToRollout::Continue(more)));
    }

    fn tell_worker(&mut self, conn: ConnId, message: Message) {
        if self.desk.core.as_ref().is_some_and(|core| core.conns.contains_key(&conn.0)) {
            self.send(conn.0, Way::Down, message);
        }
    }

    /// The head node's end is closed; the worker sees it.
    fn close_wire(&mut self, wire: WireId) {
        if let Some(found) = self.net.wires.get_mut(&wire) {
            found.head_open = false;
            let worker_moves = self.procs.get(&found.pid).is_some_and(|p| !p.stopped);
            if worker_moves && !self.net.cut_off(self.now, self.net.wires[&wire].host) {
                self.peer_lost(wire);
            }
        }
    }

    /// K1: acknowledged when the controller says so.
    fn keep(&mut self, id: DeliveryId, work: Work) {
        let Some(core) = &mut self.desk.core else { return };
        let Some(delivery) = core.deliveries.remove(&id) else { return };
        let Delivery { wire, bulk, epoch, attempt, body, .. } = delivery;
        core.partials.forget(&work);
        let kept = core.kept.entry(work).or_default();
        let scores = matches!(body, Body::Reply(..));
        match body {
            Body::Batch(batch, _) => kept.batch = Some(batch),
            Body::Reply(reply, _) => kept.reply = Some(reply),
        }
        self.see(Seen::Kept { work, wire, epoch, attempt, scores });
        self.send(wire, Way::Down, Message::Ack(bulk));
    }

    fn send_score(&mut self, conn: ConnId, work: Work, attempt: AttemptId, cursor: u64) {
        let Some(core) = &mut self.desk.core else { return };
        if !core.conns.contains_key(&conn.0) {
            return;
        }
        let epoch = core.state.epoch();
        let Some(batch) = core.batch_of(work) else {
            return self.tell(Event::Failed { error: format!("{work}: its trajectories are not in the ledger") });
        };
        core.kept.entry(work).or_default().batch = Some(batch.clone());
        let request = ScoreRequest {
            epoch,
            purpose: work.purpose,
            group: work.group,
            attempt,
            item_json: item(cursor).json,
            seed: SEED,
            samples: samples_to_score(&batch),
        };
        self.send_bulk(conn.0, Way::Down, Message::ToReward(CoordinatorToReward::Score(request)), 0);
    }

    /// A checkpoint is verified before the learner is told to load it.
    fn send_load(&mut self, conn: ConnId, from: LoadFrom, version: PolicyVersion) {
        let damaged = match &from {
            LoadFrom::Base => false,
            LoadFrom::Checkpoint(dir) => self.checkpoints.get(dir).is_none_or(|saved| saved.damaged),
        };
        if damaged {
            self.count("damaged checkpoints");
            return self.tell(Event::CheckpointDamaged { conn, version, why: "a hash does not fit".into() });
        }
        let Some(core) = &self.desk.core else { return };
        let load = Load { epoch: core.state.epoch(), from, version };
        self.tell_worker(conn, Message::ToLearner(CoordinatorToLearner::Load(load)));
    }

    fn send_step(&mut self, conn: ConnId, intent: StepIntent, replay: bool, hash: bool) {
        let advantage = self.advantage;
        let Some(core) = &self.desk.core else { return };
        match core.gather(&intent, &advantage) {
            Ok(groups) => {
                let request = StepRequest { epoch: core.state.epoch(), intent, groups, replay, hash };
                self.send_bulk(conn.0, Way::Down, Message::ToLearner(CoordinatorToLearner::Step(request)), 0);
            }
            Err(error) => self.tell(Event::Failed { error }),
        }
    }

    /// The host's agent has read its copy to a worker, or cannot.
    pub(crate) fn brought(&mut self, pid: u32, weights: WeightsReady, brought: Result<u64, String>) {
        if self.procs.get(&pid).is_some_and(|p| matches!(p.brain, Brain::Rollout(_))) {
            self.post(pid, Note::Brought(weights, brought));
        }
    }

    /// Something for other hosts, a little later.
    pub(crate) fn host_later(&mut self, low: u64, high: u64, note: HostNote) {
        let delay = self.delay(low, high);
        self.agenda.put(self.now + delay, crate::agenda::Happening::Host(note));
    }
}

impl Core {
    fn batch_of(&self, work: Work) -> Option<Arc<TrajectoryBatch>> {
        let kept = self.kept.get(&work).and_then(|k| k.batch.clone());
        let stored = || self.ledger.trajectories(work.group).ok().flatten().map(|accepted| accepted.value);
        kept.or_else(|| if work.is_training() { stored() } else { None })
    }

    /// A step's groups in the intent's order: from memory or read back, and checked against the intent's digests.
    fn gather(&self, intent: &StepIntent, advantage: &dyn Advantage) -> Result<Vec<GroupPayload>, String> {
        let mut groups = Vec::new();
        for (group, digest) in intent.groups.iter().zip(&intent.digests) {
            let Kept { batch, reply } = self.kept.get(&Work::train(*group)).cloned().unwrap_or_default();
            let missing = || format!("group {group} of step {} is not in the ledger", intent.step);
            let batch = match batch {
                Some(batch) => batch,
                None => self.ledger.trajectories(*group).map_err(|e| e.to_string())?.ok_or_else(missing)?.value,
            };
            let reply = match reply {
                Some(reply) => reply,
                None => self.ledger.scores(*group).map_err(|e| e.to_string())?.ok_or_else(missing)?.value,
            };
            let ready = group_payload(&batch, &reply, advantage).map_err(|e| e.to_string())?;
            if ready.digest != *digest {
                return Err(format!("group {group} has digest {}, step {} names {digest}", ready.digest, intent.step));
            }
            groups.push(ready.payload);
        }
        Ok(groups)
    }

    fn entry(&mut self, fact: Fact) -> Option<Entry> {
        let (epoch, at_ms) = (self.state.epoch(), 0);
        Some(match fact {
            Fact::Opened { group, cursor } => Entry::Opened { group, cursor, epoch },
            Fact::Leased { group, attempt, worker } => Entry::Leased { group, attempt, worker, epoch, at_ms },
            Fact::Trajectories { delivery, .. } => match &mut self.deliveries.get_mut(&delivery)?.body {
                Body::Batch(_, accepted) => Entry::Trajectories(accepted.take()?),
                Body::Reply(..) => return None,
            },
            Fact::Scores { delivery, .. } => match &mut self.deliveries.get_mut(&delivery)?.body {
                Body::Reply(_, accepted) => Entry::Scores(accepted.take()?),
                Body::Batch(..) => return None,
            },
            Fact::Intent(intent) => Entry::Intent(intent),
            Fact::Commit(commit) => Entry::Commit(commit),
            Fact::Dropped { group, reason, detail } => Entry::Dropped { group, reason: reason.into(), detail },
            Fact::Checkpoint { version, dir, manifest_sha256 } => Entry::Checkpoint { version, dir, manifest_sha256, at_ms },
            Fact::Evaluation(report) => Entry::Evaluation(report),
        })
    }
}
