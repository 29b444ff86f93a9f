//! Messages of one table: `KeeperToAsker`.
#![no_main]
use cohort_protocol::messages::keepers::KeeperToAsker;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cohort_fuzz::table::<KeeperToAsker>(data));
