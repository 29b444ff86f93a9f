//! Who restarts what, and when that stops helping.
//!
//! | child fails | one-for-one | one-for-all | rest-for-one |
//! |---|---|---|---|
//! | restarted | it | every child | it and those added after it |
//! | restart budget | its own | one for all | one for all |
//! | lost | what it had in memory; leases and unacknowledged batches are given again | the same, of each | the same, of each |
//!
//! Used by the actor tree inside a process (`actor`) and by the node agent for its child processes (`process`); both
//! carry out the commands of one pure state machine (`state`).
pub mod actor;
#[cfg(test)]
mod model;
mod oom;
pub mod process;
pub mod state;

pub use state::{ChildId, Command, Escalation, Event, Exit, Restart, Strategy, SupervisionPolicy, SupervisionState};
