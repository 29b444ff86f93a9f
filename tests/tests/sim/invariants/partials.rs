//! What a worker takes up of a group is a beginning of what one worker said in it, of versions that the lease may go on from, and is
//! the beginning of what it delivers; while a group is leased, words of its lease alone are kept. And every sample that is accepted is
//! one voice's from the first token to the last: each token follows from all those before it and the weights that it names, so that
//! none is lost, doubled or of somebody who said something else before.
use super::weights::Digests;
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::setting::Setting;
use crate::workers::{WHOLE, next_token};
use crate::world::World;
use cohort_cluster::controller::Work;
use cohort_cluster::ledger::Entry;
use cohort_protocol::messages::rollout::ContinuedLease;
use cohort_protocol::{AttemptId, Epoch, GroupId, LeasePurpose, PolicyVersion, SampleIx, Trajectory, TrajectoryBatch, TurnPart};
use std::collections::BTreeMap;

/// A token, and the version that said it.
type Word = (u32, PolicyVersion);
/// Who speaks: a process, under a lease.
type Speaker = (u32, Epoch, AttemptId);
/// Turns, and whether each is over.
type Said = Vec<(Vec<Word>, bool)>;

#[derive(Debug)]
pub(super) struct Partials {
    max_staleness: u64,
    /// What everybody has said of a sample.
    said: BTreeMap<(Work, SampleIx), BTreeMap<Speaker, Said>>,
    /// What leases of training groups went on from.
    taken_up: BTreeMap<(GroupId, AttemptId), Vec<TurnPart>>,
    /// Data rows of groups.
    rows: BTreeMap<GroupId, u64>,
    digests: Digests,
    committed: PolicyVersion,
}

impl Partials {
    pub(super) fn new(setting: &Setting) -> Self {
        let (said, taken_up, rows) = Default::default();
        let (digests, committed) = Default::default();
        Self { max_staleness: setting.plan.max_staleness, said, taken_up, rows, digests, committed }
    }
}

impl Invariant for Partials {
    fn name(&self) -> &'static str {
        "partials"
    }

    fn see(&mut self, world: &World, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::HandedIn { pid, key, parts } => {
                let work = Work { purpose: key.purpose, group: key.group };
                parts.iter().try_for_each(|part| {
                    let everybody = self.said.entry((work, part.sample)).or_default();
                    listen(everybody.entry((*pid, key.epoch, key.attempt)).or_default(), part)
                })
            }
            Seen::PartsKept { work, attempt } => {
                let leased = world.desk.core.as_ref().and_then(|core| core.state.leased_attempt(work));
                holds(leased.is_none_or(|leased| leased == attempt.0), || {
                    format!("{work}: words of attempt {attempt} are kept while attempt {leased:?} is leased")
                })
            }
            Seen::Continued(more) => self.continued(more),
            Seen::Durable(entries) => entries.iter().try_for_each(|entry| self.durable(entry)),
            _ => Ok(()),
        }
    }
}

impl Partials {
    fn continued(&mut self, more: &ContinuedLease) -> Result<(), String> {
        let lease = &more.lease;
        let work = Work { purpose: lease.purpose, group: lease.group };
        for part in &more.parts {
            for (version, _) in part.versions() {
                let fits = match lease.follows {
                    true => self.committed.0.saturating_sub(version.0) <= self.max_staleness,
                    false => version == lease.version,
                };
                holds(fits, || {
                    format!(
                        "{work} goes on after words of version {version}; {} is committed, the lease is for {}",
                        self.committed, lease.version
                    )
                })?;
            }
        }
        for index in 0..lease.samples {
            let sample = SampleIx(index);
            let mut taken = Said::new();
            more.parts.iter().filter(|part| part.sample == sample).try_for_each(|part| listen(&mut taken, part))?;
            let one = |said: &Said| begins(said, &taken);
            let whose = self.said.get(&(work, sample)).is_some_and(|everybody| everybody.values().any(one));
            holds(taken.is_empty() || whose, || format!("{work}, sample {index} goes on after {taken:?}, which nobody said"))?;
        }
        if lease.purpose == LeasePurpose::Train {
            self.taken_up.insert((lease.group, lease.attempt), more.parts.clone());
        }
        Ok(())
    }

    fn durable(&mut self, entry: &Entry) -> Result<(), String> {
        self.digests.note(entry);
        match entry {
            Entry::Opened { group, cursor, .. } => drop(self.rows.insert(*group, *cursor)),
            Entry::Commit(commit) => self.committed = self.committed.max(commit.version),
            Entry::Trajectories(accepted) => self.accepted(&accepted.value)?,
            _ => {}
        }
        Ok(())
    }

    fn accepted(&self, batch: &TrajectoryBatch) -> Result<(), String> {
        let (group, attempt) = (batch.group, batch.attempt);
        let row = self.rows.get(&group).copied().ok_or_else(|| format!("group {group} was never opened"))?;
        for trajectory in &batch.trajectories {
            let (sample, words) = (trajectory.sample, words(trajectory));
            holds(words.len() == WHOLE, || format!("group {group}, sample {sample} has {} tokens of {WHOLE}", words.len()))?;
            let mut before = Vec::new();
            for (at, (token, version)) in words.iter().enumerate() {
                let wanted = next_token(row, batch.purpose, sample, &before, self.digests.of(*version));
                holds(*token == wanted, || {
                    format!(
                        "group {group}/{attempt}, sample {sample}: token {at} is none that version {version} says after those before it"
                    )
                })?;
                before.push(*token);
            }
            let taken = self.taken_up.get(&(group, attempt)).into_iter().flatten().filter(|part| part.sample == sample);
            let taken: Vec<Word> = taken.flat_map(spoken).collect();
            holds(words.starts_with(&taken), || {
                format!("group {group}/{attempt}, sample {sample} went on after {taken:?} and is {words:?}")
            })?;
        }
        Ok(())
    }
}

fn spoken(part: &TurnPart) -> Vec<Word> {
    part.token_ids.0.iter().copied().zip(part.versions().map(|(version, _)| version)).collect()
}

fn words(trajectory: &Trajectory) -> Vec<Word> {
    let versions = trajectory.spans.iter().flat_map(|span| std::iter::repeat_n(span.version, span.len as usize));
    trajectory.token_ids.0.iter().copied().skip(1).zip(versions).collect()
}

/// A speaker says a part, for the first time or again.
fn listen(said: &mut Said, part: &TurnPart) -> Result<(), String> {
    let (turn, start, new) = (part.turn as usize, part.start as usize, spoken(part));
    holds(turn <= said.len() && said.iter().take(turn).all(|(_, over)| *over), || format!("turn {turn} follows {said:?}"))?;
    if turn == said.len() {
        said.push((Vec::new(), false));
    }
    let (words, over) = &mut said[turn];
    holds(start <= words.len(), || format!("turn {turn} goes on at token {start}, after {words:?}"))?;
    for (at, word) in (start..).zip(new) {
        match words.get(at) {
            Some(before) => holds(*before == word, || format!("token {at} of turn {turn} is {word:?}, it was {before:?}"))?,
            None => words.push(word),
        }
    }
    *over |= part.ended.is_some();
    Ok(())
}

/// Whether a speaker's words begin with these.
fn begins(said: &Said, taken: &Said) -> bool {
    taken.iter().enumerate().all(|(turn, (words, over))| {
        said.get(turn).is_some_and(|(all, ended)| match over {
            true => *ended && all == words,
            false => all.starts_with(words),
        })
    })
}
