//! A result counts only of this epoch, of the newest attempt, from the worker that was asked and while it is asked for; an
//! answer of the learner to an earlier coordinator answers nothing.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::world::World;
use cohort_cluster::controller::{Command, Event, Work};
use cohort_protocol::{AttemptId, Epoch};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Fencing {
    epoch: Epoch,
    /// Who was asked last for a group (false) or its scores (true): attempt and connection. `None`: taken back.
    asked: BTreeMap<(Work, bool), Option<(AttemptId, u64)>>,
    /// The learner has a request of this epoch.
    open: bool,
    /// The last event was an answer to another epoch, while that request was open.
    foreign: Option<Epoch>,
}

impl Invariant for Fencing {
    fn name(&self) -> &'static str {
        "fencing"
    }

    fn see(&mut self, _world: &World, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Began { epoch, .. } => *self = Self { epoch: *epoch, ..Self::default() },
            Seen::Ordered(Command::Lease { conn, work, attempt, .. }) => {
                self.asked.insert((*work, false), Some((*attempt, conn.0)));
            }
            Seen::Ordered(Command::Score { conn, work, attempt, .. }) => {
                self.asked.insert((*work, true), Some((*attempt, conn.0)));
            }
            Seen::Kept { work, wire, epoch, attempt, scores } => {
                holds(*epoch == self.epoch, || format!("{work}: a result of epoch {epoch} counts in epoch {}", self.epoch))?;
                let asked = self.asked.insert((*work, *scores), None).flatten();
                holds(asked == Some((*attempt, *wire)), || {
                    format!("{work}: attempt {attempt} over {wire} counts, asked was {asked:?} (attempt, connection)")
                })?;
            }
            Seen::Heard(event) => self.heard(event),
            Seen::Ordered(Command::Load { .. } | Command::Step { .. } | Command::Publish { .. } | Command::Checkpoint { .. }) => {
                let foreign = self.foreign.take();
                holds(foreign.is_none(), || format!("an answer to epoch {foreign:?} ends a request of epoch {}", self.epoch))?;
                self.open = true;
            }
            _ => {}
        }
        Ok(())
    }
}

impl Fencing {
    fn heard(&mut self, event: &Event) {
        self.foreign = None;
        let epoch = match event {
            Event::Loaded { epoch, .. }
            | Event::Stepped { epoch, .. }
            | Event::Published { epoch, .. }
            | Event::CheckpointSaved { epoch, .. }
            | Event::LearnerFailed { epoch, .. } => *epoch,
            Event::LearnerReady { .. }
            | Event::CheckpointDamaged { .. }
            | Event::Connected { .. }
            | Event::Disconnected { .. } => {
                self.open = false;
                return;
            }
            _ => return,
        };
        if epoch == self.epoch {
            self.open = false;
        } else if self.open {
            self.foreign = Some(epoch);
        }
    }
}
