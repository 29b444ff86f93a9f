//! Messages of one table: `AskerToKeeper`.
#![no_main]
use cohort_protocol::messages::keepers::AskerToKeeper;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cohort_fuzz::table::<AskerToKeeper>(data));
