//! `cluster doctor`: checks of this machine for one configuration, each with what to do about it.
use super::overrides::ConfigArgs;
use super::{CliError, Exit, json_line};
use crate::config::{Config, Resolved};
use crate::devices::{self, Assignment, Gpu, Inventory};
use crate::ledger::place::check_local;
use crate::preflight::{Memory, Need, memory_text};
use cohort_actors::{confine, wall};
use cohort_model::{DeviceKind, ModelFiles};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Files and sockets that a run of that many workers keeps open, generously.
const DESCRIPTORS: u64 = 1024;
/// Disk that a run should find free besides its checkpoints.
const SPARE_DISK: u64 = 1 << 30;
/// This program was written after that moment: a clock before it is wrong (2025-01-01).
const EARLIEST: u64 = 1_735_689_600;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print the checks as one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Ok,
    Warn,
    Error,
}

#[derive(Debug, Clone, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Check>,
}

fn check(name: &'static str, status: Status, found: impl Into<String>, fix: &str) -> Check {
    Check { name, status, found: found.into(), fix: (status != Status::Ok).then(|| fix.to_owned()) }
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    let resolved = args.config.resolve()?;
    let checks = checks(&resolved);
    let report = Report { ok: checks.iter().all(|c| c.status != Status::Error), checks };
    if args.json {
        json_line(out, &report)?;
    } else {
        text(&report, out)?;
    }
    Ok(if report.ok { Exit::Success } else { Exit::Negative })
}

fn checks(resolved: &Resolved) -> Vec<Check> {
    let config = &resolved.config;
    let model = ModelFiles::open(&config.model.path);
    let root = existing(&config.cluster.run_root);
    let mut checks = vec![kernels(), device(config), gpus(config, &devices::look())];
    match &model {
        Ok(files) => {
            let spec = &files.spec;
            checks.push(check("model", Status::Ok, format!("{}, {} parameters", files.source, spec.parameters()), ""));
            checks.push(memory(&Memory::check(Need::of_run(spec, config))));
        }
        Err(error) => checks.push(check("model", Status::Error, error.to_string(), "set model.path to a model that is there")),
    }
    let parameters = model.map_or(0, |files| files.spec.parameters() as u64);
    let checkpoints = 12 * parameters * (u64::from(config.training.checkpoint.keep) + 1);
    checks.extend([file_system(&root), disk(&root, checkpoints + SPARE_DISK), writable(&root)]);
    checks.extend([descriptors(), loopback(), python(config), confinement(config, confine::support()), clock()]);
    checks
}

/// The nearest folder that is there already; the run's own is made at launch.
fn existing(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn kernels() -> Check {
    let path = cohort_kernels::Path::detect();
    let fix = "results are the same bits, but slower: AVX2 or AVX-512 makes it several times as fast";
    let status = if path == cohort_kernels::Path::PORTABLE { Status::Warn } else { Status::Ok };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let check = check("kernels", status, format!("{path}, {cores} cores"), fix);
    match cfg!(debug_assertions) {
        true => Check {
            status: Status::Warn,
            found: format!("{}, debug build", check.found),
            fix: Some("build with `cargo build --release`".to_owned()),
            ..check
        },
        false => check,
    }
}

fn device(config: &Config) -> Check {
    const FIX: &str =
        "run where an NVIDIA GPU and its driver are, in a build with `--features cuda`, or set model.device = \"cpu\"";
    if config.model.device == DeviceKind::Cpu {
        return check("device", Status::Ok, "cpu", FIX);
    }
    match cohort_engine::candle::gpus() {
        Ok(0) => check("device", Status::Error, "cuda: no GPU", FIX),
        Ok(count) => check("device", Status::Ok, format!("cuda: {count} to compute on"), FIX),
        Err(error) => check("device", Status::Error, format!("cuda: {error}"), FIX),
    }
}

/// What the driver says there is, and whether a run of processes has a device for each of its workers.
fn gpus(config: &Config, found: &Inventory) -> Check {
    let fix = "name devices by cluster.devices, run fewer workers, or let them share by cluster.colocate = true";
    let listed = match &found.unknown {
        Some(why) => format!("not known: {why}"),
        None if found.gpus.is_empty() => "none".to_owned(),
        None => {
            let gpu = |gpu: &Gpu| format!("{} ({}, {})", gpu.name, memory_text(gpu.memory_bytes), gpu.uuid);
            found.gpus.iter().map(gpu).collect::<Vec<_>>().join(", ")
        }
    };
    let cluster = &config.cluster;
    if config.model.device != DeviceKind::Cuda || !cluster.processes {
        return check("gpus", Status::Ok, listed, fix);
    }
    let visible = std::env::var(devices::VISIBLE).ok();
    let workers = u32::from(cluster.ranks_here()) + u32::from(cluster.rollout);
    let fits = devices::offered(&cluster.devices, visible.as_deref(), found)
        .and_then(|offered| Assignment::new(offered).check(workers, cluster.colocate));
    match fits {
        Ok(()) => check("gpus", Status::Ok, listed, fix),
        Err(error) => check("gpus", Status::Error, format!("{listed}; {error}"), fix),
    }
}

fn memory(memory: &Memory) -> Check {
    let status = match memory.available_bytes {
        Some(available) if memory.needed_bytes > available => Status::Error,
        Some(available) if memory.needed_bytes > available / 10 * 9 => Status::Warn,
        _ => Status::Ok,
    };
    check("memory", status, memory.line(), memory.remedy())
}

fn file_system(root: &Path) -> Check {
    match check_local(root) {
        Ok(()) => check("run root", Status::Ok, format!("{} is on a local file system", root.display()), ""),
        Err(error) => check("run root", Status::Error, error.to_string(), "set cluster.run_root to a folder on a local disk"),
    }
}

fn disk(root: &Path, wanted: u64) -> Check {
    match rustix::fs::statvfs(root) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let status = match free {
                f if f < wanted.min(SPARE_DISK / 8) => Status::Error,
                f if f < wanted => Status::Warn,
                _ => Status::Ok,
            };
            let found = format!("{} free, a run may want {}", memory_text(free), memory_text(wanted));
            check("disk", status, found, "free space, keep fewer checkpoints (training.checkpoint.keep) or set cluster.run_root")
        }
        Err(error) => {
            check("disk", Status::Warn, format!("{}: {error}", root.display()), "set cluster.run_root to a folder on a disk")
        }
    }
}

fn writable(root: &Path) -> Check {
    let probe = root.join(format!(".cohort-doctor-{}", std::process::id()));
    let made = std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe));
    match made {
        Ok(()) => check("writable", Status::Ok, root.display().to_string(), ""),
        Err(error) => {
            check("writable", Status::Error, format!("{}: {error}", root.display()), "set cluster.run_root to a folder of yours")
        }
    }
}

fn descriptors() -> Check {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let status = if limit.is_some_and(|l| l < DESCRIPTORS) { Status::Warn } else { Status::Ok };
    let found = limit.map_or("no limit".to_owned(), |l| format!("{l} files"));
    check("descriptors", status, found, "raise the limit: ulimit -n 4096")
}

fn loopback() -> Check {
    match std::net::UdpSocket::bind(("127.0.0.1", 0)) {
        Ok(_) => check("loopback", Status::Ok, "a UDP port can be had (--processes)", ""),
        Err(error) => {
            check("loopback", Status::Error, error.to_string(), "bring up the lo interface, or run without --processes")
        }
    }
}

/// python3 matters where a grader is a process of it.
fn python(config: &Config) -> Check {
    let wanted = config.rewards.parts.iter().any(|p| p.kind == "process");
    let run = Command::new("python3").arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
    match run {
        Ok(output) if output.status.success() => {
            check("python3", Status::Ok, String::from_utf8_lossy(&output.stdout).trim().to_owned(), "")
        }
        _ => {
            let status = if wanted { Status::Error } else { Status::Warn };
            check("python3", status, "not found", "install Python 3.8 or newer, for rewards of type \"process\" written in it")
        }
    }
}

/// Matters where a grader is a program of a user: it does not start where it cannot be confined.
fn confinement(config: &Config, support: confine::Support) -> Check {
    let confined = |key: Option<&serde_json::Value>| key.and_then(serde_json::Value::as_bool) != Some(false);
    let wanted = config.rewards.parts.iter().any(|part| part.kind == "process" && confined(part.options.get("confine")));
    let fix = "boot a kernel with all of it, or set confine = false on rewards of type \"process\" whose programs you trust";
    match support.missing() {
        None => check("confinement", Status::Ok, support.to_string(), fix),
        Some(missing) => check("confinement", if wanted { Status::Error } else { Status::Warn }, missing, fix),
    }
}

fn clock() -> Check {
    let now = wall::unix_ms() / 1000;
    let status = if now < EARLIEST { Status::Error } else { Status::Ok };
    let found = if now < EARLIEST { format!("{now} s after 1970") } else { "plausible".to_owned() };
    check("clock", status, found, "set the clock: certificates of a run are valid from its start on")
}

fn text(report: &Report, out: &mut dyn Write) -> Result<(), CliError> {
    for check in &report.checks {
        let word = match check.status {
            Status::Ok => "ok   ",
            Status::Warn => "warn ",
            Status::Error => "ERROR",
        };
        writeln!(out, "{word}  {:<12} {}", check.name, check.found)?;
        if let Some(fix) = &check.fix {
            writeln!(out, "{:20}fix: {fix}", "")?;
        }
    }
    let problems = report.checks.iter().filter(|c| c.status == Status::Error).count();
    match problems {
        0 => writeln!(out, "\nready: cluster launch")?,
        n => writeln!(out, "\n{n} to fix before a launch")?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_cannot_confine_matters_where_a_program_of_a_user_is_confined() {
        let none = confine::Support { landlock_abi: None, seccomp: true, children: true };
        let mut config = Config::default();
        assert_eq!(confinement(&config, none).status, Status::Warn);
        config.rewards.parts.push(cohort_reward_workers::PartConfig::new("process"));
        let refused = confinement(&config, none);
        assert!(refused.status == Status::Error && refused.found.contains("Landlock"), "{refused:?}");
        assert_eq!(confinement(&config, confine::Support { landlock_abi: Some(1), ..none }).status, Status::Ok);
        config.rewards.parts.last_mut().unwrap().options.insert("confine".to_owned(), false.into());
        assert_eq!(confinement(&config, none).status, Status::Warn);
    }

    #[test]
    fn devices_are_listed_and_held_against_the_workers_that_need_one() {
        let gpu = |n| Gpu { uuid: format!("GPU-{n}"), name: "H100".into(), memory_bytes: 80 << 30 };
        let two = Inventory { gpus: vec![gpu(0), gpu(1)], unknown: None };
        let mut config = Config::default();
        let listed = gpus(&config, &two);
        assert!(listed.status == Status::Ok && listed.found.contains("H100 (80.0 GiB, GPU-1)"), "{listed:?}");
        config.model.device = DeviceKind::Cuda;
        (config.cluster.processes, config.cluster.rollout) = (true, 2);
        config.cluster.devices = vec!["0".into()];
        let refused = gpus(&config, &two);
        assert!(refused.status == Status::Error && refused.found.contains("3 learner and rollout workers"), "{refused:?}");
        config.cluster.colocate = true;
        assert_eq!(gpus(&config, &two).status, Status::Ok);
        let nobody = Inventory { gpus: Vec::new(), unknown: Some("no libnvidia-ml.so.1".into()) };
        let unknown = gpus(&config, &nobody);
        assert!(unknown.status == Status::Ok && unknown.found.contains("not known"), "no error: {unknown:?}");
    }
}
