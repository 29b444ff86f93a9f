//! The workshop: checks, generated docs, benchmarks. `cargo xtask help` lists them.
mod desk_check;
mod pretrain;
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
    /// Make the embedded model, the order desk's base.
    Pretrain(pretrain::Args),
    /// Train the embedded model in one process and report held-out rewards.
    DeskCheck(desk_check::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Tidy => tidy::run(),
        Command::Pretrain(args) => pretrain::run(&args),
        Command::DeskCheck(args) => desk_check::run(&args),
    }
}
