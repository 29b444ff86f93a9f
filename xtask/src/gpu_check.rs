//! `cargo xtask gpu-check`: the CUDA build compiles and links, and what of it can be tested is, on a machine with or
//! without a GPU.
//!
//! Outside `.ci/run`: it takes some twenty minutes of two cores, most of them for candle's own kernels. Tests that need a GPU say SKIPPED without one; with
//! COHORT_REQUIRE_GPU=1 that is a failure. What stays unproven is said in docs/gpu.md.
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

/// nvcc of this machine, or a toolkit of our own.
const TOOLKIT: &str = "set -e; if ! command -v nvcc >/dev/null; then scripts/cuda_toolkit.sh target/cuda; . target/cuda/env; fi";

/// What is done, and how.
const STEPS: [(&str, &str); 4] = [
    ("the CUDA build compiles and links", "build --package cohort-cluster --package xtask"),
    (
        "the kernels agree with their definitions, on the host and on a GPU where there is one",
        "test --package cohort-kernels --lib cuda",
    ),
    (
        "the candle engine agrees with itself in both forms, and on a GPU where there is one",
        "test --package cohort-engine --lib candle",
    ),
    (
        "NCCL moves the sums of one rank, and is aborted where another does not come, on a GPU where there is one",
        "test --package cohort-engine --lib nccl",
    ),
];

pub(crate) fn run() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (what, command) in STEPS {
        let script = format!("{TOOLKIT}; cargo {command} --features cuda --target-dir target/cuda-build");
        let status = Command::new("bash").args(["-c", &script]).current_dir(&root).status()?;
        if !status.success() {
            bail!("failed ({status}): {what}");
        }
        println!("checked: {what}");
    }
    Ok(())
}
