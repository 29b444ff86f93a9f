//! A disk without room: the run pauses, looks again at intervals, and is given up when its patience is at an end.
//!
//! Invariants
//! - **F1** while anything waits for room no lease goes out; what has begun is finished, workers stay.
//! - **F2** patience counts from the first refusal of a thing to its next success, whatever else succeeds meanwhile. A run that
//!   was asked to stop has none.
//! - **F3** what was refused is asked for again and is not a failure: tries are counted only where nobody waits.
use super::command::Command;
use super::event::Refused;
use super::state::ControllerState;
use cohort_protocol::messages::learner::Fault;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Before a checkpoint is tried again; doubles with each refusal, as a try writes until the disk is full.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest such wait.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Something that waits for room on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// When it was refused first.
    pub since: Instant,
    /// How often it was refused.
    pub tries: u32,
    /// What the run ends with where nobody makes room.
    error: String,
}

/// Everything that waits.
#[derive(Debug, Clone, Default)]
pub(super) struct Room(BTreeMap<Refused, Waiting>);

impl Room {
    /// Whether anything waits.
    pub(super) fn is_lacking(&self) -> bool {
        !self.0.is_empty()
    }

    /// What has waited longest.
    pub(super) fn longest(&self) -> Option<(&Refused, &Waiting)> {
        self.0.iter().min_by_key(|(_, waiting)| waiting.since)
    }

    /// Counts a refusal; the first of a thing is told. Gives how often it was refused.
    fn refused(&mut self, now: Instant, what: Refused, error: String, patience: Duration, out: &mut Vec<Command>) -> u32 {
        if !self.0.contains_key(&what) {
            out.push(Command::NoRoom { what: what.clone(), patience });
        }
        let waiting = self.0.entry(what).or_insert(Waiting { since: now, tries: 0, error: String::new() });
        (waiting.tries, waiting.error) = (waiting.tries + 1, error);
        waiting.tries
    }

    /// Something was written.
    fn took(&mut self, now: Instant, is: impl Fn(&Refused) -> bool, out: &mut Vec<Command>) {
        self.0.retain(|what, waiting| {
            if is(what) {
                let waited = now.saturating_duration_since(waiting.since);
                out.push(Command::RoomAgain { what: what.clone(), waited });
            }
            !is(what)
        });
    }
}

impl ControllerState {
    /// What has waited longest for room on a disk, if anything does.
    #[must_use]
    pub fn lacks_room(&self) -> Option<(&Refused, &Waiting)> {
        self.room.longest()
    }

    /// The ledger was refused; whoever writes it tries again.
    pub(super) fn on_no_room(&mut self, now: Instant, what: Refused, error: String, out: &mut Vec<Command>) {
        self.room.refused(now, what, error, self.plan.deadlines.full_disk, out);
        self.give_up_waiting(now, out);
    }

    /// The ledger has taken something.
    pub(super) fn ledger_has_room(&mut self, now: Instant, out: &mut Vec<Command>) {
        self.room.took(now, |what| matches!(what, Refused::Ledger(_)), out);
    }

    /// A checkpoint stands.
    pub(super) fn checkpoints_have_room(&mut self, now: Instant, out: &mut Vec<Command>) {
        self.room.took(now, |what| *what == Refused::Checkpoint, out);
    }

    /// A checkpoint was refused: it is asked for again after a wait. `false`: nobody waits for room, it is a failure like others.
    pub(super) fn await_room_for_checkpoint(&mut self, now: Instant, error: &str, out: &mut Vec<Command>) -> bool {
        let patience = self.plan.deadlines.full_disk;
        if patience.is_zero() || self.is_draining() {
            return false;
        }
        let tries = self.room.refused(now, Refused::Checkpoint, error.to_owned(), patience, out);
        self.learner.wait_until(now + LONGEST_WAIT.min(FIRST_WAIT * 2u32.saturating_pow((tries - 1).min(16))));
        true
    }

    /// Ends a run that has waited long enough.
    pub(super) fn give_up_waiting(&mut self, now: Instant, out: &mut Vec<Command>) {
        let patience = if self.is_draining() { Duration::ZERO } else { self.plan.deadlines.full_disk };
        let overdue = self.room.longest().filter(|(_, waiting)| now.saturating_duration_since(waiting.since) >= patience);
        if let Some(error) = overdue.map(|(_, waiting)| waiting.error.clone()) {
            self.fail_by(Fault::System, error, out);
        }
    }
}
