//! The last steps before the program: the process gives up what it could do, and becomes it.
use super::policy::Confinement;
use super::{files, places, syscalls};
use rustix::process::{
    Resource, Rlimit, Signal, getpriority_process, getrlimit, set_parent_process_death_signal, setpriority_process, setrlimit,
};
use rustix::thread::{CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Its priority: below its keeper's and its host's.
const NICE: i32 = 5;
/// Open files of each process at most.
const FILES: u64 = 256;

/// Confines this process and executes the program. Returns only with what went wrong (C1).
pub(super) fn enter(confinement: Confinement) -> Result<u8, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = places::of(&confinement, &path)?;
    let Confinement { program, args, network, limits, landlock_abi, .. } = confinement;
    let mut command = Command::new(&program);
    command.args(&args);
    let nice = getpriority_process(None).unwrap_or(0).max(NICE);
    setpriority_process(None, nice).map_err(|e| format!("its priority cannot be lowered: {e}"))?;
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, limits.scratch)?;
    limit(Resource::Nofile, FILES)?;
    limit(Resource::Msgqueue, 0)?;
    drop_capabilities()?;
    files::restrict(&places, network, landlock_abi)?;
    // The keeper's end is this process's: no other thread of it starts anybody.
    let keeper = rustix::process::getppid();
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| format!("its end cannot be tied to its keeper's: {e}"))?;
    if rustix::process::getppid() != keeper {
        return Err("its keeper is gone".to_owned());
    }
    syscalls::restrict(network, landlock_abi)?;
    if let Some(bytes) = limits.memory {
        limit(Resource::As, bytes)?;
    }
    let error = command.exec();
    Err(format!("{} cannot be executed: {error}", program.display()))
}

/// Lowers a limit, never raises it.
fn limit(resource: Resource, value: u64) -> Result<(), String> {
    let value = getrlimit(resource).maximum.map_or(value, |hard| hard.min(value));
    let limit = Rlimit { current: Some(value), maximum: Some(value) };
    setrlimit(resource, limit).map_err(|e| format!("its limit {resource:?} of {value} cannot be set: {e}"))
}

/// Root without capabilities is one more user.
fn drop_capabilities() -> Result<(), String> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    let dropped = clear_ambient_capability_set().and_then(|()| set_capabilities(None, none));
    dropped.map_err(|e| format!("its capabilities cannot be dropped: {e}"))
}
