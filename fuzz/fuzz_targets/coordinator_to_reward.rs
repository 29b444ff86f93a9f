//! Messages of one table: `CoordinatorToReward`.
#![no_main]
use cohort_protocol::messages::reward::CoordinatorToReward;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cohort_fuzz::table::<CoordinatorToReward>(data));
