//! `cluster launch`: from a configuration to a trained policy.
use super::overrides::ConfigArgs;
use super::progress::Display;
use super::{CliError, Exit, json_line, summary, together};
use crate::agent::Invites;
use crate::allocation::Allocation;
use crate::config::{ConfigError, Resolved};
use crate::ledger::{LedgerError, RunPaths};
use crate::preflight::{Memory, Need};
use crate::run::{self, LaunchOptions};
use cohort_model::ModelFiles;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where the run is written [default: a new folder in cluster.run_root]
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    run_dir: Option<PathBuf>,
    /// Go on with a run that was stopped; its own configuration is used, flags and --set on top
    #[arg(long, value_name = "RUN", conflicts_with = "files")]
    resume: Option<PathBuf>,
    /// Throw away what the run directory holds
    #[arg(long, conflicts_with = "resume", requires = "run_dir")]
    clean: bool,
    /// Where the hosts of an allocation meet: a folder that all of them see [default: the run directory]
    #[arg(long, value_name = "DIR")]
    meet: Option<PathBuf>,
    /// Take no notice of SLURM_* and of RANK, WORLD_SIZE, MASTER_ADDR: launch without the others of the allocation
    #[arg(long)]
    alone: bool,
    /// Make the run and begin nothing: `--resume` begins it, or `cluster keep` on every host of cluster.standby
    #[arg(long, conflicts_with_all = ["resume", "dry_run"], requires = "run_dir")]
    prepare: bool,
    /// Name of the socket of this host's keeper
    #[arg(long, hide = true, requires = "resume")]
    keeper_socket: Option<String>,
    /// Number of this host's keeper
    #[arg(long, hide = true, requires = "keeper_socket")]
    keeper_number: Option<u64>,
    /// Only check, and print the resolved configuration with each value's origin
    #[arg(long)]
    dry_run: bool,
    /// Print the report as one line of JSON, the last on stdout; progress goes to stderr
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    let allocation = together::allocation(args.alone)?;
    let resolved = resolve(&args, allocation.as_ref())?;
    if args.dry_run {
        return dry_run(&args, &resolved, out);
    }
    if args.prepare {
        let options = LaunchOptions { run_dir: args.run_dir, clean: args.clean, ..LaunchOptions::default() };
        let path = run::prepare(&resolved, &options)?;
        match args.json {
            true => json_line(out, &json!({ "run_dir": path }))?,
            false => writeln!(out, "{}", path.display())?,
        }
        return Ok(Exit::Success);
    }
    let Some(allocation) = allocation else { return start(args, &resolved, None, out) };
    let folder = together::folder(args.meet.as_ref(), args.run_dir.as_ref().or(args.resume.as_ref()))?;
    if !allocation.leads() {
        return together::take_part(&allocation, &folder, &resolved, out);
    }
    let invites = together::invites(&allocation, &folder, &resolved)?;
    start(args, &resolved, Some((allocation, invites)), out)
}

/// The configuration: of the files, or of the run that is resumed.
fn resolve(args: &Args, allocation: Option<&Allocation>) -> Result<Resolved, CliError> {
    let mut config = args.config.clone();
    if let Some(run) = &args.resume {
        let file = RunPaths::new(run).config();
        if !file.is_file() {
            return Err(LedgerError::Missing { path: run.clone() }.into());
        }
        config.files = vec![file];
    }
    Ok(config.resolve_over(allocation.map(together::settings).unwrap_or_default())?)
}

/// Valid TOML: the configuration, then the memory preflight as comments.
fn dry_run(args: &Args, resolved: &Resolved, out: &mut dyn Write) -> Result<Exit, CliError> {
    let memory = memory(resolved)?;
    if args.json {
        let report = json!({ "config": resolved.config, "memory": memory, "fits": memory.fits() });
        json_line(out, &report)?;
    } else {
        out.write_all(resolved.to_toml()?.as_bytes())?;
        writeln!(out, "\n# memory: {}", memory.line())?;
        if !memory.fits() {
            writeln!(out, "# it does not fit: {}", memory.remedy())?;
        }
    }
    Ok(if memory.fits() { Exit::Success } else { Exit::Negative })
}

fn memory(resolved: &Resolved) -> Result<Memory, CliError> {
    let model = &resolved.config.model.path;
    let files = ModelFiles::open(model).map_err(|error| CliError {
        exit: Exit::Model,
        message: ConfigError::to_string(&resolved.error("model.path", error.to_string())),
    })?;
    Ok(Memory::check(Need::of_run(&files.spec, &resolved.config)))
}

fn start(
    args: Args,
    resolved: &Resolved,
    allocation: Option<(Allocation, Invites)>,
    out: &mut dyn Write,
) -> Result<Exit, CliError> {
    let memory = memory(resolved)?;
    if !memory.fits() {
        let why = format!("{}; {}", memory.line(), memory.remedy());
        return Err(CliError::new(Exit::Compute, format!("the run does not fit into memory: {why}")));
    }
    let (recognised, invites) = allocation.map(|(allocation, invites)| (allocation.recognised, invites)).unzip();
    let recognised = recognised.unwrap_or_default();
    let options = LaunchOptions {
        run_dir: args.run_dir,
        resume: args.resume,
        clean: args.clean,
        invites,
        recognised,
        keeper: args.keeper_socket,
        keeper_number: args.keeper_number.unwrap_or(0),
    };
    let every = resolved.config.logging.every.get().into();
    let display = Display::start(every).map_err(|e| CliError::new(Exit::Io, format!("cannot start the progress thread: {e}")))?;
    let display = Arc::new(display);
    let result = run::launch(resolved, &options, display.clone());
    // The last frame comes before the summary.
    display.finish();
    let report = result?;
    if args.json {
        json_line(out, &report)?
    } else {
        summary::write(&report, out)?
    }
    Ok(if report.finished { Exit::Success } else { Exit::Drained })
}
