//! A rollout worker's life: connect, generate, reconnect, leave.
use crate::actor::{RolloutActor, RolloutActorArgs, RolloutMsg};
use crate::episode::Stage;
use crate::state::Event;
use crate::{Agent, Environment, RolloutError, slow};
use cohort_actors::{Dialer, LinkError, LinkOptions, Shutdown, WorkerLink};
use cohort_engine::{EngineHandle, WeightRing};
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::rollout::{CoordinatorToRollout, RolloutToCoordinator};
use ractor::{Actor, ActorRef};
use std::sync::Arc;

/// What a worker is made of.
pub struct RolloutArgs {
    /// Its introduction.
    pub hello: Hello,
    /// The policy.
    pub engine: EngineHandle,
    /// Where weights come from.
    pub ring: Arc<dyn WeightRing>,
    /// Who speaks.
    pub agent: Arc<dyn Agent>,
    /// With whom.
    pub environment: Arc<dyn Environment>,
    /// Leases at once.
    pub capacity: u16,
}

/// Runs until the coordinator drains it, the shutdown is triggered or nothing more can be done.
///
/// Errors: [`RolloutError::Link`] when the coordinator refuses this worker or stays away, [`RolloutError::Actor`] when the
/// worker's actor dies.
pub async fn run_worker(args: RolloutArgs, dialer: Arc<dyn Dialer>, shutdown: Shutdown) -> Result<(), RolloutError> {
    if args.capacity == 0 {
        return Err(RolloutError::Config {
            place: "cluster.capacity",
            problem: "0 leases at once: nothing would be done".into(),
        });
    }
    let delay = slow::delay_of(args.hello.worker.index)?;
    let link = match WorkerLink::connect(dialer, args.hello, LinkOptions::default(), shutdown).await {
        Ok(link) => link,
        Err(LinkError::Shutdown { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let stage = Stage { engine: args.engine, agent: args.agent, environment: args.environment };
    let actor_args = RolloutActorArgs { stage, ring: args.ring, sender: link.sender(), capacity: args.capacity, delay };
    let started = Actor::spawn(None, RolloutActor, actor_args).await;
    let (actor, mut ended) = started.map_err(|e| RolloutError::Actor(format!("it did not start: {e}")))?;
    let outcome = tokio::select! {
        outcome = receive(link, &actor) => outcome,
        // The actor stops after a drain; a panic in it is an error.
        joined = &mut ended => joined.map_err(|e| RolloutError::Actor(format!("it died: {e}"))),
    };
    actor.stop(None);
    outcome
}

type Link = WorkerLink<CoordinatorToRollout, RolloutToCoordinator>;

/// Hands the coordinator's messages to the actor, over as many connections as it takes.
async fn receive(mut link: Link, actor: &ActorRef<RolloutMsg>) -> Result<(), RolloutError> {
    let tell = |event| actor.cast(RolloutMsg::Event(event)).map_err(|e| RolloutError::Actor(format!("it is gone: {e}")));
    tell(Event::Connected(link.epoch(), link.protocol()))?;
    loop {
        let (message, ack) = match link.recv().await {
            Ok(received) => received,
            Err(LinkError::Lost(_)) => match link.reconnect().await {
                Ok(welcome) => {
                    tell(Event::Connected(welcome.epoch, welcome.protocol))?;
                    continue;
                }
                Err(LinkError::Shutdown { .. }) => return Ok(()),
                Err(error) => return Err(error.into()),
            },
            Err(LinkError::Shutdown { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let drained = matches!(message, CoordinatorToRollout::Drain(_));
        tell(match message {
            CoordinatorToRollout::Weights(weights) => Event::Weights(weights),
            CoordinatorToRollout::Lease(lease) => Event::Leased(Box::new(lease), Vec::new()),
            CoordinatorToRollout::Continue(go_on) => Event::Leased(Box::new(go_on.lease), go_on.parts),
            CoordinatorToRollout::Cancel(cancel) => Event::Cancelled(cancel),
            CoordinatorToRollout::Drain(reason) => Event::Drained(reason),
        })?;
        if let Some(ack) = ack {
            ack.accept();
        }
        if drained {
            // The actor leaves once it has stopped its leases; the select above sees it go.
            return std::future::pending().await;
        }
    }
}
