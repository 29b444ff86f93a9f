//! Messages of one table: `HeadToNode`.
#![no_main]
use cohort_protocol::messages::node::HeadToNode;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cohort_fuzz::table::<HeadToNode>(data));
