//! One connection over streams of bytes: three tasks (control out, control in, bulk in) between the streams and bounded
//! queues. QUIC and TCP differ only in where their streams come from ([`Streams`]).
use super::assemble::{ByteStream, FrameError, read_frame, read_last, read_len};
use super::{
    Ack, BULK_QUEUE, CONTROL_QUEUE, Connection, Deadlines, Inbound, Meter, Traffic, TransportError, TransportOptions, check_bulk,
    check_control,
};
use crate::certs::{self, Revocations};
use async_trait::async_trait;
use cohort_protocol::{CodecError, Frame, RunId, WorkerId, limits};
use rustls::pki_types::CertificateDer;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Close code: the application ended the connection.
pub(super) const CLOSED: u32 = 0;
/// Close code: the peer broke the protocol.
const BAD_FRAME: u32 = 1;
/// Between two looks whether the peer's certificate was taken away.
const REVOKED_LOOK: Duration = Duration::from_secs(1);
/// For a peer whose certificate was taken away to leave in order.
const REVOKED_GRACE: Duration = Duration::from_secs(4);
/// Unit of the bulk budget, in bytes.
const BUDGET_UNIT: usize = 1024;

/// Both ends' streams of one connection.
pub(super) trait Streams: Send + Sync + 'static {
    /// What carries them.
    const CARRIER: &'static str;
    /// A bulk frame on its way in.
    type Bulk: BulkIn;

    /// Where the peer is.
    fn remote(&self) -> SocketAddr;
    /// What the peer has proven to hold.
    fn certificate(&self) -> Option<CertificateDer<'static>>;
    /// The peer's next bulk frame, as soon as it begins to arrive; `None` when the connection has ended.
    fn accept(&self) -> impl Future<Output = Option<Self::Bulk>> + Send;
    /// Carries one bulk frame, counts its bytes when they are out, and waits for the answer. Dropped, it gives the frame up.
    fn deliver(&self, frame: Frame, meter: &Meter) -> impl Future<Output = BulkOutcome> + Send;
    /// Ends it. The first reason stays.
    fn close(&self, code: u32, reason: &str);
    /// Why it has ended, if it has.
    fn closed(&self) -> Option<String>;
}

/// The control stream's way out.
pub(super) trait ControlOut: Send + 'static {
    /// Writes a frame; an error says that the connection is over.
    fn write(&mut self, frame: Frame) -> impl Future<Output = Result<(), ()>> + Send;
}

/// A bulk frame at its receiver. Dropped without [`BulkIn::accept`], the sender is told to send it again.
pub(super) trait BulkIn: ByteStream + 'static {
    /// Reads what stands before the frame.
    fn begin(&mut self) -> impl Future<Output = Result<(), FrameError>> + Send;
    /// Tells the sender that the frame was taken over.
    fn accept(self) -> impl Future<Output = ()> + Send;
}

/// How a bulk frame fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BulkOutcome {
    /// Taken over.
    Accepted,
    /// Dropped by the receiver.
    NotAccepted,
    /// The connection ended first.
    Lost,
}

pub(super) struct Framed<S: Streams> {
    shared: Arc<Shared<S>>,
    control: mpsc::Sender<Frame>,
    inbound: AsyncMutex<Inbox>,
    /// Aborted when the connection is dropped.
    _tasks: JoinSet<()>,
    /// Counts towards the listener's limit.
    _slot: Option<OwnedSemaphorePermit>,
}

/// What this end goes by.
pub(super) struct Terms<'a> {
    pub(super) options: &'a TransportOptions,
    /// Whose certificates were taken away.
    pub(super) revocations: Revocations,
    /// Counts towards the listener's limit.
    pub(super) slot: Option<OwnedSemaphorePermit>,
}

/// What the tasks and the handle share.
struct Shared<S> {
    peer: String,
    streams: S,
    deadlines: Deadlines,
    revocations: Revocations,
    meter: Meter,
    /// The first rule that the peer broke.
    failure: OnceLock<TransportError>,
}

struct Inbox {
    control: mpsc::Receiver<Frame>,
    bulk: mpsc::Receiver<(Frame, Ack)>,
}

impl<S: Streams> Framed<S> {
    pub(super) fn start(
        streams: S,
        control: (impl ControlOut, impl ByteStream + 'static),
        peer: String,
        Terms { options, revocations, slot }: Terms<'_>,
    ) -> Arc<Self> {
        let (deadlines, meter, failure) = (options.deadlines, Meter::default(), OnceLock::new());
        let shared = Arc::new(Shared { peer, streams, deadlines, revocations, meter, failure });
        let (send, recv) = control;
        let (control, control_out) = mpsc::channel(CONTROL_QUEUE);
        let (control_in, control_inbox) = mpsc::channel(CONTROL_QUEUE);
        let (bulk_in, bulk_inbox) = mpsc::channel(BULK_QUEUE);
        let budget = Arc::new(Semaphore::new(options.bulk_budget / BUDGET_UNIT));
        let mut tasks = JoinSet::new();
        tasks.spawn(write_control(send, control_out));
        tasks.spawn(read_control(shared.clone(), recv, control_in));
        tasks.spawn(read_bulks(shared.clone(), budget, bulk_in));
        if shared.revocations.may_come() {
            tasks.spawn(end_when_revoked(shared.clone()));
        }
        let inbound = AsyncMutex::new(Inbox { control: control_inbox, bulk: bulk_inbox });
        Arc::new(Self { shared, control, inbound, _tasks: tasks, _slot: slot })
    }
}

#[async_trait]
impl<S: Streams> Connection for Framed<S> {
    fn peer(&self) -> String {
        self.shared.peer.clone()
    }

    fn remote(&self) -> Option<SocketAddr> {
        Some(self.shared.streams.remote())
    }

    fn carrier(&self) -> &'static str {
        S::CARRIER
    }

    fn verify_peer(&self, run: RunId, claimed: WorkerId) -> Result<(), TransportError> {
        let proven = match self.shared.streams.certificate() {
            Some(certificate) => certs::proves(&certificate, run, claimed),
            None => Err("there is no certificate".to_owned()),
        };
        proven.map_err(|why| TransportError::Identity { peer: self.peer(), claimed, run, why })?;
        self.shared.not_revoked().map_err(|why| TransportError::Revoked { peer: claimed.to_string(), why })
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
        match timeout(after, self.shared.streams.deliver(frame, &self.shared.meter)).await {
            Ok(BulkOutcome::Accepted) => Ok(()),
            Ok(BulkOutcome::NotAccepted) => Err(TransportError::NotAccepted { peer: peer() }),
            Ok(BulkOutcome::Lost) => Err(self.shared.ended()),
            Err(_) => Err(TransportError::Deadline { peer: peer(), what: "acknowledge a bulk frame", after }),
        }
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
        self.shared.streams.close(CLOSED, reason);
    }
}

impl<S: Streams> Drop for Framed<S> {
    fn drop(&mut self) {
        self.close("the other end was dropped");
    }
}

impl<S: Streams> Shared<S> {
    /// Why there is nothing more to send or to receive.
    fn ended(&self) -> TransportError {
        if let Some(failure) = self.failure.get() {
            return failure.clone();
        }
        let why = self.streams.closed().unwrap_or_else(|| "the control stream ended".to_owned());
        TransportError::Lost { peer: self.peer.clone(), why }
    }

    /// Whether the peer's certificate is still good.
    fn not_revoked(&self) -> Result<(), String> {
        self.streams.certificate().map_or(Ok(()), |certificate| self.revocations.check(&certificate))
    }

    /// The peer broke a rule: this connection ends, and both sides can say why.
    fn fail(&self, source: CodecError) {
        let told = format!("bad frame: {source}");
        // The first failure stays. Before the close, so that whom the close wakes finds it.
        let _ = self.failure.set(TransportError::Codec { peer: self.peer.clone(), source });
        self.streams.close(BAD_FRAME, &told);
    }
}

/// A connection that stands ends soon after its peer's certificate was taken away.
async fn end_when_revoked<S: Streams>(shared: Arc<Shared<S>>) {
    let why = loop {
        sleep(REVOKED_LOOK).await;
        if let Err(why) = shared.not_revoked() {
            break why;
        }
    };
    sleep(REVOKED_GRACE).await;
    // The first failure stays. Before the close, so that whom the close wakes finds it.
    let _ = shared.failure.set(TransportError::Revoked { peer: shared.peer.clone(), why: why.clone() });
    shared.streams.close(CLOSED, &why);
}

/// A queue between `send` and the stream, so that a dropped `send` never leaves half a frame behind.
async fn write_control(mut send: impl ControlOut, mut frames: mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        if send.write(frame).await.is_err() {
            return;
        }
    }
}

async fn read_control<S: Streams>(shared: Arc<Shared<S>>, mut recv: impl ByteStream, frames: mpsc::Sender<Frame>) {
    loop {
        match read_frame(&mut recv, limits::MAX_CONTROL_BODY).await {
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
                if shared.streams.closed().is_none() {
                    shared.streams.close(CLOSED, "the control stream ended");
                }
                return;
            }
        }
    }
}

/// Takes the peer's bulk frames. Ends, with all it started, when the connection does.
async fn read_bulks<S: Streams>(shared: Arc<Shared<S>>, budget: Arc<Semaphore>, frames: mpsc::Sender<(Frame, Ack)>) {
    let mut reading = JoinSet::new();
    while let Some(bulk) = shared.streams.accept().await {
        while reading.try_join_next().is_some() {}
        reading.spawn(read_bulk(shared.clone(), budget.clone(), frames.clone(), bulk));
    }
}

async fn read_bulk<S: Streams>(
    shared: Arc<Shared<S>>,
    budget: Arc<Semaphore>,
    frames: mpsc::Sender<(Frame, Ack)>,
    mut bulk: S::Bulk,
) {
    let read = async {
        bulk.begin().await?;
        let len = read_len(&mut bulk, limits::MAX_BULK_BODY).await?;
        let units = u32::try_from(len.div_ceil(BUDGET_UNIT)).unwrap_or(u32::MAX);
        // Released with the acknowledgement: until then the application holds the frame.
        let share = budget.acquire_many_owned(units).await.map_err(|_| FrameError::Ended)?;
        Ok((read_last(&mut bulk, len).await?, share))
    };
    // A sender that stalls gives up by this deadline too; its frame is dropped.
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
