//! Bugs that the simulation (`tests/tests/sim/`) must find, each behind a switch. They exist only with the cargo feature
//! `planted`, which no build for users has; without it `planted!` is `false` and nothing of this file is compiled.

/// Whether a bug is planted; in a build for users it never is.
#[cfg(not(feature = "planted"))]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

/// Whether this thread has the bug planted.
#[cfg(feature = "planted")]
macro_rules! planted {
    ($bug:ident) => {
        $crate::planted::is($crate::planted::Planted::$bug)
    };
}

#[cfg(feature = "planted")]
pub use bugs::{Planted, is, plant};

#[cfg(feature = "planted")]
mod bugs {
    use std::cell::Cell;

    thread_local! {
        static BUG: Cell<Option<Planted>> = const { Cell::new(None) };
    }

    /// Plants a bug on this thread, or takes it out again.
    pub fn plant(bug: Option<Planted>) {
        BUG.set(bug);
    }

    /// Whether this thread has the bug.
    #[must_use]
    pub fn is(bug: Planted) -> bool {
        BUG.get() == Some(bug)
    }

    /// The bugs.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Planted {
        /// Trajectories are taken under whatever attempt, from whoever made them.
        AttemptIgnored,
        /// Answers to an earlier coordinator are taken for answers to this one.
        EpochIgnored,
        /// A batch is acknowledged before it is on the disk.
        AckBeforeDurable,
        /// A lease goes out before it is on the disk.
        LeaseBeforeDurable,
        /// A slot of the weight ring is written while a worker that was told of it may be reading.
        SlotReused,
        /// A committed step that is taken again counts its groups once more.
        ReplayCounted,
        /// A new coordinator forgets the first group in flight.
        GroupForgotten,
        /// A new coordinator puts the groups of a decided step in flight again.
        IntentForgotten,
        /// A new coordinator begins counting attempts anew.
        AttemptForgotten,
        /// A group may be one version staler than configured.
        StalenessOffByOne,
        /// A group that was too stale is dropped and its prompt is not begun again.
        PromptLost,
        /// A synchronous intent names its groups in another order than that of their ids.
        IntentUnordered,
        /// The leases of a worker that is gone are kept for it.
        LeaseKept,
        /// A worker that has fallen silent is not replaced.
        SilentKept,
        /// A group is given up without a row that says so.
        DropUnrecorded,
        /// A chunk of weights counts as taken whatever its bytes are.
        ChunkUnchecked,
        /// A chunk leaves the head node though another host is taking it from there.
        HeadGivesTwice,
        /// What was handed in of a group is kept when the group is complete.
        PartsKept,
        /// Words are kept of whoever says them, whatever attempt is the newest.
        PartsUnfenced,
        /// A chunk is on its way before its hash is known.
        UnhashedGiven,
    }
}
