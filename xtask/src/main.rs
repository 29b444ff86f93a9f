//! The workshop: checks, generated docs, benchmarks. `cargo xtask help` lists them.
#![expect(clippy::print_stdout, reason = "a command line's output")]

mod bench;
mod budget;
mod curves;
mod desk_check;
mod docs;
mod gpu_check;
mod pretrain;
mod scale;
mod soak;
mod tidy;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The workshop of Cohort")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check the house: dependency direction, file sizes, where unsafe and cfg(cuda) may stand.
    Tidy,
    /// Write the generated pages: docs/cli.md and docs/config.md.
    Docs,
    /// Compile the CUDA build where nvcc is (or in a toolkit made by scripts/cuda_toolkit.sh).
    GpuCheck,
    /// Compare what groups of tests took with tests/budget.toml.
    Budget(budget::Args),
    /// Try at length what the tests try a little: seeds of the simulation, runs whose processes are killed.
    Soak(soak::Args),
    /// Train with a slow rollout worker, or under kills, and draw the rewards.
    Curves(curves::Args),
    /// Measure controller, tracker of weights and ledger with 10 to 10,000 workers, and draw the curves.
    Scale(scale::Args),
    /// Measure the engine beside this machine's own ceilings.
    Bench(bench::BenchArgs),
    /// Make the embedded model, the order desk's base.
    Pretrain(pretrain::Args),
    /// Train the embedded model in one process and report held-out rewards.
    DeskCheck(desk_check::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Tidy => tidy::run(),
        Command::Docs => docs::run(),
        Command::GpuCheck => gpu_check::run(),
        Command::Budget(args) => budget::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Curves(args) => curves::run(&args),
        Command::Scale(args) => scale::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Pretrain(args) => pretrain::run(&args),
        Command::DeskCheck(args) => desk_check::run(&args),
    }
}
