//! Messages of one table: `RewardToCoordinator`.
#![no_main]
use cohort_protocol::messages::reward::RewardToCoordinator;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cohort_fuzz::table::<RewardToCoordinator>(data));
