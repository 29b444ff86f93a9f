//! Whole runs of real processes over real QUIC, disturbed for real, and the figures of `docs/reliability.md`.
//!
//! Every run here has no end of its own: it is disturbed, drained, audited, and then compared, file by file of its last
//! checkpoint, with a run of as many steps that nobody disturbed.
//!
//! `COHORT_TRIALS` sets how often each disturbance is made (a few by default, for the gate; `cargo xtask soak` sets more).
//! `COHORT_FIGURES` names a folder for the figures as JSON.
mod doors;
mod endless;
mod figures;
mod memory;
mod overload;
mod partition;
mod recovery;
mod remote;
mod weather;

use cohort_tests::launch::Bench;

/// A bench in a folder of its own, which goes with the first value.
fn bench() -> anyhow::Result<(tempfile::TempDir, Bench)> {
    let folder = tempfile::tempdir()?;
    let bench = Bench::new(env!("CARGO_BIN_EXE_cluster_under_test"), folder.path())?;
    Ok((folder, bench))
}

/// How often a disturbance is made.
fn trials(in_the_gate: usize) -> usize {
    std::env::var("COHORT_TRIALS").ok().and_then(|n| n.parse().ok()).unwrap_or(in_the_gate)
}
