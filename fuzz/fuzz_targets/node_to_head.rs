//! Messages of one table: `NodeToHead`.
#![no_main]
use cohort_protocol::messages::node::NodeToHead;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cohort_fuzz::table::<NodeToHead>(data));
