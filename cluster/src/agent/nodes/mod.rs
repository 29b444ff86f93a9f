//! Other hosts of a run, as the head node's agent sees them.
//!
//! Files: `event` vocabulary; `state` decides (pure), about versions in `weights`, about hosts that were let go in `revocation`; `placement` which worker runs where (pure); `patience` how long none may (pure); `tokens` and `enrolment` how a host gets in;
//! `actor` sessions, hashing, certificates.
mod actor;
pub(crate) mod enrolment;
pub mod event;
pub(crate) mod patience;
pub(crate) mod placement;
mod revocation;
pub mod state;
#[cfg(test)]
mod tests;
pub(crate) mod tokens;
mod weights;

pub(crate) use actor::{Elsewhere, Hosts, HostsArgs, HostsSender, start};
