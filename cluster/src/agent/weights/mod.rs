//! Weights between hosts: from the head node's ring into the rings of other hosts, chunk by chunk, each host giving on what
//! it has.
//!
//! ```text
//! learner ──► ring of the head node ──holder──► taker ──► ring of host 1 ──gate──► its workers
//!                                     │            ▲           │
//!                                     └──► host 2 ◄┴── holder ─┘
//! ```
//!
//! Invariants
//! - **W1** a chunk is written down only if it has the hash that the manifest gives; who sent it does not matter.
//! - **W2** a worker reads a slot only while it is complete and kept for it; what it reads has the digest that the
//!   coordinator named.
//! - **W3** nothing waits for ever: a chunk has a deadline, a worker's request another.
//!
//! A chunk travels whole, or as what changed since a version that the taker has: which of the two is between the giver and the
//! taker alone, chunk by chunk ([ADR 15](../../../../docs/adr/0015-weights-as-deltas.md)).
//!
//! Files: `spread` who takes what from whom (pure); `manifest` chunks and their hashes; `delta` a chunk as
//! what changed, `deltas` those that are kept; `shelf` which slot holds what; `holder` gives; `taker` takes, `place` puts a chunk where it belongs; `store` a host's
//! ring filling up; `tally` what travelled; `gate` between a host's agent and its workers.
pub mod delta;
mod deltas;
pub(crate) mod gate;
pub mod holder;
pub mod manifest;
pub mod place;
pub mod shelf;
pub mod spread;
pub mod store;
pub mod taker;
pub mod tally;
#[cfg(test)]
mod tests;
