//! Messages of one table: `CoordinatorToLearner`.
#![no_main]
use cohort_protocol::messages::learner::CoordinatorToLearner;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cohort_fuzz::table::<CoordinatorToLearner>(data));
