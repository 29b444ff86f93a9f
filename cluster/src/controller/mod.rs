//! What the run does next. Pure: `state` takes events and gives commands, so that the whole of it runs in a simulation
//! with seeds; the coordinator moves messages and bytes around it.
//!
//! Files, one idea each: `plan` what is wanted; `event` what is heard, `command` what is ordered; `state` the loop; `wave` groups under way, `waves` one after the other;
//! `membership` who is there, `roster` and `watch` in which order they are looked for, `agenda` the same for groups; `weights` who has which; `leases` who generates; `scoring` who scores; `steps` what the learner does;
//! `stream` how an asynchronous run takes groups; `evaluation` held-out rounds; `ring` weight slots; `staleness` how old data
//! may be; `room` what a full disk means; `accounts` what is counted for reports.

pub mod accounts;
mod agenda;
pub mod command;
pub mod evaluation;
pub mod event;
pub mod leases;
pub mod membership;
pub mod plan;
pub mod ring;
pub mod room;
mod roster;
pub mod scoring;
pub mod staleness;
pub mod state;
pub mod steps;
pub mod stream;
mod watch;
pub mod wave;
mod waves;
pub mod weights;

pub use command::{Command, Fact, Outcome};
pub use event::{ConnId, DeliveryId, Event, RecordId, Refused, ScoresSummary, TrajectoriesSummary, Work};
pub use plan::{Deadlines, EvaluationPlan, OnFailure, Plan, Standing};
pub use state::ControllerState;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod troubles;
