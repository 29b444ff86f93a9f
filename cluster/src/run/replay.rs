//! `replay`: a run's steps taken again from what the ledger holds of them, and their weights compared with the commits.
//!
//! A step is a pure function of its base weights and its intent, so that the consumption an asynchronous run recorded gives
//! its bits again, whoever was slow, late or killed then. Nothing of the run is changed.
use super::wiring::{Wiring, WiringError};
use crate::config::{ConfigError, Inputs, Resolved};
use crate::coordinator::group_payload;
use crate::ledger::{History, LedgerError, Past, RunPaths};
use cohort_engine::HeldRing;
use cohort_learner::jobs::Workshop;
use cohort_learner::state::{Job, Outcome};
use cohort_learner::training::Training;
use cohort_protocol::messages::learner::{Load, LoadFrom, StepRequest};
use cohort_protocol::{Epoch, GroupPayload, PolicyVersion, StepCommit, StepId, StepIntent};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};
use thiserror::Error;

/// Why steps could not be taken again to the same weights.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// The ledger or a segment is missing or damaged.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The run's configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model or the engine.
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// This build or machine computes otherwise.
    #[error("the run was computed with {run:?}, this build and its configuration have {here:?}: replay it with the same build")]
    Numerics {
        /// In the ledger.
        run: String,
        /// Here.
        here: String,
    },
    /// There is no such step.
    #[error("step {wanted} is not committed: {committed} steps are")]
    NoStep {
        /// Asked for.
        wanted: u64,
        /// There are.
        committed: u64,
    },
    /// What the first steps consumed is gone, and no checkpoint stands behind it.
    #[error("step {step} cannot be taken again: {what}, and no checkpoint from there on is left; restore the file from a copy")]
    Trimmed {
        /// The step.
        step: StepId,
        /// What is missing.
        what: String,
    },
    /// What the ledger holds of a group is not what the step consumed.
    #[error("group {group} of step {step} has digest {found}, the step consumed {consumed}: the journal was changed after it")]
    Tampered {
        /// The step.
        step: StepId,
        /// The group.
        group: cohort_protocol::GroupId,
        /// Of what is there.
        found: String,
        /// In the intent.
        consumed: String,
    },
    /// The weights are others.
    #[error(
        "{what} has weights {found}, committed was {committed}: the machine or the build differs from the one that took it, \
         or the run's files were changed"
    )]
    Differs {
        /// "step 3", "the checkpoint of step 4", "the base model".
        what: String,
        /// Made here.
        found: String,
        /// In the commit.
        committed: String,
    },
    /// A step or a load failed.
    #[error("{what}: {error}")]
    Failed {
        /// Which.
        what: String,
        /// Why.
        error: String,
    },
}

/// A step that came out as it was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// The step.
    pub step: StepId,
    /// Groups it consumed.
    pub groups: usize,
    /// Digest of its weights, as committed.
    pub digest: u64,
    /// Their SHA-256, where it was committed.
    pub sha256: String,
}

/// A run that is ready to be taken again.
pub struct Replay {
    history: History,
    past: Past,
    shop: Arc<Workshop>,
    /// The version that it begins with, and why it is not the base model.
    pub begins: (PolicyVersion, Option<String>),
    last: u64,
}

impl Replay {
    /// Opens a run up to `to`, its last committed step if `None`.
    pub fn open(paths: RunPaths, to: Option<u64>) -> Result<Self, ReplayError> {
        let history = History::open(paths.clone())?;
        let (meta, past) = (history.meta()?, history.past()?);
        let config = Arc::new(Resolved::load(&Inputs { files: vec![paths.config()], ..Inputs::default() })?.config);
        let wiring = Wiring::open(config.clone(), meta.run, paths.root())?;
        let here = wiring.numerics();
        if here != meta.numerics {
            return Err(ReplayError::Numerics { run: meta.numerics, here });
        }
        let committed = past.committed();
        let last = to.unwrap_or(committed);
        if last > committed || last == 0 {
            return Err(ReplayError::NoStep { wanted: last.max(1), committed });
        }
        let begins = beginning(&history, &past, paths.root(), last)?;
        let shop = Workshop {
            engine: wiring.learning_engine()?,
            reference: wiring.reference()?,
            ring: Arc::new(HeldRing::new(1)),
            training: Training::try_from(&config.training).map_err(WiringError::from)?,
            model: wiring.files.clone(),
            run_dir: paths.root().to_owned(),
            micro_batches: Arc::new(AtomicU64::new(0)),
            team: None,
            losses: AtomicU32::default(),
        };
        Ok(Self { history, past, shop: Arc::new(shop), begins, last })
    }

    /// Takes the steps, each told to `done` once its weights are those of its commit.
    pub async fn run(&self, done: &mut (dyn FnMut(&Replayed) + Send)) -> Result<Vec<Replayed>, ReplayError> {
        self.load(self.begins.0).await?;
        let mut replayed = Vec::new();
        for (step, commit) in self.past.commits.range(StepId(self.begins.0.0 + 1)..=StepId(self.last)) {
            let made = self.step(*step, commit).await?;
            done(&made);
            replayed.push(made);
        }
        Ok(replayed)
    }

    async fn load(&self, version: PolicyVersion) -> Result<(), ReplayError> {
        let checkpoint = self.past.checkpoints.iter().find(|c| c.version == version && version.0 > 0);
        let what = checkpoint.map_or("the base model".to_owned(), |c| c.dir.clone());
        let from = checkpoint.map_or(LoadFrom::Base, |c| LoadFrom::Checkpoint(c.dir.clone()));
        match self.shop.clone().run(Job::Load(Load { epoch: Epoch(0), from, version })).await {
            Outcome::Loaded { digest, .. } => match self.past.commits.get(&StepId(version.0)) {
                Some(commit) if commit.weights_digest != digest => Err(differs(what, digest, commit.weights_digest)),
                _ => Ok(()),
            },
            Outcome::Failed(failure) => Err(ReplayError::Failed { what, error: failure.error }),
            other => Err(ReplayError::Failed { what, error: format!("it ended as {other:?}") }),
        }
    }

    async fn step(&self, step: StepId, commit: &StepCommit) -> Result<Replayed, ReplayError> {
        let what = format!("step {step}");
        let Some(intent) = self.past.intents.get(&step).cloned() else {
            return Err(ReplayError::Failed { what, error: "its intent is not in the ledger".into() });
        };
        let groups = self.consumed(&intent)?;
        let (count, hash) = (groups.len(), !commit.weights_sha256.is_empty());
        let request = StepRequest { epoch: Epoch(0), intent, groups, replay: true, hash };
        match self.shop.clone().run(Job::Step(request)).await {
            Outcome::Stepped(made) if made.weights_digest != commit.weights_digest => {
                Err(differs(what, made.weights_digest, commit.weights_digest))
            }
            Outcome::Stepped(made) if made.weights_sha256 != commit.weights_sha256 => {
                Err(ReplayError::Differs { what, found: made.weights_sha256, committed: commit.weights_sha256.clone() })
            }
            Outcome::Stepped(made) => {
                Ok(Replayed { step, groups: count, digest: made.weights_digest, sha256: made.weights_sha256 })
            }
            Outcome::Failed(failure) => Err(ReplayError::Failed { what, error: failure.error }),
            other => Err(ReplayError::Failed { what, error: format!("it ended as {other:?}") }),
        }
    }

    /// What a step consumed, each group held against the digest that its intent names.
    fn consumed(&self, intent: &StepIntent) -> Result<Vec<GroupPayload>, ReplayError> {
        let mut groups = Vec::with_capacity(intent.groups.len());
        for (group, digest) in intent.groups.iter().zip(&intent.digests) {
            let (batch, reply) = self.history.group(*group)?;
            let ready = group_payload(&batch, &reply, self.shop.training.advantage.as_ref())
                .map_err(|e| ReplayError::Failed { what: format!("group {group}"), error: e.to_string() })?;
            if ready.digest != *digest {
                let (found, consumed) = (ready.digest, digest.clone());
                return Err(ReplayError::Tampered { step: intent.step, group: *group, found, consumed });
            }
            groups.push(ready.payload);
        }
        Ok(groups)
    }
}

fn differs(what: String, found: u64, committed: u64) -> ReplayError {
    ReplayError::Differs { what, found: format!("{found:016x}"), committed: format!("{committed:016x}") }
}

/// The earliest version from which every step up to `last` has what it consumed: the base model's, or that of a checkpoint
/// that covers what is gone.
fn beginning(
    history: &History,
    past: &Past,
    root: &std::path::Path,
    last: u64,
) -> Result<(PolicyVersion, Option<String>), ReplayError> {
    let mut gone = None;
    for (step, intent) in past.intents.range(..=StepId(last)).rev() {
        for group in &intent.groups {
            if let Some(what) = history.missing(*group)? {
                gone = Some((*step, what));
                break;
            }
        }
        if gone.is_some() {
            break;
        }
    }
    let Some((step, what)) = gone else { return Ok((PolicyVersion(0), None)) };
    let covers = |dir: &PathBuf| dir.join("manifest.json").is_file();
    let behind = past.checkpoints.iter().filter(|c| (step.0..last).contains(&c.version.0) && covers(&root.join(&c.dir)));
    match behind.map(|c| c.version).min() {
        Some(version) => Ok((version, Some(what))),
        None => Err(ReplayError::Trimmed { step, what }),
    }
}
