//! Frames out of a stream of bytes, whoever carries the stream.
use bytes::Bytes;
use cohort_protocol::frame::{HEADER_BYTES, LEN_BYTES};
use cohort_protocol::{CodecError, Frame};
use std::future::Future;

/// Bytes asked of the allocator before any of them has arrived.
const FIRST_ALLOCATION: usize = 1 << 20;
/// How much more is asked for, at most, when what has arrived fills it: a chunk of weights is moved once.
const GROWTH: usize = 8;

/// The stream was reset, or its connection is gone.
#[derive(Debug)]
pub(super) struct Cut;

/// Bytes in order.
pub(super) trait ByteStream: Send {
    /// The next bytes, 1 to `max` of them, as soon as there are any; `None` at the end.
    fn chunk(&mut self, max: usize) -> impl Future<Output = Result<Option<Bytes>, Cut>> + Send;
}

/// Why a frame could not be read.
#[derive(Debug)]
pub(super) enum FrameError {
    /// The stream or the connection ended; nothing is wrong with the peer's bytes.
    Ended,
    /// The bytes are not a frame.
    Bad(CodecError),
}

/// The next frame of a stream of frames.
pub(super) async fn read_frame(stream: &mut impl ByteStream, limit: usize) -> Result<Frame, FrameError> {
    let len = read_len(stream, limit).await?;
    read_body(stream, len).await
}

/// The only frame of a stream, whose length was read: it must fill the stream.
pub(super) async fn read_last(stream: &mut impl ByteStream, len: usize) -> Result<Frame, FrameError> {
    let frame = read_body(stream, len).await?;
    match stream.chunk(1).await {
        Ok(None) => Ok(frame),
        Ok(Some(rest)) => Err(FrameError::Bad(CodecError::Trailing { what: "bulk frame", left: rest.len() })),
        Err(Cut) => Err(FrameError::Ended),
    }
}

/// The length of the next frame's payload, checked before anything is allocated for it.
pub(super) async fn read_len(stream: &mut impl ByteStream, limit: usize) -> Result<usize, FrameError> {
    let mut prefix = [0; LEN_BYTES];
    fill(stream, &mut prefix).await?;
    Frame::check_len(prefix, limit).map_err(FrameError::Bad)
}

/// The payload of `len` bytes. Memory grows with what has arrived, not with what is claimed.
async fn read_body(stream: &mut impl ByteStream, len: usize) -> Result<Frame, FrameError> {
    let mut header = [0; HEADER_BYTES];
    fill(stream, &mut header).await?;
    let len = len.saturating_sub(HEADER_BYTES);
    let mut body = Vec::with_capacity(len.min(FIRST_ALLOCATION));
    while body.len() < len {
        match stream.chunk(len - body.len()).await {
            Ok(Some(chunk)) => {
                if body.capacity() - body.len() < chunk.len() {
                    let most = (GROWTH - 1) * body.len().max(FIRST_ALLOCATION);
                    body.reserve_exact((len - body.len()).min(most).max(chunk.len()));
                }
                body.extend_from_slice(&chunk);
            }
            Ok(None) => return Err(FrameError::Bad(short(len - body.len()))),
            Err(Cut) => return Err(FrameError::Ended),
        }
    }
    Ok(Frame { direction: header[0], tag: header[1], body: body.into() })
}

/// Fills the buffer.
pub(super) async fn fill(stream: &mut impl ByteStream, buffer: &mut [u8]) -> Result<(), FrameError> {
    let mut read = 0;
    while read < buffer.len() {
        match stream.chunk(buffer.len() - read).await {
            Ok(Some(chunk)) => {
                buffer[read..read + chunk.len()].copy_from_slice(&chunk);
                read += chunk.len();
            }
            // Between two frames the stream may end.
            Ok(None) if read == 0 => return Err(FrameError::Ended),
            Ok(None) => return Err(FrameError::Bad(short(buffer.len() - read))),
            Err(Cut) => return Err(FrameError::Ended),
        }
    }
    Ok(())
}

/// Length, direction and tag of a frame.
pub(super) fn header(frame: &Frame) -> Bytes {
    let len = u32::try_from(frame.body.len() + HEADER_BYTES).unwrap_or(u32::MAX);
    let [a, b, c, d] = len.to_le_bytes();
    Bytes::copy_from_slice(&[a, b, c, d, frame.direction, frame.tag])
}

fn short(missing: usize) -> CodecError {
    CodecError::Malformed { what: "frame", why: format!("the stream ends {missing} bytes early") }
}
