//! Names of things: one newtype for every number that could be swapped for another.
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Encode, Decode, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// One training run; drawn once when its directory is made.
    RunId(u64)
);
id!(
    /// Incarnation of the coordinator: one more at every start. Messages of an older epoch are refused.
    Epoch(u64)
);
id!(
    /// Weights after that many optimizer steps; 0 is the base model.
    PolicyVersion(u64)
);
id!(
    /// One prompt's group of samples. Training groups count from 0 in the order they are first leased;
    /// evaluation groups live apart (see [`crate::LeasePurpose`]).
    GroupId(u64)
);
id!(
    /// Position of a sample in its group.
    SampleIx(u16)
);
id!(
    /// How many times a lease was given, from 1. Results of a lower attempt are refused and counted.
    AttemptId(u32)
);
id!(
    /// A token of the policy's vocabulary.
    TokenId(u32)
);
id!(
    /// An optimizer step, from 1. Step `n` turns policy version `n - 1` into `n`.
    StepId(u64)
);

impl WorkerId {
    /// Whether it is the learner, or the rank of the learner that speaks for the others.
    #[must_use]
    pub fn is_lead(self) -> bool {
        self.role == Role::Learner && self.index == 0
    }
}

impl PolicyVersion {
    /// The version that the next step makes.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What a worker process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Decides: leases, ledger, aggregation.
    Coordinator,
    /// Generates trajectories.
    Rollout,
    /// Scores them.
    Reward,
    /// Updates the policy.
    Learner,
    /// Keeps a host's processes and its weights: a node agent.
    Node,
    /// Keeps the ledger with others.
    Keeper,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Coordinator => "coordinator",
            Self::Rollout => "rollout",
            Self::Reward => "reward",
            Self::Learner => "learner",
            Self::Node => "node",
            Self::Keeper => "keeper",
        })
    }
}

/// A worker's place in the run, kept over its restarts: `rollout-0`, `learner-0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
pub struct WorkerId {
    /// What it does.
    pub role: Role,
    /// Which of that role, from 0.
    pub index: u16,
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.role, self.index)
    }
}
