//! `cluster confined`: one program of a user, confined. Hidden: a reward worker starts it.
use cohort_actors::confine;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The step, and the policy as JSON
    #[arg(allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the program to its end, or becomes it.
pub(super) fn run(args: &Args) -> u8 {
    confine::run(&args.arguments)
}
