//! What the targets of message tables share.
use cohort_protocol::Frame;
use cohort_protocol::messages::WireMessage;

/// The first byte is the tag, the rest the body: whatever decodes encodes to the same bytes, and nothing panics.
pub fn table<M: WireMessage>(data: &[u8]) {
    let Some((&tag, body)) = data.split_first() else { return };
    let frame = Frame { direction: M::DIRECTION as u8, tag, body: body.to_vec().into() };
    if let Ok(message) = M::from_frame(&frame) {
        assert_eq!(message.to_frame().as_ref(), Ok(&frame), "two byte images of one message");
    }
}
