//! One episode: an agent speaks in an environment until it is over; what comes out is a trajectory.
use crate::environments::Environment;
use crate::scene::{Scene, Staging, TokenHook};
use crate::tape::Tapes;
use crate::transcript::Ending;
use crate::{Agent, RolloutError, draw};
use cohort_engine::{DrawKey, EngineError, EngineHandle};
use cohort_protocol::{FinishReason, GroupLease, LeasePurpose, SampleIx, Trajectory, Turn, TurnRole};
use std::sync::Arc;
use std::time::Instant;

/// Everything that generates, shared by all leases of a worker.
#[derive(Clone)]
pub struct Stage {
    /// The policy.
    pub engine: EngineHandle,
    /// Who speaks.
    pub agent: Arc<dyn Agent>,
    /// With whom.
    pub environment: Arc<dyn Environment>,
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage").field("engine", &self.engine.numerics()).finish_non_exhaustive()
    }
}

/// The key of a lease's draws: equal groups of two purposes or evaluation rounds differ.
#[must_use]
pub fn lease_seed(lease: &GroupLease) -> u64 {
    match lease.purpose {
        LeasePurpose::Train => lease.seed,
        LeasePurpose::Eval { step, greedy } => draw::hash(&[lease.seed, step, u64::from(greedy), 0x6576_616c]),
    }
}

impl Stage {
    /// Whether an episode can be played again from what the policy said in it.
    #[must_use]
    pub fn replays(&self) -> bool {
        self.environment.replays() && self.agent.replays()
    }

    /// Generates one sample of a lease.
    pub async fn run(&self, lease: &GroupLease, sample: SampleIx, hook: Option<TokenHook>) -> Result<Trajectory, RolloutError> {
        self.run_taped(lease, sample, hook, None).await
    }

    /// As [`Self::run`]. What the policy says goes onto the tape, after what is on it already.
    pub async fn run_taped(
        &self,
        lease: &GroupLease,
        sample: SampleIx,
        hook: Option<TokenHook>,
        tape: Option<Arc<Tapes>>,
    ) -> Result<Trajectory, RolloutError> {
        let started = Instant::now();
        let key = DrawKey { seed: lease_seed(lease), group: lease.group.0, sample: sample.0 };
        let episode = self.environment.reset(&lease.item, key).await?;
        let staging = Staging {
            format: self.agent.format(),
            session: self.engine.session(),
            sampling: lease.sampling,
            key,
            stop: self.agent.stop(),
            grammar: self.agent.grammar(),
            hook,
            tape,
            max_turns: self.environment.max_turns(),
        };
        let mut opening = episode.opening();
        if let Some(prompt) = self.agent.system_prompt()
            && !opening.iter().any(|turn| turn.role == TurnRole::System)
        {
            opening.insert(0, Turn::text(TurnRole::System, prompt));
        }
        let mut scene = Scene::new(staging, episode, opening);
        let finish = play(self.agent.as_ref(), &mut scene).await.map_err(|error| match error {
            // What the engine refuses for its contents comes from the row.
            RolloutError::Engine(EngineError::Input(problem)) => RolloutError::Item { row: lease.item.row, problem },
            other => other,
        })?;
        let context = scene.episode.context(scene.turns(), finish);
        let temperature = scene.temperature();
        scene.transcript.finish(Ending {
            group: lease.group,
            sample,
            temperature,
            finish,
            generate_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            context_json: serde_json::Value::Object(context).to_string(),
        })
    }
}

async fn play(agent: &dyn Agent, scene: &mut Scene<'_>) -> Result<FinishReason, RolloutError> {
    loop {
        let ended = agent.act(scene).await?;
        let Some(turn) = scene.last_turn().map(|turn| turn.clone()) else {
            return Err(RolloutError::Episode("the agent ended its turn without speaking".into()));
        };
        if let Some(finish) = ended {
            return Ok(finish);
        }
        let observed = scene.episode.step(&turn).await?;
        if let Some(turn) = scene.last_turn() {
            turn.reward = observed.reward;
        }
        scene.show(observed.turns);
        if observed.done {
            return Ok(FinishReason::Stop);
        }
    }
}
