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
//! Files: `spread` who takes what from whom (pure), with `uploads` under way and the `wish` of each host; `manifest` chunks and their hashes; `shelf` which slot holds what;
//! `holder` gives; `taker` takes; `store` a host's ring filling up; `gate` between a host's agent and its workers.
pub(crate) mod gate;
pub mod holder;
pub mod manifest;
pub mod shelf;
pub mod spread;
pub mod store;
pub mod taker;
mod uploads;
mod wish;
