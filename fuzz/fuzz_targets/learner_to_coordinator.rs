//! Messages of one table: `LearnerToCoordinator`.
#![no_main]
use cohort_protocol::messages::learner::LearnerToCoordinator;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cohort_fuzz::table::<LearnerToCoordinator>(data));
