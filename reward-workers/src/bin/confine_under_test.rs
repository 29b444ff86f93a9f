//! What confines the plug-ins of this package's tests, as `cluster confined` does: cargo builds a binary for the tests of its
//! own package only.
fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    cohort_actors::confine::run(&arguments).into()
}
