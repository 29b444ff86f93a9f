//! Messages of one table: `RolloutToCoordinator`.
#![no_main]
use cohort_protocol::messages::rollout::RolloutToCoordinator;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cohort_fuzz::table::<RolloutToCoordinator>(data));
