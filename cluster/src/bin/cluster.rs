//! The one program of Cohort: see [`cohort_cluster::cli`].
fn main() -> std::process::ExitCode {
    cohort_cluster::cli::main()
}
