//! Messages of one table: `HolderToFetcher`.
#![no_main]
use cohort_protocol::messages::weights::HolderToFetcher;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cohort_fuzz::table::<HolderToFetcher>(data));
