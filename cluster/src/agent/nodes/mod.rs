//! Other hosts of a run, as the head node's agent sees them.
//!
//! Files: `state` decides (pure); `placement` which worker runs where (pure); `tokens` and `enrolment` how a host gets in;
//! `actor` sessions, hashing, certificates.
mod actor;
pub(crate) mod enrolment;
pub(crate) mod placement;
pub mod state;
pub(crate) mod tokens;

pub(crate) use actor::{Elsewhere, Hosts, HostsArgs, HostsSender, start};
