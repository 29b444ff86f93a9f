//! Whole runs of the real program: the same bits however they are run and disturbed, and what may change between launches.
//! A tiny random model is trained; what is tried here does not depend on its size.
mod adapters;
mod allocation;
mod asynchronous;
mod bits;
mod certificates;
mod disks;
mod hosts;
mod int8;
mod kills;
mod partial;
mod plugin;
mod ranks;
mod samplers;
mod settings;
mod standby;
mod transport;

use cohort_tests::launch::Bench;

/// A bench in a folder of its own, which goes with the first value.
fn bench() -> anyhow::Result<(tempfile::TempDir, Bench)> {
    let folder = tempfile::tempdir()?;
    let bench = Bench::new(env!("CARGO_BIN_EXE_cluster_under_test"), folder.path())?;
    Ok((folder, bench))
}
