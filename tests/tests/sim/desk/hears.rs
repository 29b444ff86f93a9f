//! What the coordinator hears from workers, as events of the controller.
use super::{Body, Delivery};
use crate::agenda::Happening;
use crate::net::{Message, WireId};
use crate::seen::Seen;
use crate::world::World;
use cohort_cluster::controller::{ConnId, DeliveryId, Event, ScoresSummary, Work};
use cohort_cluster::coordinator::payload::{summarize_batch, summarize_scores};
use cohort_cluster::ledger::Accepted;
use cohort_protocol::TrajectoryBatch;
use cohort_protocol::messages::learner::LearnerToCoordinator;
use cohort_protocol::messages::reward::{RewardToCoordinator, ScoreReply};
use cohort_protocol::messages::rollout::{PartialGroup, RolloutToCoordinator};
use std::sync::Arc;

impl World {
    pub(crate) fn desk_hears(&mut self, wire: WireId, message: Message, bulk: Option<u64>) {
        let conn = ConnId(wire);
        if !self.desk.core.as_ref().is_some_and(|core| core.conns.contains_key(&wire)) {
            return;
        }
        match message {
            Message::FromRollout(message) => self.rollout_said(wire, message, bulk),
            Message::FromReward(RewardToCoordinator::Ready(capacity)) => self.tell(Event::RewardReady { conn, capacity }),
            Message::FromReward(RewardToCoordinator::Beat(beat)) => self.tell(Event::Beat { conn, progress: beat.progress }),
            Message::FromReward(RewardToCoordinator::Scored(reply)) => {
                // Checked against its batch on another thread.
                let took = self.chance.ms(0, 20);
                let (start, reply) = (self.desk.start, Arc::new(reply));
                let scored = Happening::Scored { start, wire, bulk: bulk.unwrap_or_default(), reply };
                self.agenda.put(self.now + took, scored);
            }
            Message::FromLearner(message) => self.learner_said(conn, message),
            _ => {}
        }
    }

    fn rollout_said(&mut self, wire: WireId, message: RolloutToCoordinator, bulk: Option<u64>) {
        let conn = ConnId(wire);
        match message {
            RolloutToCoordinator::Ready(ready) => {
                self.tell(Event::RolloutReady { conn, version: ready.version, capacity: ready.capacity });
            }
            RolloutToCoordinator::Beat(beat) => self.tell(Event::Beat { conn, progress: beat.tokens }),
            RolloutToCoordinator::LeaseFailed(f) => self.tell(Event::LeaseFailed {
                conn,
                epoch: f.epoch,
                work: Work { purpose: f.purpose, group: f.group },
                attempt: f.attempt,
                error: f.error,
                retryable: f.retryable,
            }),
            RolloutToCoordinator::SwapFailed(f) => self.tell(Event::SwapFailed { conn, version: f.version, error: f.error }),
            RolloutToCoordinator::Partial(partial) => self.partial_came(conn, partial),
            RolloutToCoordinator::Trajectories(batch) => self.batch_came(wire, Arc::new(batch), bulk.unwrap_or_default()),
        }
    }

    fn partial_came(&mut self, conn: ConnId, partial: PartialGroup) {
        let PartialGroup { epoch, purpose, group, attempt, parts } = partial;
        let work = Work { purpose, group };
        let Some(core) = self.desk.core.as_mut().filter(|core| core.state.may_go_on(&work, epoch, attempt)) else { return };
        let all = parts.len();
        let kept = parts.into_iter().filter_map(|part| core.partials.take(conn, work, part).ok()).count();
        if kept < all {
            self.count("parts that were not kept");
        }
        if kept > 0 {
            self.see(Seen::PartsKept { work, attempt });
        }
    }

    fn batch_came(&mut self, wire: WireId, batch: Arc<TrajectoryBatch>, bulk: u64) {
        let Some(core) = &mut self.desk.core else { return };
        let Some(worker) = core.conns.get(&wire).copied() else { return };
        let checked = Accepted::trajectories(batch.clone(), worker)
            .map_err(|e| e.to_string())
            .and_then(|accepted| Ok((summarize_batch(&batch, accepted.digest.clone())?, accepted)));
        let (result, accepted) = match checked {
            Ok((summary, accepted)) => (Ok(summary), Some(accepted)),
            Err(why) => (Err(why), None),
        };
        let work = Work { purpose: batch.purpose, group: batch.group };
        let (epoch, attempt) = (batch.epoch, batch.attempt);
        let delivery = core.deliver(Delivery { wire, bulk, epoch, attempt, body: Body::Batch(batch, accepted) });
        self.tell(Event::Trajectories { conn: ConnId(wire), delivery, epoch, work, attempt, result });
    }

    pub(crate) fn scored(&mut self, start: u32, wire: WireId, bulk: u64, reply: Arc<ScoreReply>) {
        let work = Work { purpose: reply.purpose, group: reply.group };
        let advantage = self.advantage;
        let Some(core) = self.desk.core.as_mut().filter(|_| self.desk.start == start) else { return };
        let Some(worker) = core.conns.get(&wire).copied() else { return };
        let batch = core.kept.get(&work).and_then(|k| k.batch.clone());
        let unknown = || ScoresSummary { digest: String::new(), scores: Vec::new(), parts: Vec::new(), failure: None };
        // Without a batch it is none that was asked for: the controller will refuse it.
        let checked = batch.map(|batch| {
            let summary = summarize_scores(&batch, &reply, &advantage)?;
            let accepted = Accepted::scores(reply.clone(), worker, summary.digest.clone())?;
            Ok::<_, cohort_protocol::CodecError>((summary, accepted))
        });
        let (summary, accepted) = match checked {
            None => (unknown(), None),
            Some(Ok((summary, accepted))) => (summary, Some(accepted)),
            Some(Err(error)) => (ScoresSummary { failure: Some((error.to_string(), false)), ..unknown() }, None),
        };
        let (epoch, attempt) = (reply.epoch, reply.attempt);
        let delivery = core.deliver(Delivery { wire, bulk, epoch, attempt, body: Body::Reply(reply, accepted) });
        self.tell(Event::Scores { conn: ConnId(wire), delivery, epoch, work, attempt, summary });
    }

    fn learner_said(&mut self, conn: ConnId, message: LearnerToCoordinator) {
        self.tell(match message {
            LearnerToCoordinator::Ready(version) => Event::LearnerReady { conn, version },
            LearnerToCoordinator::Meeting(place) => Event::Meeting { conn, place },
            LearnerToCoordinator::Loaded(l) => Event::Loaded { conn, epoch: l.epoch, version: l.version, digest: l.digest },
            LearnerToCoordinator::Stepped(s) => Event::Stepped { conn, epoch: s.epoch, commit: s.commit },
            LearnerToCoordinator::Published(p) => {
                Event::Published { conn, epoch: p.epoch, version: p.version, slot: p.slot, digest: p.digest }
            }
            LearnerToCoordinator::CheckpointSaved(c) => Event::CheckpointSaved {
                conn,
                epoch: c.epoch,
                version: c.version,
                dir: c.dir,
                manifest_sha256: c.manifest_sha256,
            },
            LearnerToCoordinator::Failed(f) => {
                Event::LearnerFailed { conn, epoch: f.epoch, what: f.what, error: f.error, fatal: f.fatal, fault: f.fault }
            }
            LearnerToCoordinator::Beat(beat) => Event::Beat { conn, progress: beat.progress },
        });
    }
}

impl super::Core {
    fn deliver(&mut self, delivery: Delivery) -> DeliveryId {
        self.next_delivery += 1;
        let id = DeliveryId(self.next_delivery);
        self.deliveries.insert(id, delivery);
        id
    }
}
