//! Messages of one table: `NodeToKeeper`.
#![no_main]
use cohort_protocol::messages::seeking::NodeToKeeper;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cohort_fuzz::table::<NodeToKeeper>(data));
