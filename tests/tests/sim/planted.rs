//! The simulation finds bugs: each of [`Planted`] is found within 200 seeds.
use crate::invariants::PLANTED;
use crate::setting::Setting;
use crate::world::World;
use cohort_cluster::planted::{Planted, plant};
use std::io::Write;

/// Within so many seeds.
const SEEDS: u64 = 200;

/// Plants a bug and runs seeds until something does not hold.
fn found(bug: Planted) {
    PLANTED.set(Some(bug));
    plant(Some(bug));
    let found = (0..SEEDS).find_map(|seed| {
        let ran = World::run(Setting::of(seed)).unwrap();
        ran.broken.map(|broken| (seed + 1, broken))
    });
    plant(None);
    PLANTED.set(None);
    let (seeds, broken) = found.unwrap_or_else(|| panic!("{bug:?} is not found within {SEEDS} seeds"));
    let _ = writeln!(std::io::stderr(), "{bug:?}: found after {seeds} seeds by {}: {}", broken.rule, broken.what);
}

macro_rules! each {
    ($($test:ident $bug:ident)*) => {
        $(#[test]
        fn $test() {
            found(Planted::$bug);
        })*
    };
}

each! {
    results_of_any_attempt AttemptIgnored
    answers_of_any_epoch EpochIgnored
    acknowledged_before_durable AckBeforeDurable
    leased_before_durable LeaseBeforeDurable
    slots_that_are_read_are_written SlotReused
    a_replay_counts_again ReplayCounted
    a_group_is_forgotten_at_recovery GroupForgotten
    an_intent_is_forgotten_at_recovery IntentForgotten
    attempts_begin_anew_at_recovery AttemptForgotten
    one_version_too_stale StalenessOffByOne
    a_stale_groups_prompt_is_lost PromptLost
    an_intent_out_of_order IntentUnordered
    leases_of_the_dead LeaseKept
    the_silent_are_left_alone SilentKept
    given_up_without_a_row DropUnrecorded
    chunks_of_any_bytes ChunkUnchecked
    the_head_node_gives_twice HeadGivesTwice
    words_of_complete_groups PartsKept
    words_of_any_attempt PartsUnfenced
    chunks_before_their_hashes UnhashedGiven
}
