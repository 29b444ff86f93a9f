//! Compiles the CUDA kernels to PTX, in the `cuda` build only.
//!
//! nvcc is looked for in the PATH, then in CUDA_HOME, CUDA_PATH and CUDA_ROOT. `CUDA_COMPUTE_CAP` (90, say) is the oldest GPU
//! that the code is for; without it the GPU of this machine, and without one 7.5, which runs on every GPU that CUDA 13 knows.
use std::path::{Path, PathBuf};
use std::process::Command;

const FOLDERS: [&str; 7] = ["adamw", "attention", "logprob", "rmsnorm", "rope", "swiglu", "tree"];
const HOMES: [&str; 3] = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"];

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    for variable in HOMES.into_iter().chain(["CUDA_COMPUTE_CAP", "PATH"]) {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=src/cuda/reduce.cuh");
    let nvcc = nvcc()?;
    let target = format!("-arch=compute_{}", compute_capability()?);
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    for folder in FOLDERS {
        println!("cargo::rerun-if-changed=src/{folder}");
        let source = format!("src/{folder}/cuda.cu");
        let ptx = out.join(format!("{folder}.ptx"));
        let status = Command::new(&nvcc).args(["-std=c++17", "-O3", "--ptx", &target, &source, "-o"]).arg(&ptx).status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(format!("{} {source}: {status}", nvcc.display())),
            Err(error) => return Err(format!("{} did not start: {error}", nvcc.display())),
        }
    }
    Ok(())
}

fn nvcc() -> Result<PathBuf, String> {
    let works = |path: &Path| Command::new(path).arg("--version").output().is_ok_and(|out| out.status.success());
    let homes = HOMES.into_iter().filter_map(std::env::var_os).map(|home| PathBuf::from(home).join("bin/nvcc"));
    [PathBuf::from("nvcc")].into_iter().chain(homes).find(|path| works(path)).ok_or_else(|| {
        "the `cuda` feature needs nvcc, which is neither in the PATH nor in CUDA_HOME: install the CUDA toolkit, or lay one \
         out with `scripts/cuda_toolkit.sh DIR` and `source DIR/env`"
            .into()
    })
}

/// As nvcc writes it: 90 for 9.0.
fn compute_capability() -> Result<u32, String> {
    if let Ok(wanted) = std::env::var("CUDA_COMPUTE_CAP") {
        let digits = wanted.replace('.', "");
        let read = digits.parse().ok().filter(|cap| (75..1000).contains(cap));
        return read.ok_or_else(|| format!("CUDA_COMPUTE_CAP is {wanted:?}: expected 75 or more, 90 say"));
    }
    let asked = Command::new("nvidia-smi").args(["--query-gpu=compute_cap", "--format=csv,noheader"]).output();
    let text = asked.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
    // The oldest GPU of the machine: newer ones run its code too.
    Ok(text.lines().filter_map(|line| line.trim().replace('.', "").parse().ok()).min().unwrap_or(75).max(75))
}
