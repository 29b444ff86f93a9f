//! `cargo xtask gpu-check`: the CUDA build compiles and links, on a machine with or without a GPU.
//!
//! Outside `.ci/run`: it takes some ten minutes of two cores. Nothing of it runs on a device; what is unproven without one
//! is said in the README.
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

pub(crate) fn run() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let script = "set -e; if ! command -v nvcc >/dev/null; then scripts/cuda_toolkit.sh target/cuda; . target/cuda/env; fi; \
                  cargo build --package cohort-cluster --features cuda --target-dir target/cuda-build";
    let status = Command::new("bash").args(["-c", script]).current_dir(root).status()?;
    if !status.success() {
        bail!("the CUDA build failed: {status}");
    }
    println!("the CUDA build compiles and links");
    Ok(())
}
