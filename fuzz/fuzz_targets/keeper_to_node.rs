//! Messages of one table: `KeeperToNode`.
#![no_main]
use cohort_protocol::messages::seeking::KeeperToNode;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cohort_fuzz::table::<KeeperToNode>(data));
