//! What a run has to tell, gathered as it goes: live progress, the state of its actors, the report at the end.
//! All sums are made of the ledger's commits, so that a resumed run reports the whole of it.
use super::rise::rise;
use crate::controller::steps::Request;
use crate::controller::{ConnId, ControllerState};
use crate::ledger::{Past, RunPaths};
use crate::progress::{
    ActorState, ActorStatus, EvaluationReport, ExampleDialogue, FullDisk, GroupCounts, LaunchReport, RunPhase, RunStatus,
    StepProgress,
};
use cohort_protocol::{PolicyVersion, Role, StepCommit, WorkerId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Seconds since this launch.
const ELAPSED_S: &str = "time/elapsed_s";
/// Seconds from the step's first lease to its last score; in an asynchronous run since the last commit.
pub const COLLECT_S: &str = "time/collect_s";
/// Seconds of the learner's step.
pub const STEP_S: &str = "time/step_s";
/// Tokens that the policy sampled for the step.
pub const SAMPLED_TOKENS: &str = "tokens/sampled";
/// Tokens of all sequences through the learner.
pub const TRAINED_TOKENS: &str = "tokens/trained";
/// Seconds that publishing weights took since the commit before.
const WEIGHT_SYNC_S: &str = "timing_s/weight_sync";
/// Part of the time since the last commit in which the learner had nothing to do.
pub(crate) const LEARNER_IDLE: &str = "perf/learner_idle_fraction";
/// The same of a rollout worker, in the mean over all of them.
const ROLLOUT_IDLE: &str = "perf/rollout_idle_fraction";
const REWARD: &str = "reward";
const LOGP_DIFFERENCE: &str = "exactness/logp_difference_max";
const LOGP_TOKENS: &str = "exactness/tokens";
const INEXACT_GROUPS: &str = "exactness/inexact_groups";

/// Memory of the reporting.
#[derive(Debug)]
pub(super) struct Report {
    steps: u64,
    begun: Instant,
    collecting: Option<Instant>,
    collect_s: f64,
    step_sent: Option<Instant>,
    weight_sync_s: f64,
    tokens: (u64, u64),
    evaluations: Vec<EvaluationReport>,
    rewards: Vec<f64>,
    /// Idle parts of the time, learner's and rollout workers', by commit.
    idle: Vec<(f64, f64)>,
    totals: Totals,
    step_seconds: Vec<f64>,
    last_commit: Instant,
    final_sha256: BTreeMap<PolicyVersion, String>,
    incarnations: BTreeMap<WorkerId, (u32, u32)>,
    expected: Vec<WorkerId>,
    breakers: BTreeMap<WorkerId, BTreeMap<String, String>>,
    /// Numerics of samplers that are corrected for.
    corrected: BTreeMap<WorkerId, String>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Totals {
    collect_s: f64,
    step_s: f64,
    sampled: f64,
    trained: f64,
    logp_difference: f64,
    logp_tokens: f64,
    inexact_groups: f64,
    staleness: f64,
}

impl Report {
    /// Begins with what earlier incarnations recorded. `begun`: when this launch was.
    pub(super) fn new(steps: u64, begun: Instant, now: Instant, past: &Past, expected: Vec<WorkerId>) -> Self {
        let mut report = Self {
            steps,
            begun,
            collecting: None,
            collect_s: 0.0,
            step_sent: None,
            weight_sync_s: 0.0,
            tokens: (0, 0),
            evaluations: past.evaluations.clone(),
            rewards: Vec::new(),
            idle: Vec::new(),
            totals: Totals::default(),
            step_seconds: Vec::new(),
            last_commit: now,
            final_sha256: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            expected,
            breakers: BTreeMap::new(),
            corrected: BTreeMap::new(),
        };
        past.commits.values().for_each(|commit| report.count(commit));
        report
    }

    /// The run is busy with something else.
    pub(super) fn phase(&mut self, now: Instant, phase: RunPhase) {
        match phase {
            RunPhase::Collecting => self.collecting = self.collecting.or(Some(now)),
            _ => {
                if let Some(since) = self.collecting.take() {
                    self.collect_s += now.saturating_duration_since(since).as_secs_f64();
                }
            }
        }
    }

    /// A step's groups went to the learner.
    pub(super) fn step_sent(&mut self, now: Instant, trained: u64, sampled: u64) {
        self.step_sent = Some(now);
        self.tokens = (trained, sampled);
    }

    /// The learner made a version's weights visible to the rollout workers of its host.
    pub(super) fn published(&mut self, publish_us: u64) {
        self.weight_sync_s += publish_us as f64 / 1e6;
    }

    /// Adds what only the coordinator knows to a commit, before it is recorded.
    pub(super) fn enrich(&mut self, now: Instant, state: &mut ControllerState, groups: usize, commit: &mut StepCommit) {
        let step_s = self.step_sent.take().map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        let (trained, sampled) = self.tokens;
        let collected = std::mem::take(&mut self.collect_s);
        // Groups are generated all the time in an asynchronous run.
        let since = now.saturating_duration_since(self.last_commit).as_secs_f64();
        let collect_s = if state.plan().is_asynchronous() { since } else { collected };
        let elapsed_s = now.saturating_duration_since(self.begun).as_secs_f64();
        let own = [
            (ELAPSED_S, elapsed_s),
            (COLLECT_S, collect_s),
            (STEP_S, step_s),
            (WEIGHT_SYNC_S, std::mem::take(&mut self.weight_sync_s)),
            (SAMPLED_TOKENS, sampled as f64),
            (TRAINED_TOKENS, trained as f64),
        ];
        for (name, value) in own {
            commit.metrics.push((name.to_owned(), value));
        }
        if let Some((learner, rollout)) = state.take_idleness() {
            commit.metrics.extend([(LEARNER_IDLE, learner), (ROLLOUT_IDLE, rollout)].map(|(n, v)| (n.to_owned(), v)));
        }
        // As they are once this step is counted.
        let (accounts, groups) = (state.accounts(), groups as u64);
        let mut count = |name: &str, value: u64| commit.metrics.push((format!("groups/{name}"), value as f64));
        count("generated", accounts.generated);
        count("consumed", accounts.consumed + groups);
        count("in_flight", accounts.in_flight().saturating_sub(groups));
        count("requeued", accounts.requeued);
        count("dropped", accounts.dropped.values().sum());
        accounts.dropped.iter().for_each(|(reason, n)| count(&format!("dropped/{reason}"), *n));
    }

    /// A step is committed.
    pub(super) fn committed(&mut self, now: Instant, commit: &StepCommit) -> StepProgress {
        self.count(commit);
        self.step_seconds.push(now.saturating_duration_since(self.last_commit).as_secs_f64());
        self.last_commit = now;
        let get = |name: &str| metric(commit, name);
        let recent = &self.step_seconds[self.step_seconds.len().saturating_sub(10)..];
        let pace = recent.iter().sum::<f64>() / recent.len() as f64;
        let left = self.steps.saturating_sub(commit.step.0);
        let part = |(name, value): &(String, f64)| {
            let name = name.strip_prefix("rewards/")?.strip_suffix("/mean")?;
            Some((name.to_owned(), *value))
        };
        StepProgress {
            step: commit.step.0,
            steps: self.steps,
            reward: get(REWARD).unwrap_or(f64::NAN),
            reward_parts: commit.metrics.iter().filter_map(part).collect(),
            rollout_tokens_per_s: rate(get(SAMPLED_TOKENS), get(COLLECT_S)),
            train_tokens_per_s: rate(get(TRAINED_TOKENS), get(STEP_S)),
            staleness: get("staleness/max").unwrap_or(0.0) as u64,
            elapsed_s: now.saturating_duration_since(self.begun).as_secs_f64(),
            eta_s: Some(pace * left as f64),
            metrics: commit.metrics.clone(),
        }
    }

    /// An evaluation round is recorded.
    pub(super) fn evaluated(&mut self, report: EvaluationReport) {
        self.evaluations.push(report);
    }

    /// SHA-256 of a version's weights became known.
    pub(super) fn sha256(&mut self, version: PolicyVersion, sha256: String) {
        if !sha256.is_empty() {
            self.final_sha256.insert(version, sha256);
        }
    }

    /// A worker connected.
    pub(super) fn seen(&mut self, worker: WorkerId, incarnation: u32, pid: u32) {
        let entry = self.incarnations.entry(worker).or_insert((incarnation, pid));
        *entry = (entry.0.max(incarnation), pid);
    }

    /// A reward worker said how its circuit breakers stand. Returns those that have changed; closed is how they begin.
    pub(super) fn breakers(&mut self, worker: WorkerId, now: Vec<(String, String)>) -> Vec<(String, String)> {
        let before = self.breakers.insert(worker, now.iter().cloned().collect()).unwrap_or_default();
        let was = |grader: &str| before.get(grader).map_or("closed", String::as_str);
        now.into_iter().filter(|(grader, state)| was(grader) != state).collect()
    }

    /// A worker's connection ended; the breakers of the next one are closed.
    pub(super) fn left(&mut self, worker: WorkerId) {
        self.breakers.remove(&worker);
        self.corrected.remove(&worker);
    }

    /// A worker samples with these numerics, which are not the run's.
    pub(super) fn corrects(&mut self, worker: WorkerId, numerics: String) {
        self.corrected.insert(worker, numerics);
    }

    /// Whether a worker was ever connected.
    fn known(&self, worker: WorkerId) -> Option<(u32, u32)> {
        self.incarnations.get(&worker).copied()
    }

    /// Everyone as they are now.
    pub(super) fn actors(&self, state: &ControllerState, coordinator: (u32, u32)) -> Vec<ActorStatus> {
        let (pid, restarts) = coordinator;
        let finished = state.phase() == RunPhase::Finished;
        let mut actors = vec![ActorStatus {
            name: Role::Coordinator.to_string() + "-0",
            role: Role::Coordinator,
            index: 0,
            pid: Some(pid),
            state: if finished { ActorState::Stopped } else { ActorState::Working },
            restarts,
            lease: None,
            version: Some(state.version().0),
            progress: state.commits().len() as u64,
            breakers: BTreeMap::new(),
            numerics: None,
        }];
        // Those the run began with, and whoever else is there.
        let there = state.members().iter().map(|(_, member)| member.worker);
        let everyone: BTreeSet<WorkerId> = self.expected.iter().copied().chain(there).collect();
        let beyond = |w: &WorkerId| w.role == Role::Rollout && w.index >= state.plan().rollout_workers;
        for worker in &everyone {
            let known = self.known(*worker);
            let (conn, member) = state.members().of(*worker).unzip();
            if member.is_none() && beyond(worker) {
                continue;
            }
            let status = match (member, known) {
                (Some(m), _) => member_state(state, conn, m),
                (None, _) if finished => ActorState::Stopped,
                (None, Some(_)) => ActorState::Lost,
                (None, None) => ActorState::Starting,
            };
            actors.push(ActorStatus {
                name: worker.to_string(),
                role: worker.role,
                index: worker.index,
                pid: member.map(|m| m.pid).or(known.map(|(_, pid)| pid)),
                state: status,
                restarts: known.map_or(0, |(incarnation, _)| incarnation),
                lease: conn.and_then(|conn| in_hand(state, conn)),
                version: member.and_then(|m| m.version).or_else(|| learner_version(state, *worker)).map(|v| v.0),
                progress: member.map_or(0, |m| m.progress),
                breakers: self.breakers.get(worker).cloned().unwrap_or_default(),
                numerics: self.corrected.get(worker).cloned(),
            });
        }
        actors
    }

    /// `status.json`.
    pub(super) fn status(
        &self,
        state: &ControllerState,
        full_disk: Option<FullDisk>,
        coordinator: (u32, u32),
        (now, updated_ms): (Instant, u64),
    ) -> RunStatus {
        RunStatus {
            phase: state.phase(),
            epoch: state.epoch().0,
            step: state.version().0,
            steps: self.steps,
            updated_ms,
            elapsed_s: now.saturating_duration_since(self.begun).as_secs_f64(),
            groups: self.groups(state),
            full_disk,
            actors: self.actors(state, coordinator),
        }
    }

    /// `summary.json`.
    pub(super) fn summary(
        &self,
        now: Instant,
        paths: &RunPaths,
        state: &ControllerState,
        finished: bool,
        own: u32,
    ) -> LaunchReport {
        let last = state.version();
        let round = |step: u64, greedy: bool| self.evaluations.iter().find(|e| e.step == step && e.greedy == greedy);
        let reward = |step, greedy| round(step, greedy).map(|e| e.reward);
        let end = (last.0 > 0).then_some(last.0);
        let example = |step| [true, false].into_iter().find_map(|greedy| round(step, greedy)?.example.clone());
        let parts = |step| round(step, false).or(round(step, true)).map(|e| e.parts.clone()).unwrap_or_default();
        let after: BTreeMap<String, f64> = end.map(parts).unwrap_or_default().into_iter().collect();
        let recorded = state.commits().last_key_value().map(|(_, c)| c.weights_sha256.clone()).filter(|s| !s.is_empty());
        LaunchReport {
            run_dir: paths.root().to_owned(),
            steps: last.0,
            reward_first5: mean(&self.rewards[..self.rewards.len().min(5)]),
            reward_last5: mean(&self.rewards[self.rewards.len().saturating_sub(5)..]),
            heldout_before: reward(0, false),
            heldout_after: end.and_then(|step| reward(step, false)),
            heldout_greedy_before: reward(0, true),
            heldout_greedy_after: end.and_then(|step| reward(step, true)),
            rollout_tokens_per_s: rate(Some(self.totals.sampled), Some(self.totals.collect_s)),
            train_tokens_per_s: rate(Some(self.totals.trained), Some(self.totals.step_s)),
            max_logprob_diff: self.totals.logp_difference,
            logprob_tokens_compared: self.totals.logp_tokens as u64,
            weights_sha256: recorded.or_else(|| self.final_sha256.get(&last).cloned()).unwrap_or_default(),
            restarts: self.incarnations.values().map(|(n, _)| u64::from(*n)).sum::<u64>() + u64::from(own),
            wall_s: now.saturating_duration_since(self.begun).as_secs_f64(),
            finished,
            example_before: example(0),
            example_after: end.and_then(example),
            heldout_rise: round(0, false)
                .zip(end.and_then(|step| round(step, false)))
                .and_then(|(b, a)| rise(&b.per_prompt, &a.per_prompt)),
            groups: self.groups(state),
            learner_idle: mean(&self.idle.iter().map(|(learner, _)| *learner).collect::<Vec<_>>()),
            rollout_idle: mean(&self.idle.iter().map(|(_, rollout)| *rollout).collect::<Vec<_>>()),
            staleness_max: self.totals.staleness as u64,
            heldout_parts: parts(0).into_iter().filter_map(|(n, v)| Some((n.clone(), v, *after.get(&n)?))).collect(),
        }
    }

    fn groups(&self, state: &ControllerState) -> GroupCounts {
        let accounts = state.accounts();
        GroupCounts {
            generated: accounts.generated,
            consumed: accounts.consumed,
            inexact: self.totals.inexact_groups as u64,
            in_flight: accounts.in_flight(),
            ready: state.ready_groups() as u64,
            dropped: accounts.dropped.clone(),
        }
    }

    fn count(&mut self, commit: &StepCommit) {
        let get = |name: &str| metric(commit, name).filter(|v| v.is_finite()).unwrap_or(0.0);
        let t = &mut self.totals;
        t.collect_s += get(COLLECT_S);
        t.step_s += get(STEP_S);
        t.sampled += get(SAMPLED_TOKENS);
        t.trained += get(TRAINED_TOKENS);
        t.logp_difference = t.logp_difference.max(get(LOGP_DIFFERENCE));
        t.logp_tokens += get(LOGP_TOKENS);
        t.inexact_groups += get(INEXACT_GROUPS);
        t.staleness = t.staleness.max(get("staleness/max"));
        self.idle.extend(metric(commit, LEARNER_IDLE).zip(metric(commit, ROLLOUT_IDLE)));
        self.rewards.extend(metric(commit, REWARD));
    }
}

/// A dialogue of an evaluation round to show.
pub(super) fn example(prompt: u64, turns: &[cohort_protocol::Turn], reward: f64) -> ExampleDialogue {
    ExampleDialogue { prompt, turns: turns.to_vec(), reward }
}

fn member_state(state: &ControllerState, conn: Option<ConnId>, member: &crate::controller::membership::Member) -> ActorState {
    let learner_busy = learner_request(state, member.worker).is_some();
    if member.swap.is_some() || matches!(state.phase(), RunPhase::Loading) && learner_busy {
        ActorState::Loading
    } else if !member.load.is_empty() || learner_busy && conn.is_some() {
        ActorState::Working
    } else {
        ActorState::Idle
    }
}

fn in_hand(state: &ControllerState, conn: ConnId) -> Option<String> {
    let member = state.members().get(conn)?;
    if member.worker.role == Role::Learner {
        return learner_request(state, member.worker).map(|request| request.to_string());
    }
    let first = member.load.first()?;
    let mut text = match state.leased_attempt(first) {
        Some(attempt) if member.worker.role == Role::Rollout => format!("{first} attempt {attempt}"),
        _ => first.to_string(),
    };
    if member.load.len() > 1 {
        text.push_str(&format!(" and {} more", member.load.len() - 1));
    }
    Some(text)
}

fn learner_version(state: &ControllerState, worker: WorkerId) -> Option<PolicyVersion> {
    worker.is_lead().then(|| state.learner_version()).flatten()
}

/// What a learner rank works on: followers have their part in steps alone.
fn learner_request(state: &ControllerState, worker: WorkerId) -> Option<Request> {
    let request = state.learner_request().filter(|_| worker.role == Role::Learner)?;
    (worker.is_lead() || matches!(request, Request::Step(_) | Request::Replay(_))).then_some(request)
}

fn metric(commit: &StepCommit, name: &str) -> Option<f64> {
    commit.metrics.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
}

fn rate(amount: Option<f64>, seconds: Option<f64>) -> f64 {
    match (amount, seconds) {
        (Some(amount), Some(seconds)) if seconds > 0.0 => amount / seconds,
        _ => 0.0,
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}
