//! The watch over one confined program. The keeper is trusted, small, and the parent of everything the program starts.
//!
//! | it sees | it does |
//! |---|---|
//! | its standard input closed: the host wants an end, or has ended | kills the program's group |
//! | the program's end | kills what is left of the group |
//! | more processes, memory or scratch than allowed | kills the group, says why, ends by SIGKILL |
//!
//! Then it waits for everybody, removes the scratch folder, and ends as the program did (C3). Killed itself, its program dies
//! with it by the parent-death signal; what that started stays, confined.
use super::census::{self, Census, census};
use super::policy::{Confinement, Limits};
use super::scratch::Scratch;
use super::{COMMAND, say};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, WaitStatus};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Between two looks at processes and memory.
pub const LOOK: Duration = Duration::from_millis(20);
/// Looks between two at the scratch folder, which cost more.
const LOOKS_AT_SCRATCH: u32 = 10;
/// For killed processes to be gone: thousands take a while to die. One that the kernel holds in a call may take longer; then
/// it is left to the kernel.
const GONE: Duration = Duration::from_secs(10);
/// The keeper's own priority, where it may raise it: a bomb must not keep it from looking.
const FIRST: i32 = -10;

/// Runs the program to its end.
pub(super) fn keep(mut confinement: Confinement) -> Result<u8, String> {
    // Whatever else this process was started with ends here (C5).
    close_fds::set_fds_cloexec(3, &[]);
    let core = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, core).map_err(|e| format!("core dumps cannot be switched off: {e}"))?;
    // Refused without privileges; the program has less than this process either way.
    let _ = rustix::process::setpriority_process(None, FIRST);
    let me = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(me)).map_err(|e| format!("orphans cannot be adopted: {e}"))?;
    let scratch = Scratch::make(&std::env::temp_dir())?;
    confinement.scratch = Some(scratch.path().to_owned());
    let limits = confinement.limits;
    let child = start(&confinement, &scratch)?;
    let watched = watch(&child, me, limits, &scratch);
    let breach = watched.unwrap_or_else(|e| Some(format!("it cannot be watched: {e}")));
    let status = end(child);
    drop(scratch);
    if let Some(why) = breach {
        say(&format!("{why}; all of it was killed"));
        return Ok(die_by(Signal::KILL.as_raw()));
    }
    Ok(match status {
        Some(status) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
            (_, Some(signal)) => die_by(signal),
            _ => 0,
        },
        None => die_by(Signal::KILL.as_raw()),
    })
}

/// Starts the last step in a process group of its own and lets go of its standard output, so that its end is seen.
fn start(confinement: &Confinement, scratch: &Scratch) -> Result<Child, String> {
    let policy = serde_json::to_string(confinement).map_err(|e| format!("its policy cannot be written: {e}"))?;
    let mut command = Command::new("/proc/self/exe");
    command.args([COMMAND, "enter", &policy]).env("TMPDIR", scratch.path()).process_group(0);
    if std::env::var_os("HOME").is_none() {
        command.env("HOME", scratch.path());
    }
    let child = command.spawn().map_err(|e| format!("its process cannot be started: {e}"))?;
    let null = File::options().write(true).open("/dev/null").map_err(|e| format!("/dev/null: {e}"))?;
    rustix::stdio::dup2_stdout(null).map_err(|e| format!("its output cannot be let go of: {e}"))?;
    Ok(child)
}

/// Watches until the program ends or must end; the reason, if it used too much.
fn watch(child: &Child, me: Pid, limits: Limits, scratch: &Scratch) -> rustix::io::Result<Option<String>> {
    let program = Pid::from_child(child);
    let ended: OwnedFd = rustix::process::pidfd_open(program, PidfdFlags::empty())?;
    let (input, tick) = (std::io::stdin(), Timespec { tv_sec: 0, tv_nsec: LOOK.subsec_nanos().into() });
    for look in 0u32.. {
        let mut events = [PollFd::new(&input, PollFlags::empty()), PollFd::new(&ended, PollFlags::IN)];
        match poll(&mut events, Some(&tick)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(None),
            Err(e) => return Err(e),
        }
        census::bury(me, program);
        let found = census(me, limits.processes);
        if let Some(why) = breach(&found, limits) {
            return Ok(Some(why));
        }
        if look % LOOKS_AT_SCRATCH == 0 {
            let full = found.open_files().map_or_else(Some, |open| scratch.breach(limits.scratch, &open));
            if full.is_some() {
                return Ok(full);
            }
        }
    }
    Ok(None)
}

fn breach(found: &Census, limits: Limits) -> Option<String> {
    if found.tasks > limits.processes {
        return Some(format!("more than {} processes and threads at once", limits.processes));
    }
    let cap = limits.memory?;
    let over = found.pages.saturating_mul(rustix::param::page_size() as u64) > cap && found.proportional() > cap;
    over.then(|| format!("more than {} MiB of memory", cap >> 20))
}

/// Kills the group and waits until nobody is left. The program's own status, if it ended.
fn end(mut child: Child) -> Option<WaitStatus> {
    let program = Pid::from_child(&child);
    // Before the program is waited for: till then no other group can have its number.
    let _ = rustix::process::kill_process_group(program, Signal::KILL);
    let (begun, mut status) = (Instant::now(), None);
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, ended))) if pid == program => status = Some(ended),
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Ok(None) if begun.elapsed() < GONE => std::thread::sleep(Duration::from_millis(1)),
            // Nobody is left, or somebody is stuck in the kernel.
            Ok(None) | Err(_) => break,
        }
    }
    // It has been waited for; this only lets go of its streams.
    drop((child.stdin.take(), child));
    status
}

/// Ends this process by the signal that ended the program.
fn die_by(signal: i32) -> u8 {
    // The first may meet a handler of the runtime, which then stands back.
    for signal in Signal::from_named_raw(signal).into_iter().cycle().take(2) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
    }
    // One that is not fatal here, or not to be sent to oneself: as a shell says it.
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}
