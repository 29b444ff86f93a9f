//! What the coordinator of a run is started with: the plan, and where leases get their contents.
use super::wiring::{Wiring, WiringError};
use crate::config::Config;
use crate::controller::{Deadlines, EvaluationPlan, OnFailure, Plan, Standing, Work};
use crate::coordinator::{CoordinatorArgs, GroupSource, Replacer};
use crate::ledger::RunPaths;
use crate::progress::ProgressSink;
use cohort_actors::parent;
use cohort_learner::training::Training;
use cohort_protocol::{GroupId, LeasePurpose, Role, SampledItem, SamplingParams, WorkerId};
use cohort_rollout::OtherNumerics;
use cohort_rollout::dataset::Dataset;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Slots of the weight ring: one being read, one being written, one spare for a worker that is slow to swap.
pub const RING_SLOTS: u32 = 3;
/// Answers with a failure before a group counts as impossible.
const MAX_FAILURES: u32 = 3;

/// What differs between the two kinds of run.
pub struct Surroundings {
    /// Rollout workers and learner share one engine (in-process).
    pub shared_engine: bool,
    /// Who wants to know.
    pub progress: Arc<dyn ProgressSink>,
    /// Who replaces hung workers.
    pub replacer: Arc<dyn Replacer>,
    /// What the agent says.
    pub standing: watch::Receiver<Standing>,
    /// Socket of this host's keeper, where several hosts keep the ledger.
    pub keeper: Option<String>,
    /// When the launch began.
    pub begun: Instant,
}

/// The coordinator's arguments of a wired run.
pub fn coordinator_args(wiring: &Wiring, paths: &RunPaths, around: Surroundings) -> Result<CoordinatorArgs, WiringError> {
    let config = &wiring.config;
    let training = Training::try_from(&config.training)?;
    let data = wiring.dataset()?;
    Ok(CoordinatorArgs {
        paths: paths.clone(),
        keeper: around.keeper,
        plan: plan(config, data.as_ref(), around.shared_engine),
        workers: workers(config),
        numerics: wiring.numerics(),
        corrects: config.rollout.other_numerics == OtherNumerics::Correct,
        groups: Arc::new(Rows { data, sampling: config.agent.sampling(), seed: config.training.seed }),
        advantage: training.advantage,
        progress: around.progress,
        replacer: around.replacer,
        standing: around.standing,
        incarnation: parent::incarnation()?,
        begun: around.begun,
    })
}

/// Every worker that belongs to a run of this configuration.
#[must_use]
pub fn workers(config: &Config) -> Vec<WorkerId> {
    let cluster = &config.cluster;
    let counts = [(Role::Learner, cluster.learner.get()), (Role::Reward, cluster.reward), (Role::Rollout, cluster.rollout)];
    counts.into_iter().flat_map(|(role, n)| (0..n).map(move |index| WorkerId { role, index })).collect()
}

fn plan(config: &Config, data: &dyn Dataset, shared_engine: bool) -> Plan {
    let (training, eval) = (&config.training, &config.training.eval);
    let prompts = match u64::from(eval.prompts) {
        0 => data.heldout_len(),
        some => some.min(data.heldout_len()),
    };
    Plan {
        steps: training.steps,
        groups_per_step: training.groups_per_step,
        group_size: training.group_size,
        max_staleness: training.max_staleness,
        rollout_workers: config.cluster.rollout,
        shared_engine,
        slots: RING_SLOTS,
        evaluation: (prompts > 0).then_some(EvaluationPlan {
            every: eval.every,
            prompts,
            samples: eval.samples,
            greedy: eval.greedy,
        }),
        checkpoint_every: training.checkpoint.every,
        replay_at_most: Some(Duration::from_secs(training.checkpoint.replay_s)).filter(|most| !most.is_zero()),
        on_failure: if training.max_staleness > 0 { OnFailure::Drop } else { OnFailure::Stop },
        max_failures: MAX_FAILURES,
        deadlines: Deadlines {
            full_disk: Duration::from_secs(config.cluster.full_disk_patience_s.into()),
            ..Deadlines::default()
        },
    }
}

/// Leases filled from a data set.
struct Rows {
    data: Arc<dyn Dataset>,
    sampling: SamplingParams,
    seed: u64,
}

impl GroupSource for Rows {
    fn item(&self, work: &Work, cursor: u64) -> SampledItem {
        match work.purpose {
            LeasePurpose::Train => self.data.train(GroupId(cursor)),
            LeasePurpose::Eval { .. } => self.data.heldout(cursor),
        }
    }

    fn sampling(&self, work: &Work) -> SamplingParams {
        let greedy = matches!(work.purpose, LeasePurpose::Eval { greedy: true, .. });
        SamplingParams { greedy, ..self.sampling }
    }

    fn seed(&self) -> u64 {
        self.seed
    }
}
