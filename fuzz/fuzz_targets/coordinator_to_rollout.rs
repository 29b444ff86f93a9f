//! Messages of one table: `CoordinatorToRollout`.
#![no_main]
use cohort_protocol::messages::rollout::CoordinatorToRollout;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cohort_fuzz::table::<CoordinatorToRollout>(data));
