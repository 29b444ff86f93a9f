//! Messages of one table: `Handshake`.
#![no_main]
use cohort_protocol::messages::handshake::Handshake;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| cohort_fuzz::table::<Handshake>(data));
