//! Graders: what a trajectory is worth. A reward worker receives whole groups, grades every sample with each configured
//! part, combines the parts into one score and answers the coordinator.
//!
//! Invariants
//! - **R1** every request is answered with exactly one outcome a sample, in sample order.
//! - **R2** a grader that cannot be reached, answers nonsense or gives a non-finite number is a failure that names it;
//!   nothing but a grader's own finite answer ever becomes a score.
//! - **R3** user code runs only in a child process with a deadline, a memory cap and a restart limit; its `print`
//!   cannot touch the protocol.
//! - **R4** rule rewards are pure functions of (item, turns, context, seed, group, sample).
//!
//! Files: `reward` the trait; `config` the `[rewards]` section; `registry` types by name; `rewards/` one file a type;
//! `exchange` the JSON that outside graders read and answer; `guard` deadline, retry and breaker around them; `state` what
//! the worker decides, `actor` what it does; `scaffold` and `conformance` for people who write plug-ins.
mod actor;
mod config;
mod conformance;
mod error;
mod exchange;
mod guard;
mod registry;
mod reward;
pub mod rewards;
pub mod scaffold;
pub mod state;
mod text;

pub use actor::{RewardArgs, run_worker};
pub use config::{Combine, PartConfig, RewardsConfig};
pub use conformance::{Check, Conformance, conformance};
pub use error::RewardError;
pub use registry::{Registry, RewardType};
pub use reward::{Grade, Reward, Rule, RuleReward, SampleInput, ScoreInput, failed, outcome};
pub use text::Scope;
