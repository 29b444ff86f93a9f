//! The accounts of a run: what was leased, delivered, decided and consumed, durable before anything is done with it.
//!
//! Files: `schema` tables; `chain` rows that cannot vanish unseen; `segments` deliveries byte for byte; `entry` facts;
//! `rows` facts as rows; `replica/` the same ledger on several hosts; `store` the writing end; `reader` the
//! coordinator's reading end; `accounts` what it needs of either; `recover` the past of a run; `history` the same for readers; `audit` the proof; `place` directory and
//! lock; `error`.

pub mod accounts;
pub mod audit;
pub mod chain;
pub mod entry;
pub mod error;
pub mod history;
pub mod place;
pub mod reader;
pub mod recover;
pub mod replica;
mod rows;
pub mod schema;
pub mod segments;
pub mod store;

pub use accounts::Accounts;
pub use audit::{AuditReport, audit};
pub use entry::{Accepted, Entry};
pub use error::LedgerError;
pub use history::History;
pub use place::{RunLock, RunPaths};
pub use reader::Reader;
pub use recover::{Past, PastCheckpoint, PastGroup};
pub use store::{Ledger, RunMeta};

#[cfg(test)]
mod tests;
