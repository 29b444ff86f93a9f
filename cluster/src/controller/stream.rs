//! An asynchronous run (`max_staleness` above 0): one wave that never closes. Groups are begun ahead of the learner and
//! consumed as they become complete; evaluation rounds share the wave.
//!
//! Invariants
//! - **A1** a step consumes only groups whose every token is at most `max_staleness` versions older than its base; the intent
//!   records which, in which order.
//! - **A2** no more groups are under way than [`staleness::ahead`] says: none is begun that the steps before it would make
//!   too stale, were groups consumed in the order they were begun.
//! - **A3** a group that was overtaken until it is too stale is dropped with its reason, and its prompt is begun again as
//!   another group, in one transaction.
//! - **A4** a step is not decided upon while rounds of its base version are due: they are all of one version.
use super::command::{Command, Fact};
use super::event::Work;
use super::staleness::{self, admissible};
use super::state::{ControllerState, Then};
use super::wave::{Generation, Group, Scoring, Wave, WaveKind};
use cohort_protocol::{GroupId, PolicyVersion, StepId, StepIntent};

/// The reason of A3, in the ledger and in `groups/dropped/stale`.
pub const STALE: &str = "stale";

impl ControllerState {
    /// Does what the stream allows now.
    pub(super) fn advance_stream(&mut self, out: &mut Vec<Command>) {
        let version = self.version();
        if self.wave.is_none() && (version.0 < self.plan.steps || !self.rounds_due().is_empty()) {
            self.wave = Some(Wave::new(WaveKind::Stream(Vec::new())));
        }
        self.advance_rounds(out);
        self.fill_stream();
        self.shed_stale(out);
        self.propose_step(out);
        let over = version.0 >= self.plan.steps && self.rounds_due().is_empty();
        if over && self.wave.as_ref().is_some_and(Wave::is_empty) {
            self.wave = None;
        }
    }

    /// Begins the rounds that are due, and records those that are complete.
    fn advance_rounds(&mut self, out: &mut Vec<Command>) {
        let due = self.rounds_due();
        let in_hand = self.intents.contains_key(&StepId(self.version().0 + 1));
        let Some(wave) = &mut self.wave else { return };
        let WaveKind::Stream(rounds) = &mut wave.kind else { return };
        if rounds.is_empty() && !due.is_empty() && !in_hand {
            rounds.clone_from(&due);
            Self::add_prompts(&due, wave);
        }
        let WaveKind::Stream(rounds) = &wave.kind else { return };
        if !rounds.is_empty() && !wave.closing && wave.rounds_complete() {
            let rounds = rounds.clone();
            self.close_evaluation(&rounds, out);
        }
    }

    /// A2: first groups left in flight by an earlier incarnation, then new ones.
    fn fill_stream(&mut self) {
        let decided = self.intents.last_key_value().map_or(0, |(step, _)| step.0) + u64::from(self.deciding);
        let ahead = staleness::ahead(self.version(), decided, &self.plan);
        let live = |wave: &Wave| wave.agenda().training().0 as u64;
        while self.wave.as_ref().is_some_and(|wave| live(wave) < ahead || self.has_open_groups()) {
            let (id, group) = self.next_training_group();
            if let Some(wave) = &mut self.wave {
                wave.insert(Work::train(id), group);
            }
        }
    }

    /// A1: the next step takes the complete groups whose tokens are oldest.
    fn propose_step(&mut self, out: &mut Vec<Command>) {
        let base = self.version();
        let step = StepId(base.0 + 1);
        let decided = self.intents.contains_key(&step) || self.deciding;
        if base.0 >= self.plan.steps || decided || !self.rounds_due().is_empty() {
            return;
        }
        let count = self.plan.groups_per_step as usize;
        let Some(wave) = self.wave.as_mut().filter(|wave| wave.agenda().training().1 >= count) else { return };
        let scored = wave.agenda().scored_training().filter_map(|work| wave.get(&work).map(|group| (work, group)));
        let mut ready: Vec<(PolicyVersion, Work, String)> =
            scored.filter_map(|(work, group)| complete(work, group, base, self.plan.max_staleness)).collect();
        if ready.len() < count {
            return;
        }
        ready.sort();
        ready.truncate(count);

        let mut intent = StepIntent { step, base, groups: Vec::new(), digests: Vec::new() };
        for (_, work, digest) in ready {
            wave.remove(&work);
            intent.groups.push(work.group);
            intent.digests.push(digest);
        }
        self.record(vec![Fact::Intent(intent.clone())], Then::Intent(intent), out);
    }

    /// A3, for every group that no step could take any more.
    fn shed_stale(&mut self, out: &mut Vec<Command>) {
        let version = self.version();
        let floor = PolicyVersion(version.0.saturating_sub(self.plan.max_staleness));
        let stale = self.wave.as_ref().map(|wave| wave.agenda().older_than(floor)).unwrap_or_default();
        for (work, oldest) in stale {
            let why = format!("its oldest token is of version {oldest}, the policy is at {version}");
            self.begin_again(work, &why, out);
        }
    }

    /// A3: drops a group as too stale and begins its prompt again.
    pub(super) fn begin_again(&mut self, work: Work, why: &str, out: &mut Vec<Command>) {
        let Some(group) = self.remove_group(work, out) else { return };
        let fresh = GroupId(self.take_group_number());
        let mut again = Group::new(group.cursor, group.samples);
        again.opened = true;
        if let Some(wave) = self.wave.as_mut().filter(|_| !planted!(PromptLost)) {
            wave.insert(Work::train(fresh), again);
        }
        self.accounts.dropped(STALE);
        self.accounts.requeued += 1;
        self.accounts.generated += 1;
        out.push(Command::Notice(format!("{work} is dropped ({STALE}): {why}; its prompt is begun again as group {fresh}")));
        let dropped = Fact::Dropped { group: work.group, reason: STALE, detail: why.to_owned() };
        self.record(vec![dropped, Fact::Opened { group: fresh, cursor: group.cursor }], Then::Nothing, out);
    }

    /// Takes a group out of the wave and off everyone's hands.
    pub(super) fn remove_group(&mut self, work: Work, out: &mut Vec<Command>) -> Option<Group> {
        let group = self.wave.as_mut()?.remove(&work)?;
        if let Generation::Leased { conn, .. } = group.generation {
            out.push(Command::CancelLease { conn, work, attempt: group.lease_attempt });
        }
        for conn in group.holders() {
            self.members.change(conn, |member| member.load.remove(&work));
        }
        out.push(Command::Forget(vec![work]));
        Some(group)
    }
}

/// A training group that a step from `base` may take: how old it is, its name and its digest.
fn complete(work: Work, group: &Group, base: PolicyVersion, max_staleness: u64) -> Option<(PolicyVersion, Work, String)> {
    let (Generation::Done(made), Scoring::Done(scores)) = (&group.generation, &group.scoring) else { return None };
    // A group from weights that are not committed yet waits for them.
    let fit = work.is_training() && admissible(base, made.versions, max_staleness);
    fit.then(|| (made.versions.map_or(base, |(oldest, _)| oldest), work, scores.digest.clone()))
}
