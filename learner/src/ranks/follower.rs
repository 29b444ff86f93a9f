//! A follower: finds the lead through the coordinator, takes its state, takes part in its steps.
//!
//! Invariants
//! - **W1** one line to one lead at a time. Whatever fails on it ends it; the follower then comes again and says what its
//!   engine holds, which is a version to the bit or nothing.
//! - **W2** the coordinator is told that it lives, with a counter that stands still when its engine does.
use super::{Ranks, part_of};
use crate::algo::Denominators;
use crate::collective::{Collective, CollectiveError, Exchange, Line, Peer, Pulse, SharedFabric, Stream};
use crate::error::LearnerError;
use crate::patience::{Patience, Stillness};
use crate::step::{self, StepError};
use crate::training::Training;
use crate::worker::{BEAT, LearnerArgs};
use cohort_actors::crash::{FOLLOWER_STEPPED, crash_point};
use cohort_actors::transport::Dialer;
use cohort_actors::{LinkError, LinkOptions, Shutdown, WorkerLink};
use cohort_engine::fabric::Fabrics;
use cohort_engine::{Backend, EngineError, EngineHandle, Partition};
use cohort_model::{Tensor, WeightSet};
use cohort_protocol::PolicyVersion;
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::learner::{CoordinatorToLearner, LearnerBeat, LearnerToCoordinator};
use cohort_protocol::messages::ranks::{BetweenRanks, Holding, RankFabric, RankFailed, RankPart, RankState, RankStep};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

type ToCoordinator = WorkerLink<CoordinatorToLearner, LearnerToCoordinator>;
type ToLead = WorkerLink<BetweenRanks, BetweenRanks>;

/// What a follower works with.
#[derive(Debug)]
struct Follower {
    hello: Hello,
    engine: EngineHandle,
    reference: Option<EngineHandle>,
    training: Training,
    pulse: Pulse,
    patience: Duration,
    fabrics: Option<Arc<dyn Fabrics>>,
    /// Whether the lead has given it something to do.
    busy: AtomicBool,
}

/// Follows until the coordinator or `shutdown` says to leave.
pub(crate) async fn run(
    args: LearnerArgs,
    training: Training,
    ranks: Ranks,
    coordinator: Arc<dyn Dialer>,
    shutdown: Shutdown,
) -> Result<(), LearnerError> {
    let patience = Patience::new(args.engine.spec().parameters() as u64, training.packing.micro_batch_tokens as u64);
    let follower = Arc::new(Follower {
        hello: args.hello.clone(),
        engine: args.engine,
        reference: args.reference,
        training,
        pulse: Pulse::default(),
        patience: Duration::from_secs(patience.micro_batch),
        fabrics: ranks.fabrics.clone(),
        busy: AtomicBool::new(false),
    });
    let mut link: ToCoordinator =
        match WorkerLink::connect(coordinator, args.hello, LinkOptions::default(), shutdown.clone()).await {
            Err(LinkError::Shutdown { .. }) => return Ok(()),
            connected => connected?,
        };
    let mut stillness = Stillness::new(patience.micro_batch);
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut following = Following(None);
    loop {
        tokio::select! {
            biased;
            ended = following.end() => ended?,
            _ = beat.tick() => {
                let progress = stillness.beat(follower.busy.load(Ordering::Relaxed), follower.pulse.count());
                // What it holds is the lead's to know, and the engine that could say it may be at work.
                let beat = LearnerBeat { version: None, step: None, progress };
                // One that is lost is followed by another.
                let _ = link.sender().send(&LearnerToCoordinator::Beat(beat)).await;
            }
            received = link.recv() => match received {
                Ok((CoordinatorToLearner::Meet(address), _)) => {
                    info!(target: "cohort::learner", address, "lead_found");
                    let dialer = ranks.rendezvous.dialer(&address).map_err(LearnerError::Actor)?;
                    following.replace(tokio::spawn(follower.clone().follow(dialer, shutdown.child())));
                }
                Ok((CoordinatorToLearner::Drain(reason), _)) => {
                    info!(target: "cohort::learner", reason, "leaving");
                    return Ok(());
                }
                Ok((other, _)) => warn!(target: "cohort::learner", message = ?std::mem::discriminant(&other), "not_for_a_follower"),
                Err(LinkError::Shutdown { .. }) => return Ok(()),
                Err(_) => match link.reconnect().await {
                    Ok(_) => {}
                    Err(LinkError::Shutdown { .. }) => return Ok(()),
                    Err(error) => return Err(error.into()),
                },
            },
        }
    }
}

/// The task that follows a lead; ends with its owner.
struct Following(Option<JoinHandle<Result<(), LearnerError>>>);

impl Following {
    fn replace(&mut self, task: JoinHandle<Result<(), LearnerError>>) {
        if let Some(older) = self.0.replace(task) {
            older.abort();
        }
    }

    /// Returns when the task ends by itself.
    async fn end(&mut self) -> Result<(), LearnerError> {
        let Some(task) = &mut self.0 else { return std::future::pending().await };
        let ended = task.await;
        self.0 = None;
        ended.map_err(|e| LearnerError::Actor(format!("following the lead: {e}")))?
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

impl Follower {
    /// What the engine holds: it knows best, since work of a membership that is over may have ended late.
    async fn held(&self) -> Result<Option<Holding>, EngineError> {
        let label = self.engine.label().await?;
        Ok(label.map(|label| Holding { version: PolicyVersion(label.version), digest: label.digest }))
    }

    /// Serves a lead over as many connections as it takes. Ends well when the lead is away for good: the coordinator then
    /// names another.
    async fn follow(self: Arc<Self>, dialer: Arc<dyn Dialer>, shutdown: Shutdown) -> Result<(), LearnerError> {
        let mut link: ToLead = match WorkerLink::connect(dialer, self.hello.clone(), LinkOptions::default(), shutdown).await {
            Err(LinkError::Shutdown { .. } | LinkError::GaveUp { .. }) => return Ok(()),
            connected => connected?,
        };
        loop {
            let lead = Line::open("learner-0".into(), link.connection().clone(), &self.pulse, self.patience, false);
            let why = self.clone().serve(Arc::new(lead)).await?;
            self.busy.store(false, Ordering::Relaxed);
            info!(target: "cohort::learner", %why, "line_ended");
            match link.reconnect().await {
                Ok(_) => {}
                Err(LinkError::Shutdown { .. } | LinkError::GaveUp { .. }) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Until the line ends, with why it did. Errors: the engine is gone.
    async fn serve(self: Arc<Self>, lead: Arc<Line>) -> Result<CollectiveError, EngineError> {
        let told = lead.send(&BetweenRanks::Holds(self.held().await?), "joining").await;
        if let Err(why) = told {
            return Ok(why);
        }
        let (mut lead, mut fabric) = (Peer { line: lead, memory: None }, None);
        loop {
            let message = match lead.line.next().await {
                Ok(message) => message,
                Err(why) => return Ok(why),
            };
            self.busy.store(true, Ordering::Relaxed);
            let done = match message {
                BetweenRanks::State(state) => self.clone().take_state(&lead, state).await,
                BetweenRanks::Step(step) => self.clone().take_step(&lead, fabric.clone(), step).await,
                BetweenRanks::Fabric(offer) => {
                    fabric = self.join(&offer);
                    Ok(BetweenRanks::Opened(fabric.is_some()))
                }
                BetweenRanks::Memory(offer) => {
                    lead.memory = Exchange::open(&offer).map(Arc::new);
                    Ok(BetweenRanks::Opened(lead.memory.is_some()))
                }
                BetweenRanks::Keeps(None) => {
                    self.engine.with_backend(part_of).await.map(BetweenRanks::Keeps).map_err(engine_gone)
                }
                BetweenRanks::Keep(part) => self.clone().take_part(&lead, part).await,
                BetweenRanks::HandIn(part) => self.clone().hand_in(&lead, part).await,
                other => Err(StepError::Ranks(lead.line.out_of_step("its orders", &other))),
            };
            self.busy.store(false, Ordering::Relaxed);
            let sent = match done {
                Ok(answer) => lead.line.send(&answer, "its answer").await,
                Err(StepError::Ranks(why)) => {
                    lead.line.close(&why.to_string());
                    return Ok(why);
                }
                Err(StepError::Engine { source: source @ EngineError::Stopped(_), .. }) => return Err(source),
                Err(error) => self.tell(&lead.line, &error).await,
            };
            if let Err(why) = sent {
                return Ok(why);
            }
        }
    }

    /// A place on the lead's fabric, where this rank has one of the kind.
    fn join(&self, offer: &RankFabric) -> Option<SharedFabric> {
        let RankFabric { kind, invitation, rank, world } = offer;
        let fabrics = self.fabrics.as_ref().filter(|fabrics| fabrics.kind() == kind && !invitation.is_empty())?;
        match fabrics.join(invitation, *rank as usize, *world as usize) {
            Ok(fabric) => Some(SharedFabric::new(fabrics.kind(), fabric)),
            Err(why) => {
                warn!(target: "cohort::learner", kind, why, "no_fabric");
                None
            }
        }
    }

    /// A failure of this rank alone: the lead hears of it and ends the line.
    async fn tell(&self, lead: &Line, error: &StepError) -> Result<(), CollectiveError> {
        let failed = RankFailed { error: error.to_string(), fatal: error.is_fatal(), fault: error.fault() };
        lead.send(&BetweenRanks::Failed(failed), "its failure").await?;
        if timeout(self.patience, lead.end()).await.is_err() {
            lead.close("it did not take notice of a failure");
        }
        Ok(())
    }

    async fn take_state(self: Arc<Self>, lead: &Peer, state: RankState) -> Result<BetweenRanks, StepError> {
        let (group, pulse) = (Stream::follower(lead.clone(), 1, 2), self.pulse.clone());
        let taken = self.engine.with_backend(move |engine| receive(engine, group, state.updates, &pulse));
        taken.await.map_err(engine_gone)??;
        let label = self.engine.name(state.holding.version.0).await.map_err(engine_gone)?;
        Ok(BetweenRanks::Holds(Some(Holding { version: state.holding.version, digest: label.digest })))
    }

    /// Keeps from now on the part that the lead gives.
    async fn take_part(self: Arc<Self>, lead: &Peer, part: RankPart) -> Result<BetweenRanks, StepError> {
        let (mut group, pulse, own) = (Stream::follower(lead.clone(), 1, 2), self.pulse.clone(), partition(lead, part)?);
        let taken = self.engine.with_backend(move |engine| {
            let mut parts = Handed { group: &mut group, pulse: &pulse, failed: None };
            let taken = engine.take_partition(own, part.updates, &mut |bucket| parts.pass(bucket, |len| [0..len, 0..0]));
            let taken = parts.end(taken, "taking a part of the optimizer's state");
            // Half of a part is none.
            taken.inspect_err(|_| drop(engine.optimizer_reset()))
        });
        taken.await.map_err(engine_gone)??;
        Ok(BetweenRanks::Keeps(Some(part)))
    }

    /// Gives the lead the part that it keeps.
    async fn hand_in(self: Arc<Self>, lead: &Peer, part: RankPart) -> Result<BetweenRanks, StepError> {
        let (mut group, pulse, own) = (Stream::follower(lead.clone(), 1, 2), self.pulse.clone(), partition(lead, part)?);
        let given = self.engine.with_backend(move |engine| {
            let mut parts = Handed { group: &mut group, pulse: &pulse, failed: None };
            let given = engine.each_moment(own, &mut |bucket| parts.pass(bucket, |len| [0..0, 0..len]));
            parts.end(given, "handing in a part of the optimizer's state")
        });
        given.await.map_err(engine_gone)??;
        Ok(BetweenRanks::Keeps(Some(part)))
    }

    async fn take_step(
        self: Arc<Self>,
        lead: &Peer,
        fabric: Option<SharedFabric>,
        order: RankStep,
    ) -> Result<BetweenRanks, StepError> {
        let base = order.intent.base;
        let held = self.held().await.map_err(engine_gone)?;
        if held.map(|held| held.version) != Some(base) {
            let why = format!("it asks for a step from version {base}, this rank holds {held:?}");
            return Err(CollectiveError::OutOfStep { rank: lead.line.peer().to_owned(), during: "its orders", why }.into());
        }
        let RankStep { intent, shards, groups, sequences, tokens, rank, world } = order;
        let shards = shards.0 as usize..shards.1 as usize;
        let plan = step::plan_part(&self.training, &intent, shards, &groups, Denominators { sequences, tokens })?;
        let plan = Arc::new(plan);
        let logp_ref = match &self.reference {
            Some(reference) => {
                let (plan, pulse) = (plan.clone(), self.pulse.clone());
                let logp = reference
                    .with_backend(move |backend: &mut dyn Backend| step::reference_logp(backend, &plan, &mut || pulse.beat()));
                Some(logp.await.map_err(engine_gone)??)
            }
            None => None,
        };
        let mut group = Stream::follower(lead.clone(), rank as usize, world as usize).on(fabric);
        let (follower, version) = (self.clone(), base.next());
        let stepped = self.engine.advance(version.0, move |engine| {
            let mut watch = |_, _| follower.pulse.beat();
            let logp_ref = logp_ref.as_deref();
            step::take(engine, &follower.training, &intent, &plan, logp_ref, &mut group, &mut watch)
        });
        match stepped.await.map_err(engine_gone)? {
            Ok((_, label)) => {
                crash_point(FOLLOWER_STEPPED);
                Ok(BetweenRanks::Stepped(Holding { version, digest: label.digest }))
            }
            Err(failure) => Err(failure.error),
        }
    }
}

fn engine_gone(source: EngineError) -> StepError {
    StepError::Engine { during: "a rank's work", source }
}

/// A place among ranks that the lead may name.
fn partition(lead: &Peer, part: RankPart) -> Result<Partition, StepError> {
    let named = Partition::new(part.rank as usize, part.world as usize);
    named.ok_or_else(|| lead.line.out_of_step("its orders", &BetweenRanks::Keep(part)).into())
}

/// A part of the optimizer's state between this rank and the lead.
struct Handed<'a> {
    group: &'a mut Stream,
    pulse: &'a Pulse,
    failed: Option<CollectiveError>,
}

impl Handed<'_> {
    /// Values from who has them, `parts`, to the other.
    fn pass(&mut self, bucket: &mut [f32], parts: impl Fn(usize) -> [Range<usize>; 2]) -> ControlFlow<()> {
        self.pulse.beat();
        let parts = parts(bucket.len());
        match self.group.all_gather(bucket, &parts) {
            Ok(()) => ControlFlow::Continue(()),
            Err(why) => {
                self.failed = Some(why);
                ControlFlow::Break(())
            }
        }
    }

    fn end(self, done: Result<(), EngineError>, during: &'static str) -> Result<(), StepError> {
        done.map_err(|source| StepError::Engine { during, source })?;
        self.failed.map_or(Ok(()), |why| Err(why.into()))
    }
}

/// Takes weights and, where there were updates, moments as the lead sends them.
fn receive(engine: &mut dyn Backend, mut group: Stream, updates: u64, pulse: &Pulse) -> Result<(), StepError> {
    let failed = |source| StepError::Engine { during: "taking state", source };
    let mut tensors = engine.tensors().map_err(failed)?;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut set = || {
        let mut set = WeightSet::default();
        for tensor in &tensors {
            let mut data = vec![0.0; tensor.shape.iter().product()];
            group.broadcast(&mut data)?;
            pulse.beat();
            set.0.insert(tensor.name.clone(), Tensor { shape: tensor.shape.clone(), data });
        }
        Ok::<_, CollectiveError>(set)
    };
    engine.zero_grad();
    engine.import(&set()?).map_err(failed)?;
    if updates == 0 {
        return engine.optimizer_reset().map_err(failed);
    }
    let (first, second) = (set()?, set()?);
    engine.optimizer_import(&first, &second, updates).map_err(failed)
}
