//! Who is there, what they hold and whether they still move.
//!
//! Invariants
//! - **M1** one connection a worker: a newer one ends the older, whose events are then ignored.
//! - **M2** a worker that is silent for `silence`, or has work and stands still for `stall`, is replaced; so is one whose
//!   connection has ended and that has not come back for `silence`, if its process is still the same: it was stopped. One
//!   that an earlier coordinator had, and that this one has not seen, has twice as long: it must find out first.
//! - **M3** losses and replacements of a worker are bounded: [`MAX_LOSSES`] at its work, [`MAX_REPLACEMENTS`] of them by
//!   this coordinator, with nothing done in between, end the run.
use super::event::{Command, ConnId, Work};
use super::plan::Deadlines;
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
}

impl Member {
    /// Whether it takes another group, given its fair share.
    #[must_use]
    pub fn has_room(&self, share: usize) -> bool {
        self.load.len() < usize::from(self.capacity).min(share)
    }

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
    setbacks: BTreeMap<WorkerId, Setbacks>,
    /// Whose connection has ended: when, which, and whose process it was.
    absent: BTreeMap<WorkerId, (Instant, ConnId, u32)>,
}

impl Membership {
    /// Takes a worker in. Returns the connection it replaces, whose work is lost.
    pub fn join(&mut self, now: Instant, conn: ConnId, worker: WorkerId, incarnation: u32, pid: u32) -> Option<ConnId> {
        let older = self.of(worker).map(|(conn, _)| conn);
        self.absent.remove(&worker);
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
        };
        self.members.insert(conn, member);
        older
    }

    /// Lets a worker go.
    pub fn leave(&mut self, now: Instant, conn: ConnId) -> Option<Member> {
        let member = self.members.remove(&conn)?;
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

    /// By connection; notes that it was heard of.
    pub fn heard(&mut self, now: Instant, conn: ConnId) -> Option<&mut Member> {
        let member = self.members.get_mut(&conn)?;
        member.heard = now;
        Some(member)
    }

    /// By connection.
    pub fn get_mut(&mut self, conn: ConnId) -> Option<&mut Member> {
        self.members.get_mut(&conn)
    }

    /// By name.
    #[must_use]
    pub fn of(&self, worker: WorkerId) -> Option<(ConnId, &Member)> {
        self.members.iter().find(|(_, m)| m.worker == worker).map(|(conn, m)| (*conn, m))
    }

    /// All of a role, in the order they connected.
    pub fn role(&self, role: Role) -> impl Iterator<Item = (ConnId, &Member)> {
        self.members.iter().filter(move |(_, m)| m.worker.role == role).map(|(conn, m)| (*conn, m))
    }

    /// Everyone.
    pub fn iter(&self) -> impl Iterator<Item = (ConnId, &Member)> {
        self.members.iter().map(|(conn, m)| (*conn, m))
    }

    /// Everyone, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (ConnId, &mut Member)> {
        self.members.iter_mut().map(|(conn, m)| (*conn, m))
    }

    /// A beat: progress moves the stall deadline.
    pub fn beat(&mut self, now: Instant, conn: ConnId, progress: u64) {
        if let Some(member) = self.heard(now, conn)
            && member.progress != progress
        {
            member.progress = progress;
            member.moved = now;
        }
    }

    /// Work was handed over or came back: the stall deadline starts anew.
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

    /// Whom to give the next group of `role`: room, then the shortest load, the fewest deliveries, the lowest name.
    #[must_use]
    pub fn choose(&self, role: Role, share: usize, fit: impl Fn(&Member) -> bool) -> Option<ConnId> {
        self.role(role)
            .filter(|(_, m)| m.has_room(share) && fit(m))
            .min_by_key(|(_, m)| (m.load.len(), m.delivered, m.worker))
            .map(|(conn, _)| conn)
    }

    /// Orders the replacement of everyone who is silent or stands still. `working` says who is expected to move.
    pub fn check(&self, now: Instant, deadlines: &Deadlines, working: impl Fn(ConnId, &Member) -> bool, out: &mut Vec<Command>) {
        for (conn, member) in self.iter() {
            let silent = now.saturating_duration_since(member.heard);
            let still = now.saturating_duration_since(member.moved);
            let why = if planted!(SilentKept) {
                continue;
            } else if silent > deadlines.silence {
                format!(
                    "{} said nothing for {:.1} s (limit {:.1} s)",
                    member.worker,
                    silent.as_secs_f64(),
                    deadlines.silence.as_secs_f64()
                )
            } else if still > deadlines.stall && working(conn, member) {
                format!(
                    "{} made no progress for {:.0} s (limit {:.0} s)",
                    member.worker,
                    still.as_secs_f64(),
                    deadlines.stall.as_secs_f64()
                )
            } else {
                continue;
            };
            out.push(Command::Replace { worker: member.worker, pid: member.pid, conn, why });
        }
    }
}
