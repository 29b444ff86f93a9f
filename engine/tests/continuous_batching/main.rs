//! Whatever else is in the engine, however little memory it has and whoever goes away: a sequence gets the tokens that it
//! gets alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
mod begun;
mod company;
mod ends;
mod swaps;
mod world;
