//! Bytes of one stream: its kind, then frames. A stream that is given up is reset, never finished early, so that the
//! reader can tell an abandoned frame from a short one.
use bytes::Bytes;
use cohort_protocol::frame::{HEADER_BYTES, LEN_BYTES};
use cohort_protocol::{CodecError, Frame};
use quinn::{Connection, ReadError, ReadExactError, RecvStream, SendStream, VarInt};
use std::io;

/// First byte of the control stream, and the listener's answer on it.
const KIND_CONTROL: u8 = 1;
/// First byte of a stream that carries one bulk frame.
const KIND_BULK: u8 = 2;
/// The only byte on the way back of a bulk stream.
const ACCEPTED: u8 = 1;
/// Reset code: the sender gave the frame up.
const ABANDONED: VarInt = VarInt::from_u32(1);
/// Reset code: the receiver's handler dropped the frame.
const NOT_ACCEPTED: VarInt = VarInt::from_u32(2);
/// Bytes asked of the allocator before any of them has arrived.
const FIRST_ALLOCATION: usize = 1 << 20;

/// Why a frame could not be read.
#[derive(Debug)]
pub(super) enum FrameError {
    /// The stream or the connection ended; nothing is wrong with the peer's bytes.
    Ended,
    /// The bytes are not a frame.
    Bad(CodecError),
}

/// Opens the control stream and waits until the listener has answered on it.
pub(super) async fn open_control(quic: &Connection) -> io::Result<(SendStream, RecvStream)> {
    let (mut send, mut recv) = quic.open_bi().await?;
    // Above every bulk stream.
    send.set_priority(1)?;
    send.write_all(&[KIND_CONTROL]).await?;
    expect_control(&mut recv).await?;
    Ok((send, recv))
}

/// Takes the dialer's control stream and answers on it.
pub(super) async fn accept_control(quic: &Connection) -> io::Result<(SendStream, RecvStream)> {
    let (mut send, mut recv) = quic.accept_bi().await?;
    expect_control(&mut recv).await?;
    send.set_priority(1)?;
    send.write_all(&[KIND_CONTROL]).await?;
    Ok((send, recv))
}

async fn expect_control(recv: &mut RecvStream) -> io::Result<()> {
    let mut kind = [0];
    recv.read_exact(&mut kind).await.map_err(io::Error::other)?;
    if kind != [KIND_CONTROL] {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("first stream is of kind {}", kind[0])));
    }
    Ok(())
}

/// Writes frames to the control stream.
pub(super) async fn write_control(send: &mut SendStream, frame: Frame) -> Result<(), quinn::WriteError> {
    let mut chunks = [header(&frame), Bytes::from(frame.body)];
    send.write_all_chunks(&mut chunks).await
}

/// The next frame of the control stream.
pub(super) async fn read_frame(recv: &mut RecvStream, limit: usize) -> Result<Frame, FrameError> {
    let len = read_len(recv, limit).await?;
    read_body(recv, len).await
}

/// The length of the next frame's payload, checked before anything is allocated for it.
pub(super) async fn read_len(recv: &mut RecvStream, limit: usize) -> Result<usize, FrameError> {
    let mut prefix = [0; LEN_BYTES];
    fill(recv, &mut prefix).await?;
    Frame::check_len(prefix, limit).map_err(FrameError::Bad)
}

/// The payload of `len` bytes. Memory grows with what has arrived, not with what is claimed.
pub(super) async fn read_body(recv: &mut RecvStream, len: usize) -> Result<Frame, FrameError> {
    let mut header = [0; HEADER_BYTES];
    fill(recv, &mut header).await?;
    let len = len.saturating_sub(HEADER_BYTES);
    let mut body = Vec::with_capacity(len.min(FIRST_ALLOCATION));
    while body.len() < len {
        match recv.read_chunk(len - body.len(), true).await {
            Ok(Some(chunk)) => {
                if body.capacity() - body.len() < chunk.bytes.len() {
                    body.reserve_exact((len - body.len()).min(body.len().max(FIRST_ALLOCATION)).max(chunk.bytes.len()));
                }
                body.extend_from_slice(&chunk.bytes);
            }
            Ok(None) => return Err(FrameError::Bad(short(len - body.len()))),
            Err(_) => return Err(FrameError::Ended),
        }
    }
    Ok(Frame { direction: header[0], tag: header[1], body })
}

/// A bulk stream at its sender.
pub(super) struct BulkSend {
    send: SendStream,
    recv: RecvStream,
    finished: bool,
}

/// How a bulk frame fared.
pub(super) enum BulkOutcome {
    /// Taken over.
    Accepted,
    /// Dropped by the receiver.
    NotAccepted,
    /// The connection ended first.
    Lost,
}

impl BulkSend {
    /// Waits for the peer to allow one more stream.
    pub(super) async fn open(quic: &Connection) -> Result<Self, quinn::ConnectionError> {
        let (send, recv) = quic.open_bi().await?;
        Ok(Self { send, recv, finished: false })
    }

    /// Writes the frame and ends the stream; `false` where the peer wants no more of it.
    pub(super) async fn write(&mut self, frame: Frame) -> Result<bool, quinn::WriteError> {
        let mut chunks = [Bytes::from_static(&[KIND_BULK]), header(&frame), Bytes::from(frame.body)];
        match self.send.write_all_chunks(&mut chunks).await {
            Ok(()) => {
                self.finished = true;
                Ok(self.send.finish().is_ok())
            }
            Err(quinn::WriteError::Stopped(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits for the answer.
    pub(super) async fn outcome(&mut self) -> BulkOutcome {
        let mut answer = [0];
        match self.recv.read_exact(&mut answer).await {
            Ok(()) if answer == [ACCEPTED] => BulkOutcome::Accepted,
            Err(ReadExactError::ReadError(ReadError::ConnectionLost(_))) => BulkOutcome::Lost,
            _ => BulkOutcome::NotAccepted,
        }
    }
}

impl Drop for BulkSend {
    fn drop(&mut self) {
        if !self.finished {
            // Fails only on a stream that is gone already.
            let _ = self.send.reset(ABANDONED);
        }
    }
}

/// A bulk stream at its receiver. Dropped without [`BulkRecv::accept`], it is reset.
pub(super) struct BulkRecv {
    send: SendStream,
    /// Where the frame is read from.
    pub(super) recv: RecvStream,
    accepted: bool,
}

impl BulkRecv {
    pub(super) fn new((send, recv): (SendStream, RecvStream)) -> Self {
        Self { send, recv, accepted: false }
    }

    /// Reads the kind and the length.
    pub(super) async fn len(&mut self, limit: usize) -> Result<usize, FrameError> {
        let mut kind = [0];
        fill(&mut self.recv, &mut kind).await?;
        if kind != [KIND_BULK] {
            let why = format!("kind {} where a bulk frame was expected", kind[0]);
            return Err(FrameError::Bad(CodecError::Malformed { what: "stream", why }));
        }
        read_len(&mut self.recv, limit).await
    }

    /// Reads the payload, which must fill the stream.
    pub(super) async fn frame(&mut self, len: usize) -> Result<Frame, FrameError> {
        let frame = read_body(&mut self.recv, len).await?;
        match self.recv.read_chunk(1, true).await {
            Ok(None) => Ok(frame),
            Ok(Some(rest)) => Err(FrameError::Bad(CodecError::Trailing { what: "bulk frame", left: rest.bytes.len() })),
            Err(_) => Err(FrameError::Ended),
        }
    }

    /// Tells the sender that the frame was taken over.
    pub(super) async fn accept(mut self) {
        // Where this fails the sender sends again, and the frame is recognised by its id.
        if self.send.write_all(&[ACCEPTED]).await.is_ok() {
            self.accepted = self.send.finish().is_ok();
        }
    }
}

impl Drop for BulkRecv {
    fn drop(&mut self) {
        if !self.accepted {
            // Both fail only on a stream that is gone already.
            let _ = self.send.reset(NOT_ACCEPTED);
            let _ = self.recv.stop(NOT_ACCEPTED);
        }
    }
}

fn header(frame: &Frame) -> Bytes {
    let len = u32::try_from(frame.body.len() + HEADER_BYTES).unwrap_or(u32::MAX);
    let [a, b, c, d] = len.to_le_bytes();
    Bytes::copy_from_slice(&[a, b, c, d, frame.direction, frame.tag])
}

async fn fill(recv: &mut RecvStream, buffer: &mut [u8]) -> Result<(), FrameError> {
    match recv.read_exact(buffer).await {
        Ok(()) => Ok(()),
        // Between two frames the stream may end.
        Err(ReadExactError::FinishedEarly(0)) | Err(ReadExactError::ReadError(_)) => Err(FrameError::Ended),
        Err(ReadExactError::FinishedEarly(read)) => Err(FrameError::Bad(short(buffer.len() - read))),
    }
}

fn short(missing: usize) -> CodecError {
    CodecError::Malformed { what: "frame", why: format!("the stream ends {missing} bytes early") }
}
