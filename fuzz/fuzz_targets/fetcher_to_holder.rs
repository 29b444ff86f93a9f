//! Messages of one table: `FetcherToHolder`.
#![no_main]
use cohort_protocol::messages::weights::FetcherToHolder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cohort_fuzz::table::<FetcherToHolder>(data));
