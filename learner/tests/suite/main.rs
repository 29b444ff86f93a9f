//! The learner from outside: objectives against PyTorch, steps on a toy model, checkpoints on a disk, the worker's session.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
mod checkpoint;
mod collective;
mod loom;
mod losses;
mod ranks;
mod step;
mod summing;
mod toy;
mod worker;
