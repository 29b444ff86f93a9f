//! Children that nobody need trust: programs of users, confined by the kernel. No privilege is needed, none is kept.
//!
//! ```text
//! host ── <this program> confined keep ── <this program> confined enter ── exec ──► the user's program
//!           (keeper: counts, kills, tidies)    (limits, Landlock, seccomp on itself)     (same process)
//! ```
//!
//! The host talks to the program over the three standard streams, which the keeper hands through. Closing its standard
//! input is the order to end; the end of the host, in whatever manner, closes it too.
//!
//! | what | bounded by |
//! |---|---|
//! | files | Landlock: reads what an interpreter needs, its own folder, `read`; writes to its scratch folder and `write` |
//! | what Landlock leaves open (modes, owners, times, other processes' limits, IPC) and other doors of the kernel | seccomp, `EPERM` |
//! | network | seccomp: no sockets but pairs; Landlock: no TCP |
//! | processes and threads, memory of all together, scratch folder | the keeper's looks, every [`keeper::LOOK`] |
//! | address space, open files, size of a file, core | resource limits of each process |
//! | environment | a list of harmless variables ([`environment`]); `HOME` and `TMPDIR` are the scratch folder |
//! | capabilities of root | dropped |
//!
//! Invariants
//! - **C1** what cannot be confined does not start: every step that fails ends the child before the program is executed.
//! - **C2** no process of the program leaves its process group (`setpgid` and `setsid` are refused): one signal to the group
//!   reaches all of them at once, however many they are and whoever their parents are.
//! - **C3** the keeper ends after everything of the program has ended and its scratch folder is gone, and ends as the
//!   program did.
//! - **C4** the program cannot signal, trace or limit its keeper, its host or anybody outside.
//! - **C5** it inherits the three standard streams and no other descriptor.
//!
//! Files: `policy` what the program may do; `program` which file it is and what that needs to be read; `places` paths into
//! rules; `files` Landlock; `syscalls` seccomp; `enter` the last steps before `exec`; `keeper` the watch, with `census`
//! (who is there) and `scratch` (the folder); `environment` which variables; `support` what this kernel can do.
mod census;
mod enter;
pub mod environment;
mod files;
pub mod keeper;
mod places;
mod policy;
mod program;
mod scratch;
mod support;
mod syscalls;

pub use policy::{Confinement, Limits};
pub use program::find;
pub use support::{Support, support};

use std::path::{Path, PathBuf};
use std::process::Command;

/// First argument of the program that confines: `<program> confined <step> <policy as JSON>`.
pub const COMMAND: &str = "confined";
/// How a keeper ends that could not confine (C1): its last line on standard error says why.
pub const REFUSED: u8 = 78;

/// Who confines: a program whose `main` hands [`COMMAND`] to [`run`]; and what no confined child may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confiner {
    program: PathBuf,
    hidden: Vec<PathBuf>,
    abi_at_most: u32,
}

impl Default for Confiner {
    /// The running program confines, as `cluster` does.
    fn default() -> Self {
        Self::by("/proc/self/exe")
    }
}

impl Confiner {
    /// Another program confines.
    #[must_use]
    pub fn by(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), hidden: Vec::new(), abi_at_most: u32::MAX }
    }

    /// Nothing at or under `path` is read by a child, whatever folder around it is open to it: a run directory has keys
    /// and accounts.
    #[must_use]
    pub fn hiding(mut self, path: &Path) -> Self {
        self.hidden.push(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
        self
    }

    /// As on a kernel whose Landlock is no newer, to try what takes its place there.
    #[must_use]
    pub fn with_landlock_at_most(mut self, abi: u32) -> Self {
        self.abi_at_most = abi;
        self
    }

    /// What is hidden.
    #[must_use]
    pub fn hidden(&self) -> &[PathBuf] {
        &self.hidden
    }

    /// The command that runs `confinement.program` confined, without streams: give it three of its own. Its environment is
    /// [`environment::kept`] of this process's.
    ///
    /// Errors: what this kernel lacks, with the remedy.
    pub fn command(&self, confinement: &Confinement) -> Result<Command, String> {
        let support = support();
        if let Some(missing) = support.missing() {
            return Err(missing);
        }
        let mut confinement = confinement.clone();
        confinement.hidden.extend(self.hidden.iter().cloned());
        confinement.landlock_abi = support.landlock_abi.unwrap_or(0).min(self.abi_at_most);
        let policy = serde_json::to_string(&confinement).map_err(|e| format!("its policy cannot be written: {e}"))?;
        let mut command = Command::new(&self.program);
        command.args([COMMAND, "keep", &policy]).env_clear().envs(environment::kept(std::env::vars_os()));
        Ok(command)
    }
}

/// The confining program's own work: its arguments after [`COMMAND`]. Returns its exit code, or does not return.
#[must_use]
pub fn run(arguments: &[String]) -> u8 {
    let outcome = match arguments {
        [step, policy] if step == "keep" => read(policy).and_then(keeper::keep),
        [step, policy] if step == "enter" => read(policy).and_then(enter::enter),
        _ => Err(format!(
            "{COMMAND} is started by the program itself, with a step and a policy; got {} arguments",
            arguments.len()
        )),
    };
    match outcome {
        Ok(code) => code,
        Err(why) => {
            say(&why);
            REFUSED
        }
    }
}

fn read(policy: &str) -> Result<Confinement, String> {
    serde_json::from_str(policy).map_err(|e| format!("the policy is none: {e}"))
}

/// A line on the program's standard error, which its host shows.
fn say(line: &str) {
    use std::io::Write;
    // A host that is gone reads nothing.
    let _ = writeln!(std::io::stderr(), "{COMMAND}: {line}");
}
