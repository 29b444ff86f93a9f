//! What the coordinator sends to workers: leases, groups to grade, steps, and where each gets its contents.
use super::*;
use cohort_protocol::TurnPart;

impl Core {
    pub(super) fn send_lease(
        &mut self,
        conn: ConnId,
        work: Work,
        attempt: AttemptId,
        version: PolicyVersion,
        cursor: u64,
        samples: u16,
    ) {
        let groups = &self.args.groups;
        let lease = GroupLease {
            epoch: self.state.epoch(),
            purpose: work.purpose,
            group: work.group,
            attempt,
            version,
            follows: self.state.plan().is_asynchronous() && work.is_training(),
            samples,
            item: groups.item(&work, cursor),
            seed: groups.seed(),
            sampling: groups.sampling(&work),
        };
        let parts = self.begun(conn, &lease);
        self.to_rollout(
            conn,
            match parts.is_empty() {
                true => CoordinatorToRollout::Lease(lease),
                false => CoordinatorToRollout::Continue(ContinuedLease { lease, parts }),
            },
        );
    }

    /// What other workers have handed in of a group that a lease for this connection may go on from.
    fn begun(&self, conn: ConnId, lease: &GroupLease) -> Vec<TurnPart> {
        let Some((worker, Outbox::Rollout(lane))) = self.conns.get(&conn) else { return Vec::new() };
        if lane.protocol < PARTIAL_GROUPS {
            return Vec::new();
        }
        let (current, most) = (self.state.version(), self.state.plan().max_staleness);
        let work = Work { purpose: lease.purpose, group: lease.group };
        let parts = self.partials.begun(lease, current, most);
        let tokens: usize = parts.iter().map(TurnPart::len).sum();
        if tokens > 0 {
            self.notice(format!("{worker} goes on with {work} after the {tokens} tokens that were handed in of it"));
        }
        parts
    }

    pub(super) fn send_score(&mut self, conn: ConnId, work: Work, attempt: AttemptId, cursor: u64) {
        let Some((_, Outbox::Reward(lane))) = self.conns.get(&conn) else { return };
        let (lane, inputs, journal) = (lane.clone(), self.inputs.clone(), self.journal.clone());
        let (epoch, seed) = (self.state.epoch(), self.args.groups.seed());
        let item_json = self.args.groups.item(&work, cursor).json;
        let kept = self.kept.get(&work).and_then(|k| k.batch.clone());
        self.tasks.spawn(async move {
            let batch = match kept {
                Some(batch) => batch,
                None => match stored(&journal, work).await {
                    Ok(batch) => {
                        // A coordinator that is gone needs it no more.
                        let _ = inputs.send(Input::Event(Box::new(Effect::Restored { work, batch: batch.clone() }))).await;
                        batch
                    }
                    Err(error) => return fail(&inputs, error).await,
                },
            };
            let samples = samples_to_score(&batch);
            let (purpose, group) = (work.purpose, work.group);
            let request = ScoreRequest { epoch, purpose, group, attempt, item_json, seed, samples };
            if let Err(error) = lane.sender.send_bulk(&CoordinatorToReward::Score(request)).await {
                let close = Effect::Close { conn, why: error.to_string() };
                // As above.
                let _ = inputs.send(Input::Event(Box::new(close))).await;
            }
        });
    }

    /// A checkpoint is verified before the learner is told to load it; one that fails is passed over.
    pub(super) fn send_load(&mut self, conn: ConnId, from: LoadFrom, version: PolicyVersion) {
        let Some((_, Outbox::Learner(lane))) = self.conns.get(&conn) else { return };
        let (lane, inputs, root) = (lane.clone(), self.inputs.clone(), self.args.paths.root().to_owned());
        let epoch = self.state.epoch();
        self.tasks.spawn(async move {
            if let LoadFrom::Checkpoint(dir) = &from {
                let path = root.join(dir);
                let verified = tokio::task::spawn_blocking(move || cohort_learner::checkpoint::verify(&path).map(drop));
                let damage = match verified.await {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(error) => Some(error.to_string()),
                };
                if let Some(why) = damage {
                    let event = Event::CheckpointDamaged { conn, version, why };
                    // A coordinator that is gone needs no news.
                    let _ = inputs.send(Input::Event(Box::new(Effect::Event(event)))).await;
                    return;
                }
            }
            lane.send(CoordinatorToLearner::Load(Load { epoch, from, version }));
        });
    }

    pub(super) fn send_step(&mut self, conn: ConnId, intent: StepIntent, replay: bool, hash: bool) {
        if !replay {
            crash_point(INTENT_COMMITTED);
        }
        let Some((_, Outbox::Learner(lane))) = self.conns.get(&conn) else { return };
        let (lane, inputs, journal) = (lane.clone(), self.inputs.clone(), self.journal.clone());
        let kept: Vec<Kept> =
            intent.groups.iter().map(|g| self.kept.get(&Work::train(*g)).cloned().unwrap_or_default()).collect();
        let (epoch, advantage) = (self.state.epoch(), self.args.advantage.clone());
        self.tasks.spawn(async move {
            let groups = match gather(&journal, &intent, kept, advantage).await {
                Ok(groups) => groups,
                Err(error) => return fail(&inputs, error).await,
            };
            let all = || groups.iter().flat_map(|g| &g.samples);
            let tokens = all().map(|s| s.trajectory.len() as u64).sum();
            let sampled = all().map(|s| s.trajectory.completion_len() as u64).sum();
            // A coordinator that is gone needs no news; the same below.
            let _ = inputs.send(Input::Event(Box::new(Effect::StepSent { tokens, sampled }))).await;
            let request = StepRequest { epoch, intent, groups, replay, hash };
            if let Err(error) = lane.sender.send_bulk(&CoordinatorToLearner::Step(request)).await {
                let close = Effect::Close { conn, why: error.to_string() };
                let _ = inputs.send(Input::Event(Box::new(close))).await;
            }
        });
    }

    pub(super) fn to_rollout(&self, conn: ConnId, message: CoordinatorToRollout) {
        if let Some((_, Outbox::Rollout(lane))) = self.conns.get(&conn) {
            lane.send(message);
        }
    }

    pub(super) fn to_learner(&self, conn: ConnId, message: CoordinatorToLearner) {
        if let Some((_, Outbox::Learner(lane))) = self.conns.get(&conn) {
            lane.send(message);
        }
    }
}

/// A step's groups, in the intent's order: from memory, or read back and checked against the intent's digests.
async fn gather(
    journal: &Journal,
    intent: &StepIntent,
    kept: Vec<Kept>,
    advantage: Arc<dyn cohort_learner::advantage::Advantage>,
) -> Result<Vec<GroupPayload>, String> {
    let mut parts = Vec::with_capacity(kept.len());
    for (group, kept) in intent.groups.iter().zip(kept) {
        parts.push(match kept {
            Kept { batch: Some(batch), reply: Some(reply) } => (batch, reply),
            _ => match journal.read(*group).await {
                Some(Ok((Some(batch), Some(reply)))) => (batch.value, reply.value),
                Some(Ok(_)) => return Err(format!("group {group} of step {} is not in the ledger", intent.step)),
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("the journal has stopped".into()),
            },
        });
    }
    let digests = intent.digests.clone();
    let (ids, step) = (intent.groups.clone(), intent.step);
    let built = tokio::task::spawn_blocking(move || {
        let mut groups = Vec::with_capacity(parts.len());
        for ((group, digest), (batch, reply)) in ids.iter().zip(&digests).zip(&parts) {
            let ready = group_payload(batch, reply, advantage.as_ref()).map_err(|e| e.to_string())?;
            if ready.digest != *digest {
                return Err(format!("group {group} has digest {}, the intent of step {step} names {digest}", ready.digest));
            }
            groups.push(ready.payload);
        }
        Ok(groups)
    });
    built.await.map_err(|e| e.to_string())?
}

async fn stored(journal: &Journal, work: Work) -> Result<Arc<TrajectoryBatch>, String> {
    match journal.read(work.group).await {
        Some(Ok((Some(batch), _))) if work.is_training() => Ok(batch.value),
        Some(Err(error)) => Err(error.to_string()),
        Some(Ok(_)) => Err(format!("{work}: its trajectories are not in the ledger")),
        None => Err("the journal has stopped".into()),
    }
}

async fn fail(inputs: &mpsc::Sender<Input>, error: String) {
    // A coordinator that is gone has failed already.
    let _ = inputs.send(Input::Event(Box::new(Effect::Event(Event::Failed { error })))).await;
}
