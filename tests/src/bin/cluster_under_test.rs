//! The `cluster` program as this package's tests start it: cargo builds a binary for the tests of its own package only.
fn main() -> std::process::ExitCode {
    cohort_cluster::cli::main()
}
