//! Live progress on stderr: a few lines repainted in place on a terminal, plain lines elsewhere.
//!
//! Invariants
//! - **U1** [`Display`] never blocks the run: news go through a bounded queue to a painting thread; when it is full, news
//!   are dropped (the report at the end does not come this way).
//! - **U2** the last frame is painted before [`Display::finish`] returns, and the cursor is left on a fresh line.
use crate::progress::{ActorState, ActorStatus, EvaluationReport, Progress, ProgressSink, RunPhase, StepProgress};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// News waiting to be painted.
const QUEUE: usize = 1024;
/// Time between two frames on a terminal.
const FRAME: Duration = Duration::from_millis(100);
/// Steps in the spark line.
const SPARK: usize = 24;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Paints a run's progress; give it to the run as its [`ProgressSink`].
pub(super) struct Display {
    inner: Mutex<Inner>,
}

struct Inner {
    news: Option<SyncSender<Progress>>,
    painter: Option<JoinHandle<()>>,
}

impl Display {
    /// Starts painting on stderr. `every` is the number of steps between two plain lines.
    pub(super) fn start(every: u64) -> std::io::Result<Self> {
        let terminal = std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        Self::on(std::io::stderr(), terminal, every)
    }

    fn on(out: impl Write + Send + 'static, terminal: bool, every: u64) -> std::io::Result<Self> {
        let (news, inbox) = sync_channel(QUEUE);
        let painter = std::thread::Builder::new().name("progress".into()).spawn(move || match terminal {
            true => paint_live(&inbox, out),
            false => paint_lines(&inbox, out, every.max(1)),
        })?;
        Ok(Self { inner: Mutex::new(Inner { news: Some(news), painter: Some(painter) }) })
    }

    /// Paints what is left and ends; news after that go nowhere.
    pub(super) fn finish(&self) {
        let mut inner = self.lock();
        inner.news = None;
        if let Some(painter) = inner.painter.take() {
            // A painter that panicked has nothing left to say.
            let _ = painter.join();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Valid after any panic: both fields are only taken.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.finish();
    }
}

impl ProgressSink for Display {
    fn emit(&self, news: Progress) {
        if let Some(queue) = &self.lock().news {
            // U1: a full queue means that nobody reads stderr.
            let _ = queue.try_send(news);
        }
    }
}

/// What is known about the run.
#[derive(Debug, Default)]
struct View {
    steps: u64,
    step: u64,
    phase: Option<RunPhase>,
    last: Option<StepProgress>,
    rewards: VecDeque<f64>,
    actors: Vec<ActorStatus>,
    run_dir: String,
}

impl View {
    fn take(&mut self, news: &Progress) {
        match news {
            Progress::Started { run_dir, resumed_at, steps } => {
                self.run_dir = run_dir.display().to_string();
                (self.step, self.steps) = (*resumed_at, *steps);
            }
            Progress::Phase(phase) => self.phase = Some(*phase),
            Progress::Step(step) => {
                (self.step, self.steps) = (step.step, step.steps);
                if self.rewards.len() == SPARK {
                    self.rewards.pop_front();
                }
                self.rewards.push_back(step.reward);
                self.last = Some(step.clone());
            }
            Progress::Actors(actors) => self.actors.clone_from(actors),
            Progress::Evaluation(_) | Progress::Notice(_) => {}
        }
    }

    /// The live lines.
    fn frame(&self) -> Vec<String> {
        let mut head = format!("step {}/{}", self.step, self.steps);
        if let Some(last) = &self.last {
            let _written = write!(head, "  reward {:.3} {}", last.reward, spark(&self.rewards));
            let (rollout, train) = (last.rollout_tokens_per_s, last.train_tokens_per_s);
            let _written = write!(head, "  {rollout:.0} tok/s out, {train:.0} tok/s in  staleness {}", last.staleness);
            if let Some(eta) = last.eta_s {
                let _written = write!(head, "  ETA {}", duration(eta));
            }
        }
        let mut lines = vec![head];
        if let Some(phase) = self.phase {
            lines.push(format!("  {}", phase_text(phase)));
        }
        lines.extend(self.actors.iter().map(|actor| format!("  {}", actor_text(actor))));
        lines
    }
}

fn phase_text(phase: RunPhase) -> &'static str {
    match phase {
        RunPhase::Loading => "loading the policy",
        RunPhase::Replaying => "computing committed steps again",
        RunPhase::Evaluating => "answering held-out prompts",
        RunPhase::Collecting => "generating and scoring groups",
        RunPhase::Stepping => "updating the policy",
        RunPhase::Publishing => "publishing weights",
        RunPhase::Checkpointing => "writing a checkpoint",
        RunPhase::Draining => "leaving in order (a second signal aborts)",
        RunPhase::Finished => "finished",
    }
}

fn actor_text(actor: &ActorStatus) -> String {
    let state = match actor.state {
        ActorState::Starting => "starting",
        ActorState::Idle => "idle",
        ActorState::Working => "working",
        ActorState::Loading => "loading",
        ActorState::Lost => "lost",
        ActorState::Stopped => "stopped",
    };
    let mut text = format!("{:<11} {state:<8}", actor.name);
    if let Some(lease) = &actor.lease {
        let _written = write!(text, " {lease}");
    }
    if actor.restarts > 0 {
        let _written = write!(text, "  ({} restarts)", actor.restarts);
    }
    text
}

/// Rewards as bars between the least and the largest shown, at least a tenth apart, so that noise does not look like news.
fn spark(rewards: &VecDeque<f64>) -> String {
    let finite = || rewards.iter().copied().filter(|r| r.is_finite());
    let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
    let range = (high - low).max(0.1);
    let bar = |r: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=7")]
        let level = ((r - low) / range * 7.0).round().clamp(0.0, 7.0) as usize;
        BARS[level]
    };
    rewards.iter().map(|&r| if r.is_finite() { bar(r) } else { '?' }).collect()
}

/// `42s`, `3m10s`, `2h05m`.
fn duration(seconds: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what u64 holds exactly")]
    let s = seconds.round().clamp(0.0, 9e15) as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        _ => format!("{}h{:02}m", s / 3600, s / 60 % 60),
    }
}

fn paint_live(inbox: &Receiver<Progress>, mut out: impl Write) {
    let mut view = View::default();
    let mut painted = 0;
    let mut due = Instant::now();
    loop {
        let news = inbox.recv_timeout(due.saturating_duration_since(Instant::now()));
        let last = match news {
            Ok(news) => {
                view.take(&news);
                if let Some(line) = lasting_line(&news) {
                    // Lines that stay scroll up above the frame.
                    let _ = writeln!(out, "{}{line}", clear(painted));
                    painted = 0;
                } else if Instant::now() < due {
                    continue;
                }
                false
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        let width = terminal_size::terminal_size_of(std::io::stderr()).map_or(100, |(w, _)| usize::from(w.0));
        let lines: Vec<String> = view.frame().iter().map(|l| cut(l, width)).collect();
        let _ = writeln!(out, "{}{}", clear(painted), lines.join("\n"));
        let _ = out.flush();
        painted = lines.len();
        if last {
            return;
        }
        due = Instant::now() + FRAME;
    }
}

/// Moves up over the last frame and erases it.
fn clear(lines: usize) -> String {
    if lines == 0 { String::new() } else { format!("\x1b[{lines}A\x1b[J") }
}

fn cut(line: &str, width: usize) -> String {
    line.chars().take(width.max(20) - 1).collect()
}

fn paint_lines(inbox: &Receiver<Progress>, mut out: impl Write, every: u64) {
    let mut view = View::default();
    while let Ok(news) = inbox.recv() {
        view.take(&news);
        let line = match &news {
            Progress::Step(step) if step.step.is_multiple_of(every) || step.step == step.steps => {
                Some(view.frame().swap_remove(0))
            }
            Progress::Phase(RunPhase::Draining) => Some(phase_text(RunPhase::Draining).to_owned()),
            other => lasting_line(other),
        };
        if let Some(line) = line {
            // Where stderr is closed there is nobody to tell.
            let _ = writeln!(out, "{line}");
        }
    }
}

/// News that are worth a line of their own on a terminal too.
fn lasting_line(news: &Progress) -> Option<String> {
    match news {
        Progress::Started { run_dir, resumed_at, steps } => {
            let resumed = if *resumed_at > 0 { format!(", resumed after step {resumed_at}") } else { String::new() };
            Some(format!("run directory {} ({steps} steps{resumed})", run_dir.display()))
        }
        Progress::Evaluation(report) => Some(evaluation_text(report)),
        Progress::Notice(text) => Some(super::summary::shown(text)),
        _ => None,
    }
}

fn evaluation_text(report: &EvaluationReport) -> String {
    let samples = if report.samples == 1 { "1 sample".to_owned() } else { format!("{} samples", report.samples) };
    let how = if report.greedy { "greedy".to_owned() } else { format!("{samples} each") };
    format!("held-out reward after step {}: {:.3} ({} prompts, {how})", report.step, report.reward, report.per_prompt.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);
    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn step(step: u64, reward: f64) -> Progress {
        Progress::Step(StepProgress {
            step,
            steps: 20,
            reward,
            reward_parts: vec![],
            rollout_tokens_per_s: 1234.4,
            train_tokens_per_s: 5678.0,
            staleness: 0,
            elapsed_s: 1.0,
            eta_s: Some(75.0),
            metrics: vec![],
        })
    }

    fn shown(terminal: bool, news: Vec<Progress>) -> String {
        let screen = Screen::default();
        let display = Display::on(screen.clone(), terminal, 10).unwrap();
        news.into_iter().for_each(|n| display.emit(n));
        display.finish();
        String::from_utf8(screen.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn plain_lines_come_every_so_many_steps_and_at_the_end() {
        let mut news = vec![Progress::Started { run_dir: "runs/a".into(), resumed_at: 0, steps: 20 }];
        news.extend((1..=20).map(|s| step(s, s as f64 / 20.0)));
        news.push(Progress::Notice("rollout-0 died (signal 9), restarted\u{1b}[2J".into()));
        insta::assert_snapshot!(shown(false, news), @r"
        run directory runs/a (20 steps)
        step 10/20  reward 0.500 ▁▂▃▃▄▅▆▆▇█  1234 tok/s out, 5678 tok/s in  staleness 0  ETA 1m15s
        step 20/20  reward 1.000 ▁▁▂▂▂▃▃▄▄▄▅▅▅▆▆▇▇▇██  1234 tok/s out, 5678 tok/s in  staleness 0  ETA 1m15s
        rollout-0 died (signal 9), restarted\u{1b}[2J
        ");
    }

    #[test]
    fn a_terminal_is_repainted_in_place_and_left_on_a_fresh_line() {
        let painted = shown(true, vec![step(1, 0.1), Progress::Phase(RunPhase::Collecting), Progress::Notice("hello".into())]);
        assert!(painted.contains("\x1b[") && painted.contains("hello\n"), "{painted:?}");
        assert!(painted.ends_with("generating and scoring groups\n"), "{painted:?}");
    }

    #[test]
    fn figures_are_short() {
        assert_eq!([0.4, 59.6, 190.0, 7500.0].map(duration), ["0s", "1m00s", "3m10s", "2h05m"]);
        assert_eq!(spark(&VecDeque::from([0.5, 0.5, f64::NAN])), "▁▁?");
    }
}
