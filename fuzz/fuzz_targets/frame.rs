//! A stream of bytes as a connection would cut it into frames.
#![no_main]
use cohort_protocol::frame::{HEADER_BYTES, LEN_BYTES};
use cohort_protocol::{Frame, limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    while let Some((prefix, after)) = rest.split_first_chunk::<LEN_BYTES>() {
        let Ok(len) = Frame::check_len(*prefix, limits::MAX_CONTROL_BODY) else { return };
        assert!((HEADER_BYTES..=limits::MAX_CONTROL_BODY + HEADER_BYTES).contains(&len));
        let Some((payload, next)) = after.split_at_checked(len) else { return };
        let frame = Frame::from_payload(payload).expect("a payload with a header is a frame");
        assert_eq!(frame.to_bytes(), rest[..LEN_BYTES + len]);
        rest = next;
    }
});
