//! The streams of a QUIC connection: their kinds, and what their resets mean. A stream that is given up is reset, never
//! finished early, so that the reader can tell an abandoned frame from a short one.
use crate::transport::Meter;
use crate::transport::assemble::{ByteStream, Cut, FrameError, fill, header};
use crate::transport::framed::{BulkIn, BulkOutcome, ControlOut, Streams};
use bytes::Bytes;
use cohort_protocol::{CodecError, Frame};
use quinn::{Connection, ConnectionError, ReadError, ReadExactError, RecvStream, SendStream, VarInt, WriteError};
use rustls::pki_types::CertificateDer;
use std::io;
use std::net::SocketAddr;

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

/// A QUIC connection as [`Streams`].
pub(super) struct QuicStreams(pub(super) Connection);

impl Streams for QuicStreams {
    const CARRIER: &'static str = "quic";
    type Bulk = BulkRecv;

    fn remote(&self) -> SocketAddr {
        self.0.remote_address()
    }

    fn certificate(&self) -> Option<CertificateDer<'static>> {
        let chain = self.0.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        chain.into_iter().next()
    }

    async fn accept(&self) -> Option<BulkRecv> {
        let (send, recv) = self.0.accept_bi().await.ok()?;
        Some(BulkRecv { send, recv, accepted: false })
    }

    async fn deliver(&self, frame: Frame, meter: &Meter) -> BulkOutcome {
        let bytes = frame.wire_len();
        let Ok(mut stream) = BulkSend::open(&self.0).await else { return BulkOutcome::Lost };
        match stream.write(frame).await {
            Ok(true) => meter.bulk_sent(bytes),
            Ok(false) => return BulkOutcome::NotAccepted,
            Err(_) => return BulkOutcome::Lost,
        }
        stream.outcome().await
    }

    fn close(&self, code: u32, reason: &str) {
        self.0.close(VarInt::from_u32(code), reason.as_bytes());
    }

    fn closed(&self) -> Option<String> {
        Some(match self.0.close_reason()? {
            ConnectionError::ApplicationClosed(close) => String::from_utf8_lossy(&close.reason).into_owned(),
            reason => reason.to_string(),
        })
    }
}

impl ControlOut for SendStream {
    async fn write(&mut self, frame: Frame) -> Result<(), ()> {
        let mut chunks = [header(&frame), frame.body];
        self.write_all_chunks(&mut chunks).await.map_err(drop)
    }
}

impl ByteStream for RecvStream {
    async fn chunk(&mut self, max: usize) -> Result<Option<Bytes>, Cut> {
        match self.read_chunk(max, true).await {
            Ok(chunk) => Ok(chunk.map(|chunk| chunk.bytes)),
            Err(_) => Err(Cut),
        }
    }
}

/// A bulk stream at its sender.
struct BulkSend {
    send: SendStream,
    recv: RecvStream,
    finished: bool,
}

impl BulkSend {
    /// Waits for the peer to allow one more stream.
    async fn open(quic: &Connection) -> Result<Self, ConnectionError> {
        let (send, recv) = quic.open_bi().await?;
        Ok(Self { send, recv, finished: false })
    }

    /// Writes the frame and ends the stream; `false` where the peer wants no more of it.
    async fn write(&mut self, frame: Frame) -> Result<bool, WriteError> {
        let mut chunks = [Bytes::from_static(&[KIND_BULK]), header(&frame), frame.body];
        match self.send.write_all_chunks(&mut chunks).await {
            Ok(()) => {
                self.finished = true;
                Ok(self.send.finish().is_ok())
            }
            Err(WriteError::Stopped(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits for the answer.
    async fn outcome(&mut self) -> BulkOutcome {
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

/// A bulk stream at its receiver. Dropped without [`BulkIn::accept`], it is reset.
pub(super) struct BulkRecv {
    send: SendStream,
    recv: RecvStream,
    accepted: bool,
}

impl ByteStream for BulkRecv {
    async fn chunk(&mut self, max: usize) -> Result<Option<Bytes>, Cut> {
        self.recv.chunk(max).await
    }
}

impl BulkIn for BulkRecv {
    async fn begin(&mut self) -> Result<(), FrameError> {
        let mut kind = [0];
        fill(&mut self.recv, &mut kind).await?;
        if kind != [KIND_BULK] {
            let why = format!("kind {} where a bulk frame was expected", kind[0]);
            return Err(FrameError::Bad(CodecError::Malformed { what: "stream", why }));
        }
        Ok(())
    }

    async fn accept(mut self) {
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
