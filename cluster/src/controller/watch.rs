//! When whom to look at: each member once in a while, the sooner the closer it is to a deadline, instead of all at each tick.
//!
//! Invariant **N1**: no member stands here later than the first moment at which it could be late. Being heard of, or moving,
//! only makes that later, so neither needs a word here: whoever is looked at and is not late is put off again.
use super::event::ConnId;
use std::collections::BTreeSet;
use std::time::Instant;

/// Members by the moment after which they are looked at.
#[derive(Debug, Clone, Default)]
pub(super) struct Watch {
    order: BTreeSet<(Instant, ConnId)>,
}

impl Watch {
    /// A member is to be looked at once `at` is over. Whoever stood here under another moment must be taken off before.
    pub(super) fn put(&mut self, at: Instant, conn: ConnId) {
        self.order.insert((at, conn));
    }

    /// A member is gone.
    pub(super) fn take_off(&mut self, at: Instant, conn: ConnId) {
        self.order.remove(&(at, conn));
    }

    /// Takes off everyone whose moment is over, in the order they connected.
    pub(super) fn due(&mut self, now: Instant) -> Vec<ConnId> {
        let mut due = Vec::new();
        while let Some((_, conn)) = self.order.first().copied().filter(|(at, _)| *at < now) {
            self.order.pop_first();
            due.push(conn);
        }
        due.sort_unstable();
        due
    }
}
