//! `cluster version`.
use super::{CliError, Exit, json_line};
use serde::Serialize;
use std::io::Write;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print as one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Version {
    version: &'static str,
    protocol: u16,
    kernel_path: &'static str,
    cuda: bool,
    os: &'static str,
    arch: &'static str,
    optimized: bool,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        protocol: cohort_protocol::version::PROTOCOL,
        kernel_path: cohort_kernels::Path::detect().name(),
        cuda: cohort_engine::HAS_CUDA,
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
        optimized: !cfg!(debug_assertions),
    };
    if args.json {
        json_line(out, &version)?;
    } else {
        let build = if version.optimized { "release" } else { "debug" };
        let device = if version.cuda { "CPU and CUDA" } else { "CPU" };
        writeln!(out, "cluster {} ({build} build, {device}, {} {})", version.version, version.os, version.arch)?;
        writeln!(out, "kernels {}, protocol {}", version.kernel_path, version.protocol)?;
    }
    Ok(Exit::Success)
}
