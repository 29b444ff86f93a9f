//! Who is there, what they hold and whether they still move.
//!
//! Invariants
//! - **M1** one connection a worker: a newer one ends the older, whose events are then ignored.
//! - **M2** a worker that is silent for `silence`, or has work and stands still for `stall`, is replaced; so is one whose
//!   connection has ended and that has not come back for `silence`, if its process is still the same: it was stopped. One
//!   that an earlier coordinator had, and that this one has not seen, has twice as long: it must find out first.
//! - **M3** losses and replacements of a worker are bounded: [`MAX_LOSSES`] at its work, [`MAX_REPLACEMENTS`] of them by
//!   this coordinator, with nothing done in between, end the run.
use super::command::Command;
use super::event::{ConnId, Work};
use super::plan::Deadlines;
use super::roster::{Roster, Seat};
use super::watch::Watch;
use cohort_protocol::{PolicyVersion, Role, WorkerId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Losses in a row after which the run stops: a group, or a request, that kills whoever takes it must not do so for ever,
/// and thirty in a row are no accident.
pub const MAX_LOSSES: u32 = 30;
/// Replacements in a row of a worker that hangs, after which the run stops: the next one would hang as well.
pub const MAX_REPLACEMENTS: u32 = 5;

/// What has happened to a worker since it last got something done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Setbacks {
    losses: u32,
    replacements: u32,
}

/// A connected worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub worker: WorkerId,
    /// Which start of it.
    pub incarnation: u32,
    /// Its process.
    pub pid: u32,
    /// Version it holds.
    pub version: Option<PolicyVersion>,
    /// Version and slot it was told to take and has not confirmed.
    pub swap: Option<(PolicyVersion, u32)>,
    /// Swaps that failed in a row.
    pub swap_failures: u32,
    /// After a failed swap: not told of weights before this.
    pub swap_after: Option<Instant>,
    /// Groups it takes at once; 0 until it says so.
    pub capacity: u16,
    /// What it works on.
    pub load: BTreeSet<Work>,
    /// Groups it has delivered over this connection.
    pub delivered: u64,
    /// Its progress counter.
    pub progress: u64,
    heard: Instant,
    moved: Instant,
    /// Where it stands in the [`Watch`].
    watched: Instant,
}

impl Member {
    /// When it last got or returned work, or its progress counter changed.
    #[must_use]
    pub fn moved(&self) -> Instant {
        self.moved
    }
}

/// All connected workers.
#[derive(Debug, Clone, Default)]
pub struct Membership {
    members: BTreeMap<ConnId, Member>,
    names: BTreeMap<WorkerId, ConnId>,
    roles: BTreeSet<(Role, ConnId)>,
    roster: Roster,
    watch: Watch,
    setbacks: BTreeMap<WorkerId, Setbacks>,
    /// Whose connection has ended: when, which, and whose process it was. For as long as `silence` at most.
    absent: BTreeMap<WorkerId, (Instant, ConnId, u32)>,
}

impl Membership {
    /// Takes a worker in. Returns the connection it replaces, whose work is lost.
    pub fn join(&mut self, now: Instant, conn: ConnId, worker: WorkerId, incarnation: u32, pid: u32) -> Option<ConnId> {
        let older = self.of(worker).map(|(conn, _)| conn);
        self.absent.remove(&worker);
        self.remove(conn);
        let member = Member {
            worker,
            incarnation,
            pid,
            version: None,
            swap: None,
            swap_failures: 0,
            swap_after: None,
            capacity: 0,
            load: BTreeSet::new(),
            delivered: 0,
            progress: 0,
            heard: now,
            moved: now,
            watched: now,
        };
        self.roster.update(conn, None, Some(Seat::of(&member)));
        self.roles.insert((worker.role, conn));
        self.names.insert(worker, conn);
        self.watch.put(now, conn);
        self.members.insert(conn, member);
        older
    }

    /// Lets a worker go.
    pub fn leave(&mut self, now: Instant, conn: ConnId) -> Option<Member> {
        let member = self.remove(conn)?;
        if self.of(member.worker).is_none() {
            self.absent.insert(member.worker, (now, conn, member.pid));
        }
        Some(member)
    }

    /// Workers that an earlier coordinator had must come back within twice `silence`.
    pub fn expect(&mut self, now: Instant, silence: Duration, workers: Vec<(WorkerId, u32)>) {
        for (worker, pid) in workers {
            if self.of(worker).is_none() {
                self.absent.entry(worker).or_insert((now + silence, ConnId(0), pid));
            }
        }
    }

    fn remove(&mut self, conn: ConnId) -> Option<Member> {
        let member = self.members.remove(&conn)?;
        self.roster.update(conn, Some(Seat::of(&member)), None);
        self.roles.remove(&(member.worker.role, conn));
        self.watch.take_off(member.watched, conn);
        // A newer connection of the same worker keeps the name.
        if self.names.get(&member.worker) == Some(&conn) {
            self.names.remove(&member.worker);
        }
        Some(member)
    }

    /// Orders, once each, the replacement of everyone who has not come back.
    pub fn miss(&mut self, now: Instant, silence: Duration, out: &mut Vec<Command>) {
        self.absent.retain(|&worker, &mut (since, conn, pid)| {
            let away = now.saturating_duration_since(since);
            if away > silence && !planted!(SilentKept) {
                let why =
                    format!("{worker} has not come back for {:.1} s (limit {:.1} s)", away.as_secs_f64(), silence.as_secs_f64());
                out.push(Command::Replace { worker, pid, conn, why });
            }
            away <= silence
        });
    }

    /// By connection.
    #[must_use]
    pub fn get(&self, conn: ConnId) -> Option<&Member> {
        self.members.get(&conn)
    }

    /// Changes a member, if it is there; all that is looked for by follows.
    pub fn change<R>(&mut self, conn: ConnId, change: impl FnOnce(&mut Member) -> R) -> Option<R> {
        let member = self.members.get_mut(&conn)?;
        let before = Seat::of(member);
        let result = change(member);
        self.roster.update(conn, Some(before), Some(Seat::of(member)));
        Some(result)
    }

    /// By name.
    #[must_use]
    pub fn of(&self, worker: WorkerId) -> Option<(ConnId, &Member)> {
        let conn = *self.names.get(&worker)?;
        self.get(conn).map(|member| (conn, member))
    }

    /// All of a role, in the order they connected.
    pub fn role(&self, role: Role) -> impl Iterator<Item = (ConnId, &Member)> {
        let conns = self.roles.range((role, ConnId(0))..=(role, ConnId(u64::MAX)));
        conns.filter_map(|&(_, conn)| self.get(conn).map(|member| (conn, member)))
    }

    /// Everyone.
    pub fn iter(&self) -> impl Iterator<Item = (ConnId, &Member)> {
        self.members.iter().map(|(conn, m)| (*conn, m))
    }

    /// It was heard of. `false`: it is not there.
    pub fn heard(&mut self, now: Instant, conn: ConnId) -> bool {
        self.members.get_mut(&conn).map(|member| member.heard = now).is_some()
    }

    /// A beat: progress moves the stall deadline.
    pub fn beat(&mut self, now: Instant, conn: ConnId, progress: u64) {
        if let Some(member) = self.members.get_mut(&conn) {
            member.heard = now;
            if member.progress != progress {
                member.progress = progress;
                member.moved = now;
            }
        }
    }

    /// It got or returned work: the stall deadline begins anew.
    pub fn moved(&mut self, now: Instant, conn: ConnId) {
        if let Some(member) = self.members.get_mut(&conn) {
            member.moved = now;
        }
    }

    /// It got something done: its losses so far are forgiven.
    pub fn achieved(&mut self, conn: ConnId) {
        if let Some(member) = self.members.get(&conn) {
            self.setbacks.remove(&member.worker);
        }
    }

    /// Counts a loss of a worker that was needed. Returns why the run cannot go on, if it cannot.
    pub fn count_loss(&mut self, worker: WorkerId, why: &str) -> Option<String> {
        let losses = &mut self.setbacks.entry(worker).or_default().losses;
        *losses += 1;
        (*losses >= MAX_LOSSES).then(|| {
            format!("{worker} was lost {losses} times in a row at its work and got nothing done in between; the last time: {why}")
        })
    }

    /// Counts a replacement of a worker that was needed. Returns why the run cannot go on, if it cannot.
    pub fn count_replacement(&mut self, worker: WorkerId, why: &str) -> Option<String> {
        let replacements = &mut self.setbacks.entry(worker).or_default().replacements;
        *replacements += 1;
        (*replacements >= MAX_REPLACEMENTS).then(|| {
            format!("{worker} was replaced {replacements} times in a row and got nothing done in between; the last time: {why}")
        })
    }

    /// Whom to give the next group of `role`: room, then the shortest load, the fewest deliveries, the lowest name. Whether
    /// it is `fit` may depend on its version, and on whether it is taking another.
    #[must_use]
    pub fn choose(&self, role: Role, share: usize, fit: impl Fn(Option<PolicyVersion>, bool) -> bool) -> Option<ConnId> {
        self.roster.choose(role, share, fit)
    }

    /// Rollout workers that may be told of `version` because they have another, in the order they connected; those that
    /// have work only if `busy`.
    #[must_use]
    pub fn without(&self, version: PolicyVersion, busy: bool) -> Vec<ConnId> {
        self.roster.without(version, busy)
    }

    /// Whether a rollout worker may be reading a slot.
    #[must_use]
    pub fn reads(&self, slot: u32) -> bool {
        self.roster.reads(slot)
    }

    /// Rollout workers that have work.
    #[must_use]
    pub fn working_rollouts(&self) -> usize {
        self.roster.working()
    }

    /// Orders the replacement of everyone who is silent or stands still. `working` says who is expected to move: whoever
    /// begins to be must have [`Membership::moved`] then.
    pub fn check(
        &mut self,
        now: Instant,
        deadlines: &Deadlines,
        working: impl Fn(ConnId, &Member) -> bool,
        out: &mut Vec<Command>,
    ) {
        for conn in self.watch.due(now) {
            let Some(member) = self.members.get_mut(&conn) else { continue };
            let works = working(conn, member);
            out.extend(late(now, deadlines, works, member).map(|why| Command::Replace {
                worker: member.worker,
                pid: member.pid,
                conn,
                why,
            }));
            // One that has nothing to do moves when it gets something: it cannot be late with it before this.
            let moved = if works { member.moved } else { now };
            member.watched = (member.heard + deadlines.silence).min(moved + deadlines.stall);
            self.watch.put(member.watched, conn);
        }
    }

    /// What the indexes must say, from a walk over all members.
    #[cfg(test)]
    pub(super) fn assert_indexed(&self) {
        let mut plain = Roster::default();
        self.members.iter().for_each(|(conn, member)| plain.update(*conn, None, Some(Seat::of(member))));
        assert_eq!(self.roster, plain);
        let names: BTreeMap<WorkerId, ConnId> = self.members.iter().map(|(conn, m)| (m.worker, *conn)).collect();
        assert_eq!(self.names, names);
        assert_eq!(self.roles, self.members.iter().map(|(conn, m)| (m.worker.role, *conn)).collect());
    }
}

/// Why a member is to be replaced, if it is.
fn late(now: Instant, deadlines: &Deadlines, works: bool, member: &Member) -> Option<String> {
    let silent = now.saturating_duration_since(member.heard);
    let still = now.saturating_duration_since(member.moved);
    let (worker, seconds) = (member.worker, Duration::as_secs_f64);
    if planted!(SilentKept) {
        None
    } else if silent > deadlines.silence {
        Some(format!("{worker} said nothing for {:.1} s (limit {:.1} s)", seconds(&silent), seconds(&deadlines.silence)))
    } else if still > deadlines.stall && works {
        Some(format!("{worker} made no progress for {:.0} s (limit {:.0} s)", seconds(&still), seconds(&deadlines.stall)))
    } else {
        None
    }
}
