//! One connection: three tasks (control out, control in, bulk in) between the streams and bounded queues.
use super::QuicOptions;
use super::stream::{self, BulkOutcome, BulkRecv, BulkSend, FrameError};
use crate::certs;
use crate::transport::{
    Ack, BULK_QUEUE, CONTROL_QUEUE, Connection, Deadlines, Inbound, Meter, Traffic, TransportError, check_bulk, check_control,
};
use async_trait::async_trait;
use cohort_protocol::{CodecError, Frame, RunId, WorkerId, limits};
use quinn::{RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Close code: the application ended the connection.
pub(super) const CLOSED: VarInt = VarInt::from_u32(0);
/// Close code: the peer broke the protocol.
const BAD_FRAME: VarInt = VarInt::from_u32(1);
/// Unit of the bulk budget, in bytes.
const BUDGET_UNIT: usize = 1024;

pub(super) struct QuicConnection {
    shared: Arc<Shared>,
    control: mpsc::Sender<Frame>,
    inbound: AsyncMutex<Inbox>,
    /// Aborted when the connection is dropped.
    _tasks: JoinSet<()>,
    /// Counts towards the listener's limit.
    _slot: Option<OwnedSemaphorePermit>,
}

/// What the tasks and the handle share.
struct Shared {
    peer: String,
    quic: quinn::Connection,
    deadlines: Deadlines,
    meter: Meter,
    /// The first rule that the peer broke.
    failure: OnceLock<TransportError>,
}

struct Inbox {
    control: mpsc::Receiver<Frame>,
    bulk: mpsc::Receiver<(Frame, Ack)>,
}

impl QuicConnection {
    pub(super) fn start(
        quic: quinn::Connection,
        send: SendStream,
        recv: RecvStream,
        peer: String,
        options: &QuicOptions,
        slot: Option<OwnedSemaphorePermit>,
    ) -> Arc<Self> {
        let (deadlines, meter, failure) = (options.deadlines, Meter::default(), OnceLock::new());
        let shared = Arc::new(Shared { peer, quic, deadlines, meter, failure });
        let (control, control_out) = mpsc::channel(CONTROL_QUEUE);
        let (control_in, control_inbox) = mpsc::channel(CONTROL_QUEUE);
        let (bulk_in, bulk_inbox) = mpsc::channel(BULK_QUEUE);
        let budget = Arc::new(Semaphore::new(options.bulk_budget / BUDGET_UNIT));
        let mut tasks = JoinSet::new();
        tasks.spawn(write_control(send, control_out));
        tasks.spawn(read_control(shared.clone(), recv, control_in));
        tasks.spawn(read_bulks(shared.clone(), budget, bulk_in));
        let inbound = AsyncMutex::new(Inbox { control: control_inbox, bulk: bulk_inbox });
        Arc::new(Self { shared, control, inbound, _tasks: tasks, _slot: slot })
    }

    async fn deliver_bulk(&self, frame: Frame) -> Result<(), TransportError> {
        let shared = &self.shared;
        let bytes = frame.wire_len();
        let not_accepted = || Err(TransportError::NotAccepted { peer: shared.peer.clone() });
        let mut stream = BulkSend::open(&shared.quic).await.map_err(|_| shared.ended())?;
        if !stream.write(frame).await.map_err(|_| shared.ended())? {
            return not_accepted();
        }
        shared.meter.bulk_sent(bytes);
        match stream.outcome().await {
            BulkOutcome::Accepted => Ok(()),
            BulkOutcome::NotAccepted => not_accepted(),
            BulkOutcome::Lost => Err(shared.ended()),
        }
    }
}

#[async_trait]
impl Connection for QuicConnection {
    fn peer(&self) -> String {
        self.shared.peer.clone()
    }

    fn remote(&self) -> Option<SocketAddr> {
        Some(self.shared.quic.remote_address())
    }

    fn verify_peer(&self, run: RunId, claimed: WorkerId) -> Result<(), TransportError> {
        let chain = self.shared.quic.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
        let proven = match chain.as_ref().and_then(|chain| chain.first()) {
            Some(certificate) => certs::proves(certificate, run, claimed),
            None => Err("there is no certificate".to_owned()),
        };
        proven.map_err(|why| TransportError::Identity { peer: self.peer(), claimed, run, why })
    }

    async fn send(&self, frame: Frame) -> Result<(), TransportError> {
        let peer = || self.shared.peer.clone();
        check_control(&frame).map_err(|source| TransportError::Codec { peer: peer(), source })?;
        let after = self.shared.deadlines.send;
        let bytes = frame.wire_len();
        match timeout(after, self.control.send(frame)).await {
            Ok(Ok(())) => {
                self.shared.meter.control_sent(bytes);
                Ok(())
            }
            Ok(Err(_)) => Err(self.shared.ended()),
            Err(_) => Err(TransportError::Deadline { peer: peer(), what: "read control frames", after }),
        }
    }

    async fn send_bulk(&self, frame: Frame) -> Result<(), TransportError> {
        let peer = || self.shared.peer.clone();
        check_bulk(&frame).map_err(|source| TransportError::Codec { peer: peer(), source })?;
        let after = self.shared.deadlines.acknowledge;
        timeout(after, self.deliver_bulk(frame)).await.map_err(|_| TransportError::Deadline {
            peer: peer(),
            what: "acknowledge a bulk frame",
            after,
        })?
    }

    async fn recv(&self) -> Result<Inbound, TransportError> {
        let mut inbox = self.inbound.lock().await;
        let Inbox { control, bulk } = &mut *inbox;
        tokio::select! {
            biased;
            Some(frame) = control.recv() => Ok(Inbound::Control(frame)),
            Some((frame, ack)) = bulk.recv() => Ok(Inbound::Bulk(frame, ack)),
            else => Err(self.shared.ended()),
        }
    }

    fn traffic(&self) -> Traffic {
        self.shared.meter.read()
    }

    fn close(&self, reason: &str) {
        self.shared.quic.close(CLOSED, reason.as_bytes());
    }
}

impl Drop for QuicConnection {
    fn drop(&mut self) {
        self.close("the other end was dropped");
    }
}

impl Shared {
    /// Why there is nothing more to send or to receive.
    fn ended(&self) -> TransportError {
        if let Some(failure) = self.failure.get() {
            return failure.clone();
        }
        let why = match self.quic.close_reason() {
            Some(quinn::ConnectionError::ApplicationClosed(close)) => String::from_utf8_lossy(&close.reason).into_owned(),
            Some(reason) => reason.to_string(),
            None => "the control stream ended".to_owned(),
        };
        TransportError::Lost { peer: self.peer.clone(), why }
    }

    /// The peer broke a rule: this connection ends, and both sides can say why.
    fn fail(&self, source: CodecError) {
        let told = format!("bad frame: {source}");
        // The first failure stays. Before the close, so that whom the close wakes finds it.
        let _ = self.failure.set(TransportError::Codec { peer: self.peer.clone(), source });
        self.quic.close(BAD_FRAME, told.as_bytes());
    }
}

/// A queue between `send` and the stream, so that a dropped `send` never leaves half a frame behind.
async fn write_control(mut send: SendStream, mut frames: mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        if stream::write_control(&mut send, frame).await.is_err() {
            return;
        }
    }
}

async fn read_control(shared: Arc<Shared>, mut recv: RecvStream, frames: mpsc::Sender<Frame>) {
    loop {
        match stream::read_frame(&mut recv, limits::MAX_CONTROL_BODY).await {
            Ok(frame) => {
                shared.meter.control_received(frame.wire_len());
                if frames.send(frame).await.is_err() {
                    return;
                }
            }
            Err(FrameError::Bad(source)) => return shared.fail(source),
            Err(FrameError::Ended) => {
                // The control stream lives as long as its connection: without it nothing can go on. A connection that
                // is closed already keeps its reason.
                if shared.quic.close_reason().is_none() {
                    shared.quic.close(CLOSED, b"the control stream ended");
                }
                return;
            }
        }
    }
}

/// Takes every further stream as one bulk frame. Ends, with all it started, when the connection does.
async fn read_bulks(shared: Arc<Shared>, budget: Arc<Semaphore>, frames: mpsc::Sender<(Frame, Ack)>) {
    let mut streams = JoinSet::new();
    while let Ok(opened) = shared.quic.accept_bi().await {
        while streams.try_join_next().is_some() {}
        streams.spawn(read_bulk(shared.clone(), budget.clone(), frames.clone(), BulkRecv::new(opened)));
    }
}

async fn read_bulk(shared: Arc<Shared>, budget: Arc<Semaphore>, frames: mpsc::Sender<(Frame, Ack)>, mut bulk: BulkRecv) {
    let read = async {
        let len = bulk.len(limits::MAX_BULK_BODY).await?;
        let units = u32::try_from(len.div_ceil(BUDGET_UNIT)).unwrap_or(u32::MAX);
        // Released with the acknowledgement: until then the application holds the frame.
        let share = budget.acquire_many_owned(units).await.map_err(|_| FrameError::Ended)?;
        Ok((bulk.frame(len).await?, share))
    };
    // A sender that stalls gives up by this deadline too; its stream is reset.
    let (frame, _share) = match timeout(shared.deadlines.acknowledge, read).await {
        Ok(Ok(received)) => received,
        Ok(Err(FrameError::Bad(source))) => return shared.fail(source),
        Ok(Err(FrameError::Ended)) | Err(_) => return,
    };
    shared.meter.bulk_received(frame.wire_len());
    let (ack, accepted) = Ack::pair();
    if frames.send((frame, ack)).await.is_err() {
        return;
    }
    drop(frames);
    if accepted.await.is_ok() {
        bulk.accept().await;
    }
}
