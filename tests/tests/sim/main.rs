//! The whole run in virtual time, seeds deciding what goes wrong.
//!
//! Inside is the real code: the controller, the ledger (SQLite and segments, read back after every crash), what turns
//! deliveries into groups, the decisions of rollout, reward and learner workers, the head node's membership of hosts, the
//! placement of workers and the spreading of weights. Fake are compute (tokens, scores and weights are hashes of what they
//! come from) and the network: connections break and lose what is under way, bulk comes late, twice and in any order,
//! hosts are cut off in one direction or both, processes are killed, stopped, slowed down or spin, the coordinator dies
//! around every write. After [`setting::TROUBLED`] nothing comes in the way any more and the run must finish.
//!
//! After every event each of `invariants/` is checked. A seed decides everything: `COHORT_SIM_SEED=17 cargo test -p cohort-tests
//! --test sim one_seed -- --nocapture` repeats a run and shows its last events.
//!
//! Files: `setting` what a seed decides; `agenda` virtual time; `world` the loop; `trouble` what goes wrong; `net` wires;
//! `desk/` the coordinator's process; `workers/`, `hosts`, `ring` the others; `seen` and `trace` what is seen; `invariants/`
//! what must hold; `seeds` and `planted` the tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod agenda;
mod chance;
mod desk;
mod hosts;
mod invariants;
mod net;
mod planted;
mod ring;
mod seeds;
mod seen;
mod setting;
mod trace;
mod trouble;
mod workers;
mod world;
