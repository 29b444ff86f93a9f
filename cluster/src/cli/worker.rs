//! `cluster worker`: one worker process. Hidden: the node agent starts it.
use crate::agent::{WorkerOptions, run_worker};
use crate::run::sampler::SampleWith;
use cohort_protocol::{Role, RunId, WorkerId};
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What it does
    #[arg(long, value_parser = role)]
    role: Role,
    /// Which of that role, from 0
    #[arg(long)]
    index: u16,
    /// Number of the run
    #[arg(long)]
    run: u64,
    /// Its directory
    #[arg(long)]
    run_dir: PathBuf,
    /// Where the coordinator listens
    #[arg(long)]
    coordinator: SocketAddr,
    /// Name of the agent's hand-over socket
    #[arg(long)]
    handover: String,
    /// Name of the agent's gate for weights
    #[arg(long)]
    gate: Option<String>,
    /// Name of this host's keeper's socket
    #[arg(long)]
    keeper: Option<String>,
    /// Numerics of this host's samplers, where they are not the run's
    #[arg(long)]
    sample_with: Option<SampleWith>,
}

fn role(name: &str) -> Result<Role, String> {
    let roles = [Role::Coordinator, Role::Rollout, Role::Reward, Role::Learner];
    roles.into_iter().find(|role| role.to_string() == name).ok_or_else(|| format!("no role {name:?}"))
}

/// Runs the worker; its exit code tells the agent whether to start it again.
pub(super) fn run(args: Args) -> u8 {
    let who = WorkerId { role: args.role, index: args.index };
    let options = WorkerOptions {
        who,
        run: RunId(args.run),
        run_dir: args.run_dir,
        coordinator: args.coordinator,
        handover: args.handover,
        gate: args.gate,
        keeper: args.keeper,
        sample_with: args.sample_with,
    };
    match run_worker(options) {
        Ok(()) => 0,
        Err(failure) => {
            super::report(&format!("{who}: {}", failure.message));
            failure.code
        }
    }
}
