//! The learner's session with its coordinator: connect, receive, reconnect, beat.
use crate::actor::{LearnerActor, LearnerActorArgs, LearnerMsg};
use crate::collective::Pulse;
use crate::config::TrainingConfig;
use crate::error::LearnerError;
use crate::jobs::Workshop;
use crate::patience::Patience;
use crate::ranks::{self, Ranks, Team, TeamArgs};
use crate::training::Training;
use cohort_actors::transport::Dialer;
use cohort_actors::{AcceptTerms, LinkError, LinkOptions, Shutdown, WorkerLink};
use cohort_engine::{EngineHandle, WeightRing};
use cohort_model::ModelFiles;
use cohort_protocol::Epoch;
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::learner::{CoordinatorToLearner, LearnerToCoordinator};
use ractor::{Actor, ActorRef};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

/// Between two proofs of life.
pub(crate) const BEAT: Duration = Duration::from_secs(1);

/// For a follower's `Hello`.
const HELLO: Duration = Duration::from_secs(5);

/// What a learner worker needs.
#[derive(Debug)]
pub struct LearnerArgs {
    /// Who it is.
    pub hello: Hello,
    /// The policy's engine; in one process shared with rollout workers.
    pub engine: EngineHandle,
    /// The frozen reference's engine with the base weights, needed where the loss has a KL term.
    pub reference: Option<EngineHandle>,
    /// Where rollout workers take weights from.
    pub ring: Arc<dyn WeightRing>,
    /// `[training]`.
    pub training: TrainingConfig,
    /// The base model.
    pub model: ModelFiles,
    /// The run directory; checkpoints go into it.
    pub run_dir: PathBuf,
    /// The learner ranks, of which this is the one that `hello` names; `None` where it is alone.
    pub ranks: Option<Ranks>,
}

/// Serves as learner until the coordinator or `shutdown` says to leave.
///
/// Errors: a config out of range, a coordinator that refuses this worker or cannot be found, an engine that is gone.
pub async fn run_worker(args: LearnerArgs, dialer: Arc<dyn Dialer>, shutdown: Shutdown) -> Result<(), LearnerError> {
    let training = Training::try_from(&args.training)?;
    if training.loss.needs_reference() && args.reference.is_none() {
        return Err(LearnerError::NoReference);
    }
    if let Some(ranks) = args.ranks.clone().filter(|_| args.hello.worker.index > 0) {
        return ranks::run_follower(args, training, ranks, dialer, shutdown).await;
    }
    let micro_batches = Arc::new(AtomicU64::new(0));
    let (team, meeting) = match &args.ranks {
        Some(ranks) => {
            let (team, meeting) = lead(&args, ranks, &training, &micro_batches)?;
            (Some(team), Some(meeting))
        }
        None => (None, None),
    };
    let link = match WorkerLink::connect(dialer, args.hello, LinkOptions::default(), shutdown).await {
        Err(LinkError::Shutdown { .. }) => return Ok(()),
        connected => connected?,
    };
    let workshop = Arc::new(Workshop {
        engine: args.engine,
        reference: args.reference,
        ring: args.ring,
        training,
        model: args.model,
        run_dir: args.run_dir,
        micro_batches,
        team,
        losses: AtomicU32::default(),
    });
    let (exit, exited) = oneshot::channel();
    let actor_args = LearnerActorArgs { workshop, meeting, sender: link.sender(), exit };
    let (actor, running) = Actor::spawn(None, LearnerActor, actor_args).await.map_err(|e| LearnerError::Actor(e.to_string()))?;
    let result = serve(link, &actor, exited).await;
    actor.stop(None);
    // The actor's own end has no result; it was told to stop.
    let _ = running.await;
    result
}

/// Opens the place where followers come to; gives its address too.
fn lead(
    args: &LearnerArgs,
    ranks: &Ranks,
    training: &Training,
    work: &Arc<AtomicU64>,
) -> Result<(Arc<Team>, String), LearnerError> {
    let (listener, address) = ranks.rendezvous.listen().map_err(LearnerError::Actor)?;
    let patience = Patience::new(args.engine.spec().parameters() as u64, training.packing.micro_batch_tokens as u64);
    let terms = AcceptTerms {
        run: args.hello.run,
        // Of this start of the lead: what followers see of it in their logs.
        epoch: Epoch(u64::from(args.hello.incarnation)),
        numerics: args.hello.numerics.clone(),
        corrects: false,
        deadline: HELLO,
        roles: AcceptTerms::FOLLOWERS,
    };
    let team = TeamArgs {
        terms,
        count: ranks.count,
        shards: training.logical_shards,
        partitioned: training.shard_optimizer,
        pulse: Pulse::of(work.clone()),
        patience: Duration::from_secs(patience.micro_batch),
        fabrics: ranks.fabrics.clone(),
    };
    Ok((Team::open(listener, team), address))
}

type Link = WorkerLink<CoordinatorToLearner, LearnerToCoordinator>;

async fn serve(
    mut link: Link,
    actor: &ActorRef<LearnerMsg>,
    mut exited: oneshot::Receiver<Result<(), LearnerError>>,
) -> Result<(), LearnerError> {
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let gone = |_| LearnerError::Actor("it ended without being asked to; its log says why".into());
    actor.cast(LearnerMsg::Connected(link.epoch())).map_err(|e| LearnerError::Actor(e.to_string()))?;
    loop {
        let message = tokio::select! {
            biased;
            result = &mut exited => return result.map_err(gone)?,
            _ = beat.tick() => LearnerMsg::Beat,
            received = link.recv() => match received {
                Ok((request, ack)) => LearnerMsg::Received(request, ack),
                Err(LinkError::Shutdown { .. }) => return Ok(()),
                Err(_) => match link.reconnect().await {
                    Ok(welcome) => LearnerMsg::Connected(welcome.epoch),
                    Err(LinkError::Shutdown { .. }) => return Ok(()),
                    Err(error) => return Err(error.into()),
                },
            },
        };
        actor.cast(message).map_err(|e| LearnerError::Actor(e.to_string()))?;
    }
}
