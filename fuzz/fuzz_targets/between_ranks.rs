//! Messages of one table: `BetweenRanks`.
#![no_main]
use cohort_protocol::messages::ranks::BetweenRanks;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cohort_fuzz::table::<BetweenRanks>(data));
