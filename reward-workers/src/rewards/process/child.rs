//! One running plug-in: spawn, hello, exchange, kill.
use super::confined::Terms;
use super::output::Output;
use super::{ProcessConfig, frame, frame::FrameError, hello};
use crate::guard::{Failure, seconds};
use cohort_actors::confine::{self, Confiner};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use serde_json::{Map, Value};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::BufReader;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, timeout};
use tracing::info;

/// Environment variable that tells the SDK that a host is at the other end.
pub(super) const ENV: &str = "COHORT_PLUGIN";
/// How long a killed or closing process may take to be gone, and its last lines to arrive.
const GRACE: Duration = Duration::from_secs(1);
/// How long the keeper of a confined process may take to kill all of it and to tidy up.
const KEEPER_GRACE: Duration = Duration::from_secs(15);
/// For the exit status of a child that may have died in the middle of an answer.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What to run and under which limits.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) name: String,
    program: String,
    args: Vec<String>,
    working_dir: PathBuf,
    env: Vec<(String, String)>,
    options: Map<String, Value>,
    pub(super) timeout: Duration,
    pub(super) start_timeout: Duration,
    memory: Option<u64>,
    terms: Option<Terms>,
}

impl Spec {
    /// Checks a part's keys. A program with a slash is taken from the working directory.
    pub(super) fn new(name: &str, config: &ProcessConfig, confiner: &Confiner) -> Result<Self, String> {
        let Some((program, args)) = config.command.split_first().filter(|(program, _)| !program.is_empty()) else {
            return Err(
                "command is empty: give the program and its arguments, as command = [\"python3\", \"my_reward.py\"]".into()
            );
        };
        let working_dir = config.working_dir.clone().unwrap_or_else(|| PathBuf::from("."));
        let working_dir =
            std::path::absolute(&working_dir).map_err(|e| format!("working_dir = {}: {e}", working_dir.display()))?;
        if !working_dir.is_dir() {
            return Err(format!("working_dir = {}: there is no such folder", working_dir.display()));
        }
        let program = if program.contains('/') { working_dir.join(program).display().to_string() } else { program.clone() };
        let memory = match config.memory_mib {
            0 => None,
            mib => Some(mib.checked_mul(1 << 20).ok_or_else(|| format!("memory_mib = {mib} is more than there can be"))?),
        };
        let terms = Terms::new(config, &working_dir, memory, confiner)?;
        Ok(Self {
            name: name.to_owned(),
            program,
            args: args.to_vec(),
            working_dir,
            env: config.env.clone().into_iter().collect(),
            options: config.options.clone(),
            timeout: seconds("timeout_s", config.timeout_s)?,
            start_timeout: seconds("start_timeout_s", config.start_timeout_s)?,
            memory,
            terms,
        })
    }

    /// What to spawn, streams and folder apart.
    fn start(&self) -> Result<Command, String> {
        let Some(terms) = &self.terms else {
            let mut command = Command::new(&self.program);
            command.args(&self.args).kill_on_drop(true);
            return Ok(command);
        };
        let own = self.env.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.into());
        let path = own.or_else(|| std::env::var_os("PATH")).unwrap_or_default();
        let program = confine::find(&self.program, &self.working_dir, &path)?;
        // Not killed on drop: its keeper ends by itself when its standard input is closed, and tidies up first.
        terms.command(program, &self.args, &self.working_dir).map(Command::from)
    }

    fn command(&self) -> String {
        std::iter::once(self.program.clone()).chain(self.args.iter().cloned()).collect::<Vec<_>>().join(" ")
    }
}

/// A running process that said hello.
pub(super) struct Plugin {
    spec: Arc<Spec>,
    child: Child,
    /// Closed, it tells a keeper to end everything.
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    output: Output,
    next_id: u64,
}

/// What a process did in place of answering.
#[derive(Debug)]
pub(super) enum Wrong {
    /// It ended.
    Exited,
    /// It did not answer in time.
    Late {
        /// What it should have done.
        what: &'static str,
        /// How long it had.
        after: Duration,
    },
    /// It broke the protocol.
    Broken(String),
    /// It cannot be used as it is; starting it again would not help.
    Unfit(String),
    /// This group cannot be graded (an exception, a question over the limit); the process is well.
    Raised(String),
}

impl Plugin {
    /// Spawns the process and waits for its hello.
    pub(super) async fn start(spec: &Arc<Spec>) -> Result<Self, Failure> {
        let mut plugin = Self::spawn(spec)?;
        match plugin.greet().await {
            Ok(hello) => {
                info!(target: "cohort::plugin", plugin = spec.name, pid = plugin.child.id(), function = hello.name,
                    sdk = hello.sdk, capabilities = ?hello.capabilities, "plugin_started");
                Ok(plugin)
            }
            Err(wrong) => Err(plugin.end(wrong).await),
        }
    }

    fn spawn(spec: &Arc<Spec>) -> Result<Self, Failure> {
        let fatal =
            |why: String| Failure::Fatal(format!("command `{}` in {}: {why}", spec.command(), spec.working_dir.display()));
        let cannot =
            |e: String| fatal(format!("it cannot be started: {e}; correct `command`, which runs in the config file's folder"));
        let mut child = spec
            .start()
            .map_err(cannot)?
            .current_dir(&spec.working_dir)
            .env(ENV, "1")
            // Unbuffered, a print before the SDK is imported would reach the frames.
            .env_remove("PYTHONUNBUFFERED")
            .envs(spec.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|e| cannot(e.to_string()))?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else { return Err(fatal("its pipes are missing".into())) };
        if let (Some(bytes), Some(pid), None) = (spec.memory, pid(&child), &spec.terms) {
            // Set on the running child: it has not been asked for anything yet, and what it starts inherits the cap.
            let cap = Rlimit { current: Some(bytes), maximum: Some(bytes) };
            if let Err(e) = rustix::process::prlimit(Some(pid), Resource::As, cap) {
                // One that is gone already is reported by the hello that never comes.
                if e != rustix::io::Errno::SRCH {
                    return Err(fatal(format!("its memory cap of {bytes} bytes cannot be set: {e}; set memory_mib = 0")));
                }
            }
        }
        let output = Output::follow(&spec.name, stderr);
        Ok(Self { spec: spec.clone(), child, stdin: Some(stdin), stdout: BufReader::new(stdout), output, next_id: 0 })
    }

    async fn greet(&mut self) -> Result<hello::PluginHello, Wrong> {
        let spec = self.spec.clone();
        let first = self.exchange("say hello", spec.start_timeout, None).await?;
        match hello::check(&first, &spec.options) {
            Ok(hello) => {
                let welcome = hello::welcome(&spec.name, &spec.options);
                self.say(&welcome).await.map_err(|_| Wrong::Exited)?;
                Ok(hello)
            }
            Err(why) => {
                // Told before it is killed; one that does not listen has nothing to lose.
                let _ = timeout(GRACE, self.say(&hello::refused(&why))).await;
                Err(Wrong::Unfit(why))
            }
        }
    }

    async fn say(&mut self, message: &Value) -> Result<(), FrameError> {
        match &mut self.stdin {
            Some(stdin) => frame::write(stdin, message).await,
            None => Err(FrameError::Closed),
        }
    }

    /// Whether it is still there between two questions.
    pub(super) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks about one group. After any error but [`Wrong::Raised`] the process must be ended.
    pub(super) async fn ask(&mut self, mut question: Map<String, Value>) -> Result<Value, Wrong> {
        self.next_id += 1;
        let id = self.next_id;
        question.insert("type".to_owned(), "score".into());
        question.insert("id".to_owned(), id.into());
        let answer = self.exchange("grade a group", self.spec.timeout, Some(&Value::Object(question))).await?;
        if answer.get("id").and_then(Value::as_u64) != Some(id) {
            return Err(Wrong::Broken(format!(
                "it answered id {} where {id} was asked",
                answer.get("id").unwrap_or(&Value::Null)
            )));
        }
        match answer.get("type").and_then(Value::as_str) {
            Some("scores") => Ok(answer),
            Some("error") => Err(Wrong::Raised(
                answer.get("message").and_then(Value::as_str).unwrap_or("an error without a message").to_owned(),
            )),
            other => Err(Wrong::Broken(format!("it answered with type {other:?}, expected \"scores\" or \"error\""))),
        }
    }

    /// Sends a message, if there is one, and reads the next frame.
    async fn exchange(&mut self, what: &'static str, after: Duration, message: Option<&Value>) -> Result<Value, Wrong> {
        let (stdin, stdout, child) = (&mut self.stdin, &mut self.stdout, &mut self.child);
        let talk = async {
            if let (Some(message), Some(stdin)) = (message, stdin) {
                frame::write(stdin, message).await?;
            }
            frame::read(stdout).await
        };
        let answered = tokio::select! {
            biased;
            answered = timeout(after, talk) => answered,
            _ = child.wait() => return Err(Wrong::Exited),
        };
        match answered {
            Ok(Ok(frame)) => Ok(frame),
            Ok(Err(FrameError::Closed | FrameError::Io(_))) => Err(Wrong::Exited),
            Ok(Err(e @ FrameError::TooLong(_))) => Err(Wrong::Raised(e.to_string())),
            Ok(Err(e)) => Err(Wrong::Broken(e.to_string())),
            Err(_) => Err(Wrong::Late { what, after }),
        }
    }

    /// Kills the process with its whole group and says what happened, with its last lines.
    pub(super) async fn end(mut self, wrong: Wrong) -> Failure {
        match wrong {
            // It closed its pipe: its exit status follows at once, and tells more than our signal would.
            Wrong::Exited => drop(timeout(GRACE, self.child.wait()).await),
            // Its last words may be half a frame.
            Wrong::Broken(_) => drop(timeout(LAST_WORDS, self.child.wait()).await),
            _ => {}
        }
        let own_exit = self.child.try_wait().ok().flatten();
        self.stop().await;
        let own_exit = own_exit.or_else(|| self.ended_by_itself());
        let tail = self.output.tail(GRACE).await;
        let tail = if tail.is_empty() { String::new() } else { format!("; its last lines:\n{tail}") };
        let command = self.spec.command();
        let spoke = |why: String| format!("plug-in `{command}`: {why}{tail}");
        match wrong {
            Wrong::Late { what, after } => Failure::Retryable(spoke(format!(
                "it did not {what} within {after:?} and was killed; make it faster or raise {}",
                if after == self.spec.start_timeout && what == "say hello" { "start_timeout_s" } else { "timeout_s" }
            ))),
            Wrong::Broken(why) => Failure::Retryable(spoke(match own_exit {
                Some(status) if self.next_id > 0 => format!("it ended with {status} while it graded a group; before that {why}"),
                _ => why,
            })),
            Wrong::Unfit(why) | Wrong::Raised(why) => Failure::Fatal(spoke(why)),
            Wrong::Exited if own_exit.and_then(|s| s.code()) == Some(confine::REFUSED.into()) && self.spec.terms.is_some() => {
                Failure::Fatal(spoke("it could not be confined and was not started".to_owned()))
            }
            Wrong::Exited => exited(own_exit, self.next_id == 0, &spoke),
        }
    }

    /// How it ended, where that was not our doing: a keeper that was still tidying up ends as its program did.
    fn ended_by_itself(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().ok().flatten().filter(|_| self.spec.terms.is_some())?;
        (status.signal() != Some(Signal::KILL.as_raw())).then_some(status)
    }

    /// Ends everything of it: a keeper by closing its standard input, any other by killing its group.
    async fn stop(&mut self) {
        drop(self.stdin.take());
        if self.spec.terms.is_some() && timeout(KEEPER_GRACE, self.child.wait()).await.is_ok() {
            return;
        }
        self.kill();
        // What is stuck in the kernel is left to it.
        let _ = timeout(GRACE, self.child.wait()).await;
    }

    /// Kills the group; the process, or its keeper, is its leader.
    fn kill(&self) {
        if let Some(pid) = pid(&self.child) {
            // One that is gone already is what is wanted.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let begun = Instant::now();
        while self.spec.terms.is_some() && begun.elapsed() < KEEPER_GRACE {
            // In its own thread, which ends with it: a few milliseconds.
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                _ => return,
            }
        }
        self.kill();
    }
}

/// The process, while it has not been waited for.
fn pid(child: &Child) -> Option<Pid> {
    child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
}

fn exited(status: Option<ExitStatus>, before_hello: bool, spoke: &dyn Fn(String) -> String) -> Failure {
    let how = status.map_or_else(|| "it closed its standard output".to_owned(), |status| format!("it ended with {status}"));
    if !before_hello {
        return Failure::Retryable(spoke(format!("{how} while it graded a group")));
    }
    let why = format!("{how} before its hello: run the command by hand, and see that it ends in `run()`");
    // A program that ends on its own account would do so again; one that was killed may do better.
    if status.is_some_and(|s| s.code().is_some()) { Failure::Fatal(spoke(why)) } else { Failure::Retryable(spoke(why)) }
}
