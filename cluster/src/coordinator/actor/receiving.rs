//! What the coordinator hears from workers, as events of the controller; payloads are kept here and named.
use super::*;

impl Core {
    pub(super) async fn input(&mut self, input: Input) {
        match input {
            Input::Opened { conn, hello, outbox } => self.opened(conn, &hello, outbox).await,
            Input::Closed { conn, why } => self.closed(conn, why).await,
            Input::Rollout { conn, message } => self.rollout_said(conn, message).await,
            Input::Batch { conn, batch, checked, ack } => self.batch_came(conn, batch, checked, ack).await,
            Input::Reward { conn, message } => match message {
                RewardToCoordinator::Ready(capacity) => self.event(Event::RewardReady { conn, capacity }).await,
                RewardToCoordinator::Beat(beat) => {
                    self.breakers(conn, beat.breakers);
                    self.event(Event::Beat { conn, progress: beat.progress }).await;
                }
                // Taken apart by the session.
                RewardToCoordinator::Scored(_) => {}
            },
            Input::Scores { conn, reply, ack } => self.scores_came(conn, reply, ack),
            Input::Learner { conn, message } => self.learner_said(conn, message).await,
            Input::Event(effect) => self.effect(*effect).await,
        }
    }

    fn breakers(&mut self, conn: ConnId, breakers: Vec<(String, String)>) {
        let Some((worker, _)) = self.conns.get(&conn) else { return };
        for (grader, state) in self.report.breakers(*worker, breakers) {
            tracing::warn!(target: "cohort::coordinator", %worker, grader, state, "breaker_changed");
        }
    }

    async fn opened(&mut self, conn: ConnId, hello: &Hello, outbox: Outbox) {
        self.report.seen(hello.worker, hello.incarnation, hello.pid);
        if hello.worker.role == Role::Rollout && hello.numerics != self.args.numerics {
            let (worker, run) = differing(&hello.numerics, &self.args.numerics);
            let text = format!(
                "{} samples with {worker} where the run has {run}: its tokens count as inexact and are corrected for",
                hello.worker
            );
            tracing::warn!(target: "cohort::coordinator", text, "corrected_sampler");
            self.told.news.emit(Progress::Notice(text));
            self.report.corrects(hello.worker, hello.numerics.clone());
        }
        self.conns.insert(conn, (hello.worker, outbox));
        let (worker, incarnation, pid) = (hello.worker, hello.incarnation, hello.pid);
        tracing::info!(target: "cohort::coordinator", %worker, incarnation, pid, "worker_joined");
        self.event(Event::Connected { conn, worker, incarnation, pid }).await;
    }

    async fn closed(&mut self, conn: ConnId, why: String) {
        if let Some((worker, _)) = self.conns.remove(&conn) {
            tracing::info!(target: "cohort::coordinator", %worker, why, "worker_left");
            self.report.left(worker);
        }
        self.event(Event::Disconnected { conn, why }).await;
    }

    async fn rollout_said(&mut self, conn: ConnId, message: RolloutToCoordinator) {
        let event = match message {
            RolloutToCoordinator::Ready(ready) => Event::RolloutReady { conn, version: ready.version, capacity: ready.capacity },
            RolloutToCoordinator::Beat(beat) => Event::Beat { conn, progress: beat.tokens },
            RolloutToCoordinator::LeaseFailed(f) => Event::LeaseFailed {
                conn,
                epoch: f.epoch,
                work: Work { purpose: f.purpose, group: f.group },
                attempt: f.attempt,
                error: f.error,
                retryable: f.retryable,
            },
            RolloutToCoordinator::SwapFailed(f) => Event::SwapFailed { conn, version: f.version, error: f.error },
            RolloutToCoordinator::Partial(partial) => return self.partial_came(conn, partial),
            // Taken apart by the session.
            RolloutToCoordinator::Trajectories(_) => return,
        };
        self.event(event).await;
    }

    /// Parts of a lease that holds, and those that a lost connection has left behind of a group that nobody has, are kept.
    fn partial_came(&mut self, conn: ConnId, partial: PartialGroup) {
        let PartialGroup { epoch, purpose, group, attempt, parts } = partial;
        let work = Work { purpose, group };
        if !self.state.may_go_on(&work, epoch, attempt) {
            return;
        }
        for part in parts {
            if let Err(why) = self.partials.take(conn, work, part) {
                tracing::debug!(target: "cohort::coordinator", why, "part_not_kept");
            }
        }
    }

    async fn batch_came(
        &mut self,
        conn: ConnId,
        batch: Arc<TrajectoryBatch>,
        checked: Result<CheckedBatch, String>,
        ack: Option<Ack>,
    ) {
        let (result, accepted) = match checked {
            Ok(CheckedBatch { summary, accepted }) => (Ok(summary), Some(accepted)),
            Err(why) => (Err(why), None),
        };
        let work = Work { purpose: batch.purpose, group: batch.group };
        let (epoch, attempt) = (batch.epoch, batch.attempt);
        let delivery = self.deliver(ack, Body::Batch(batch, accepted));
        self.event(Event::Trajectories { conn, delivery, epoch, work, attempt, result }).await;
    }

    /// Scores are checked against their batch on another thread; then they come back as an effect.
    fn scores_came(&mut self, conn: ConnId, reply: Arc<ScoreReply>, ack: Option<Ack>) {
        let work = Work { purpose: reply.purpose, group: reply.group };
        let batch = self.kept.get(&work).and_then(|k| k.batch.clone());
        let Some((worker, _)) = self.conns.get(&conn) else { return };
        let (worker, inputs, advantage) = (*worker, self.inputs.clone(), self.args.advantage.clone());
        self.tasks.spawn(async move {
            let checked = tokio::task::spawn_blocking({
                let reply = reply.clone();
                move || {
                    // Without a batch it is none that was asked for: the controller will refuse it.
                    let Some(batch) = batch else { return Ok((unknown_scores(), None)) };
                    let summary = summarize_scores(&batch, &reply, advantage.as_ref())?;
                    let accepted = Accepted::scores(reply, worker, summary.digest.clone())?;
                    Ok::<_, cohort_protocol::CodecError>((summary, Some(accepted)))
                }
            });
            let (summary, accepted) = match checked.await {
                Ok(Ok(checked)) => checked,
                Ok(Err(error)) => (ScoresSummary { failure: Some((error.to_string(), false)), ..unknown_scores() }, None),
                Err(error) => (ScoresSummary { failure: Some((error.to_string(), true)), ..unknown_scores() }, None),
            };
            let (epoch, attempt) = (reply.epoch, reply.attempt);
            let event = Event::Scores { conn, delivery: DeliveryId(0), epoch, work, attempt, summary };
            // A coordinator that is gone drops the acknowledgement: the worker sends again.
            let _ = inputs.send(Input::Event(Box::new(Effect::Scored { event, accepted, ack, reply }))).await;
        });
    }

    async fn learner_said(&mut self, conn: ConnId, message: LearnerToCoordinator) {
        let event = match message {
            LearnerToCoordinator::Ready(version) => Event::LearnerReady { conn, version },
            LearnerToCoordinator::Meeting(place) => Event::Meeting { conn, place },
            LearnerToCoordinator::Loaded(l) => {
                self.report.sha256(l.version, l.sha256);
                Event::Loaded { conn, epoch: l.epoch, version: l.version, digest: l.digest }
            }
            LearnerToCoordinator::Stepped(s) => {
                let mut commit = s.commit;
                if !self.state.commits().contains_key(&commit.step) {
                    let groups = self.state.groups_of(commit.step);
                    self.report.enrich(Instant::now(), &mut self.state, groups, &mut commit);
                }
                Event::Stepped { conn, epoch: s.epoch, commit }
            }
            LearnerToCoordinator::Published(p) => {
                self.report.published(p.publish_us);
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
                let (epoch, what, error, fatal, fault) = (f.epoch, f.what, f.error, f.fatal, f.fault);
                Event::LearnerFailed { conn, epoch, what, error, fatal, fault }
            }
            LearnerToCoordinator::Beat(beat) => Event::Beat { conn, progress: beat.progress },
        };
        self.event(event).await;
    }

    async fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Event(event) => self.event(event).await,
            Effect::Scored { mut event, accepted, ack, reply } => {
                let id = self.deliver(ack, Body::Reply(reply, accepted));
                if let Event::Scores { delivery, .. } = &mut event {
                    *delivery = id;
                }
                self.event(event).await;
            }
            Effect::Restored { work, batch } => self.kept.entry(work).or_default().batch = Some(batch),
            Effect::StepSent { tokens, sampled } => self.report.step_sent(Instant::now(), tokens, sampled),
            Effect::Close { conn, why } => {
                if let Some((_, outbox)) = self.conns.get(&conn) {
                    outbox.close(&why);
                }
            }
        }
    }

    fn deliver(&mut self, ack: Option<Ack>, body: Body) -> DeliveryId {
        self.next_delivery += 1;
        let id = DeliveryId(self.next_delivery);
        self.deliveries.insert(id, Delivery { ack, body });
        id
    }
}

fn unknown_scores() -> ScoresSummary {
    ScoresSummary { digest: String::new(), scores: Vec::new(), parts: Vec::new(), failure: None }
}

/// The words in which two lines of numerics differ.
fn differing(a: &str, b: &str) -> (String, String) {
    let only = |of: &str, other: &str| {
        let words: Vec<&str> = of.split(' ').filter(|word| !other.split(' ').any(|same| same == *word)).collect();
        if words.is_empty() { "nothing else".to_owned() } else { words.join(" ") }
    };
    (only(a, b), only(b, a))
}

#[cfg(test)]
mod tests {
    #[test]
    fn numerics_are_told_apart_by_the_words_that_differ() {
        let differing = |a, b| super::differing(a, b);
        assert_eq!(
            differing("engine=native dtype=bf16 x", "engine=native dtype=f32 x"),
            ("dtype=bf16".into(), "dtype=f32".into())
        );
        assert_eq!(differing("a rollout=int8", "a"), ("rollout=int8".into(), "nothing else".into()));
    }
}
