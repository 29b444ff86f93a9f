//! Workers that do no more than the messages ask for, with habits.
use super::*;

/// Habits of the fake workers.
#[derive(Default)]
pub(super) struct Habits {
    /// So many first batches contradict themselves.
    pub(super) bad_batches: AtomicU32,
    /// So many first scorings fail.
    pub(super) bad_scores: AtomicU32,
    /// Milliseconds per lease.
    pub(super) slow: u64,
    /// So many first leases are lost with their worker's connection, after it has handed in [`half`] of them.
    pub(super) lost: AtomicU32,
    /// What leases came with.
    pub(super) continued: Mutex<Vec<ContinuedLease>>,
}

/// Takes one off a counter that is not at 0.
pub(super) fn once(counter: &AtomicU32) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

/// Two tokens of a lease's sample 1.
pub(super) fn half(lease: &GroupLease) -> PartialGroup {
    let GroupLease { epoch, purpose, group, attempt, version, .. } = *lease;
    let mut part = TurnPart::empty(SampleIx(1), 0, 0);
    part.push(group.0 as u32, (-0.5, -0.25), (version, true));
    part.push(9, (-0.5, -0.25), (version, true));
    PartialGroup { epoch, purpose, group, attempt, parts: vec![part] }
}

pub(super) struct Place {
    pub(super) address: InprocAddress,
    pub(super) habits: Habits,
    pub(super) shutdown: Shutdown,
}

impl Place {
    pub(super) fn new(habits: Habits) -> Arc<Self> {
        Arc::new(Self { address: InprocAddress::new("coordinator", Default::default()), habits, shutdown: Shutdown::new() })
    }

    /// All workers. Each says whether it was drained; one that was not has been told by the shutdown of this place.
    pub(super) fn staff(self: &Arc<Self>) -> JoinSet<bool> {
        let mut staff = JoinSet::new();
        for worker in workers() {
            let place = self.clone();
            staff.spawn(async move {
                let ended = match worker.role {
                    Role::Rollout => place.rollout(worker).await,
                    Role::Reward => place.reward(worker).await,
                    _ => place.learner(worker).await,
                };
                assert!(matches!(ended, Ok(()) | Err(LinkError::Shutdown { .. })), "{worker}: {ended:?}");
                ended.is_ok()
            });
        }
        staff
    }

    /// Waits for the staff of a run that is over; who is still looking for a coordinator is told. Returns how many were
    /// drained.
    pub(super) async fn dismissed(&self, staff: JoinSet<bool>) -> usize {
        self.shutdown.trigger("the test's run is over");
        within(staff.join_all()).await.into_iter().filter(|drained| *drained).count()
    }

    pub(super) async fn link<In: messages::WireMessage, Out: messages::WireMessage>(
        &self,
        worker: WorkerId,
    ) -> Result<WorkerLink<In, Out>, LinkError> {
        let dialer = Arc::new(self.address.dialer());
        WorkerLink::connect(dialer, hello(worker), LinkOptions::default(), self.shutdown.child()).await
    }

    pub(super) async fn rollout(&self, worker: WorkerId) -> Result<(), LinkError> {
        let mut link: WorkerLink<CoordinatorToRollout, RolloutToCoordinator> = self.link(worker).await?;
        let mut version = None;
        let mut jobs = JoinSet::new();
        let ready = |version| RolloutToCoordinator::Ready(Ready { version, capacity: 2 });
        link.sender().send(&ready(version)).await?;
        let mut beat = tokio::time::interval(Duration::from_millis(500));
        loop {
            let message = tokio::select! {
                _ = beat.tick() => {
                    let beat = RolloutBeat { tokens: 0, running: 0 };
                    let _ = link.sender().send(&RolloutToCoordinator::Beat(beat)).await;
                    continue;
                }
                message = link.recv() => message,
            };
            match message {
                Ok((CoordinatorToRollout::Weights(w), _)) => {
                    version = Some(w.version);
                    link.sender().send(&ready(version)).await?;
                }
                Ok((CoordinatorToRollout::Lease(lease), _)) if once(&self.habits.lost) => {
                    link.sender().send(&RolloutToCoordinator::Partial(half(&lease))).await?;
                    // One in a turn of its own that leaves a gap.
                    let mut gap = half(&lease);
                    gap.parts[0].start = 7;
                    link.sender().send(&RolloutToCoordinator::Partial(gap)).await?;
                    link.close("lost");
                    link.reconnect().await?;
                    link.sender().send(&ready(version)).await?;
                }
                Ok((message @ (CoordinatorToRollout::Lease(_) | CoordinatorToRollout::Continue(_)), _)) => {
                    let lease = match message {
                        CoordinatorToRollout::Continue(continued) => {
                            self.habits.continued.lock().unwrap().push(continued.clone());
                            continued.lease
                        }
                        CoordinatorToRollout::Lease(lease) => lease,
                        _ => unreachable!(),
                    };
                    assert_eq!(Some(lease.version), version);
                    let bad = once(&self.habits.bad_batches);
                    let (sender, slow): (LinkSender<_>, _) = (link.sender(), self.habits.slow);
                    jobs.spawn(async move {
                        tokio::time::sleep(Duration::from_millis(slow)).await;
                        let _ = sender.send_bulk(&RolloutToCoordinator::Trajectories(batch(&lease, bad))).await;
                    });
                }
                Ok((CoordinatorToRollout::Drain(_), _)) => return Ok(()),
                Ok(_) => {}
                Err(LinkError::Lost(_)) => {
                    link.reconnect().await?;
                    link.sender().send(&ready(version)).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) async fn reward(&self, worker: WorkerId) -> Result<(), LinkError> {
        let mut link: WorkerLink<CoordinatorToReward, RewardToCoordinator> = self.link(worker).await?;
        link.sender().send(&RewardToCoordinator::Ready(4)).await?;
        let mut jobs = JoinSet::new();
        let mut beat = tokio::time::interval(Duration::from_millis(500));
        loop {
            let message = tokio::select! {
                _ = beat.tick() => {
                    let beat = RewardBeat { progress: 0, running: 0, breakers: vec![("judge".into(), "half-open".into())] };
                    let _ = link.sender().send(&RewardToCoordinator::Beat(beat)).await;
                    continue;
                }
                message = link.recv() => message,
            };
            match message {
                Ok((CoordinatorToReward::Score(request), ack)) => {
                    ack.unwrap().accept();
                    let bad =
                        self.habits.bad_scores.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
                    let sender = link.sender();
                    jobs.spawn(async move {
                        let _ = sender.send_bulk(&RewardToCoordinator::Scored(reply(&request, bad))).await;
                    });
                }
                Ok((CoordinatorToReward::Drain(_), _)) => return Ok(()),
                Err(LinkError::Lost(_)) => {
                    link.reconnect().await?;
                    link.sender().send(&RewardToCoordinator::Ready(4)).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) async fn learner(&self, worker: WorkerId) -> Result<(), LinkError> {
        let mut link: WorkerLink<CoordinatorToLearner, LearnerToCoordinator> = self.link(worker).await?;
        let (mut held, mut before) = (None::<(PolicyVersion, u64)>, None);
        link.sender().send(&LearnerToCoordinator::Ready(None)).await?;
        let mut beat = tokio::time::interval(Duration::from_millis(500));
        loop {
            let message = tokio::select! {
                _ = beat.tick() => {
                    let beat = LearnerBeat { version: None, step: None, progress: 0 };
                    let _ = link.sender().send(&LearnerToCoordinator::Beat(beat)).await;
                    continue;
                }
                message = link.recv() => message,
            };
            let answer = match message {
                Ok((CoordinatorToLearner::Load(load), _)) => {
                    assert_eq!(load.from, LoadFrom::Base, "no checkpoint of these workers can be verified");
                    held = Some((PolicyVersion(0), 77));
                    let (epoch, version) = (load.epoch, load.version);
                    LearnerToCoordinator::Loaded(Loaded { epoch, version, digest: 77, sha256: "0".repeat(64) })
                }
                Ok((CoordinatorToLearner::Step(request), ack)) => {
                    ack.unwrap().accept();
                    // The step just done is answered again: its commit may have been lost with a coordinator.
                    let (version, digest) = [held, before].into_iter().flatten().find(|h| h.0 == request.intent.base).unwrap();
                    (before, held) = (Some((version, digest)), Some((version.next(), stepped(digest, &request))));
                    LearnerToCoordinator::Stepped(Stepped { epoch: request.epoch, commit: commit(&request, digest) })
                }
                Ok((CoordinatorToLearner::Publish(p), _)) => {
                    let (epoch, version, slot, digest) = (p.epoch, p.version, p.slot, held.unwrap().1);
                    LearnerToCoordinator::Published(Published { epoch, version, slot, digest, publish_us: 1 })
                }
                Ok((CoordinatorToLearner::Checkpoint(c), _)) => {
                    let (dir, manifest_sha256) = (format!("checkpoints/step-{}", c.version), "m".into());
                    LearnerToCoordinator::CheckpointSaved(CheckpointSaved {
                        epoch: c.epoch,
                        version: c.version,
                        dir,
                        manifest_sha256,
                    })
                }
                Ok((CoordinatorToLearner::Drain(_), _)) => return Ok(()),
                Ok((CoordinatorToLearner::Meet(_), _)) => panic!("this learner has no followers"),
                Err(LinkError::Lost(_)) => {
                    link.reconnect().await?;
                    LearnerToCoordinator::Ready(held.map(|h| h.0))
                }
                Err(error) => return Err(error),
            };
            let _ = link.sender().send(&answer).await;
        }
    }
}

pub(super) fn batch(lease: &GroupLease, bad: bool) -> TrajectoryBatch {
    let trajectory = |sample: u16| Trajectory {
        group: lease.group,
        sample: SampleIx(sample),
        token_ids: vec![1, 2, 3 + lease.group.0 as u32, u32::from(sample)].into(),
        mask: vec![0, 0, 1, 1],
        logp: vec![0.0, 0.0, -0.5, if bad { f32::NAN } else { -0.25 }].into(),
        logp_sampled: vec![0.0, 0.0, -0.5, -0.25].into(),
        spans: vec![VersionSpan { start: 2, len: 2, version: lease.version, exact: true }],
        temperature: 1.0,
        turns: vec![Turn::text(TurnRole::User, lease.item.json.clone()), Turn::text(TurnRole::Assistant, "so much")],
        finish: FinishReason::Stop,
        generate_us: 3,
        context_json: "{}".into(),
    };
    TrajectoryBatch {
        epoch: lease.epoch,
        purpose: lease.purpose,
        group: lease.group,
        attempt: lease.attempt,
        trajectories: (0..lease.samples).map(trajectory).collect(),
    }
}

pub(super) fn reply(request: &ScoreRequest, bad: bool) -> ScoreReply {
    let outcome = |s: &SampleToScore| {
        let score = f64::from(s.sample.0) / 2.0;
        let scored = Score { score, breakdown: vec![("exact".into(), score)], metadata_json: "{}".into() };
        let outcome = match bad {
            true => ScoreOutcome::Failed { error: "judge: 503".into(), retryable: true },
            false => ScoreOutcome::Scored(scored),
        };
        SampleOutcome { sample: s.sample, outcome }
    };
    ScoreReply {
        epoch: request.epoch,
        purpose: request.purpose,
        group: request.group,
        attempt: request.attempt,
        outcomes: request.samples.iter().map(outcome).collect(),
        score_us: 5,
    }
}

pub(super) fn stepped(base: u64, request: &StepRequest) -> u64 {
    let text = format!("{base}{:?}", request.intent.digests);
    u64::from_le_bytes(blake3::hash(text.as_bytes()).as_bytes()[..8].try_into().unwrap())
}

pub(super) fn commit(request: &StepRequest, base: u64) -> StepCommit {
    let rewards: Vec<f64> = request.groups.iter().flat_map(|g| &g.samples).map(|s| s.score.score).collect();
    let reward = rewards.iter().sum::<f64>() / rewards.len() as f64;
    StepCommit {
        step: request.intent.step,
        version: request.intent.base.next(),
        weights_sha256: if request.hash { "ab".repeat(32) } else { String::new() },
        weights_digest: stepped(base, request),
        metrics: vec![("reward".into(), reward), ("rewards/exact/mean".into(), reward)],
    }
}
