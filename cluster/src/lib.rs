//! The program: from a configuration to a trained policy. Decides (`controller`), accounts (`ledger`), supervises
//! (`agent`), talks to people (`cli`, `progress`).
//!
//! Files: `allocation/` what a scheduler says; `devices/` which worker computes on which; `config/` files, flags and profiles to typed sections; `cli/` one file a subcommand; `preflight` what a run will
//! need; `progress` what it tells; `controller/` what happens next, pure; `ledger/` what has happened, durable.

#[macro_use]
pub mod planted;

pub mod agent;
pub mod allocation;
pub mod cli;
pub mod config;
pub mod controller;
pub mod coordinator;
pub mod devices;
mod http;
pub mod ledger;
pub mod logging;
pub mod preflight;
pub mod progress;
pub mod run;
