//! Both ends in one process: frames move by value over bounded channels. Same promises as between processes, so that a
//! run without processes exercises the same code.
//!
//! Queues: 64 control frames and 16 bulk frames each way; when one is full the sender waits, at most its deadline.
use super::{
    Ack, BULK_QUEUE, CONTROL_QUEUE, Connection, Deadlines, Dialer, Inbound, Listener, Meter, Traffic, TransportError, check_bulk,
    check_control,
};
use async_trait::async_trait;
use cohort_protocol::{Frame, RunId, WorkerId};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};
use tokio::time::timeout;

/// Connections that wait for [`Listener::accept`]; when it is full, dialers wait.
const BACKLOG: usize = 64;

/// A place that can be listened on and dialled, again and again: a coordinator that starts anew listens anew and its
/// workers reach it with the dialers they have.
#[derive(Debug, Clone)]
pub struct InprocAddress(Arc<Address>);

#[derive(Debug)]
struct Address {
    name: String,
    deadlines: Deadlines,
    listener: Mutex<Option<mpsc::Sender<Arc<End>>>>,
    dialled: AtomicU64,
}

/// The listening side of an [`InprocAddress`].
#[derive(Debug)]
pub struct InprocListener {
    name: String,
    incoming: AsyncMutex<mpsc::Receiver<Arc<End>>>,
}

/// The dialling side of an [`InprocAddress`].
#[derive(Debug, Clone)]
pub struct InprocDialer(InprocAddress);

/// A listener and a dialer that reaches it, with default deadlines.
#[must_use]
pub fn pair(name: &str) -> (InprocListener, InprocDialer) {
    let address = InprocAddress::new(name, Deadlines::default());
    (address.listen(), address.dialer())
}

impl InprocAddress {
    /// A place named `name` in messages.
    #[must_use]
    pub fn new(name: &str, deadlines: Deadlines) -> Self {
        Self(Arc::new(Address { name: name.to_owned(), deadlines, listener: Mutex::new(None), dialled: AtomicU64::new(0) }))
    }

    /// Listens here from now on; an earlier listener gets no more connections.
    #[must_use]
    pub fn listen(&self) -> InprocListener {
        let (sender, incoming) = mpsc::channel(BACKLOG);
        *self.0.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        InprocListener { name: self.0.name.clone(), incoming: AsyncMutex::new(incoming) }
    }

    /// Reaches whoever listens at the time of the call.
    #[must_use]
    pub fn dialer(&self) -> InprocDialer {
        InprocDialer(self.clone())
    }
}

#[async_trait]
impl Listener for InprocListener {
    async fn accept(&self) -> Result<Arc<dyn Connection>, TransportError> {
        match self.incoming.lock().await.recv().await {
            Some(end) => Ok(end),
            None => Err(TransportError::Lost { peer: self.name.clone(), why: "another listener took its place".into() }),
        }
    }
}

#[async_trait]
impl Dialer for InprocDialer {
    async fn connect(&self) -> Result<Arc<dyn Connection>, TransportError> {
        let address = &self.0.0;
        let lost = |why: &str| TransportError::Lost { peer: address.name.clone(), why: why.to_owned() };
        let listener = address.listener.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let listener = listener.ok_or_else(|| lost("nobody listens"))?;
        let number = address.dialled.fetch_add(1, Ordering::Relaxed);
        let (near, far) = ends(&address.name, &format!("dialer {number} of {}", address.name), address.deadlines);
        match timeout(address.deadlines.connect, listener.send(far)).await {
            Ok(Ok(())) => Ok(near),
            Ok(Err(_)) => Err(lost("its listener is gone")),
            Err(_) => Err(TransportError::Deadline {
                peer: address.name.clone(),
                what: "accept a connection",
                after: address.deadlines.connect,
            }),
        }
    }

    fn address(&self) -> String {
        format!("in-process {}", self.0.0.name)
    }
}

/// One end. The other one holds the opposite halves of the channels and the same `closed`.
#[derive(Debug)]
struct End {
    peer: String,
    deadlines: Deadlines,
    control: mpsc::Sender<Frame>,
    bulk: mpsc::Sender<(Frame, Ack)>,
    inbound: AsyncMutex<Inbox>,
    closed: Arc<watch::Sender<Option<String>>>,
    meter: Meter,
}

#[derive(Debug)]
struct Inbox {
    control: mpsc::Receiver<Frame>,
    bulk: mpsc::Receiver<(Frame, Ack)>,
}

fn ends(listener: &str, dialer: &str, deadlines: Deadlines) -> (Arc<End>, Arc<End>) {
    let (control_up, control_at_listener) = mpsc::channel(CONTROL_QUEUE);
    let (bulk_up, bulk_at_listener) = mpsc::channel(BULK_QUEUE);
    let (control_down, control_at_dialer) = mpsc::channel(CONTROL_QUEUE);
    let (bulk_down, bulk_at_dialer) = mpsc::channel(BULK_QUEUE);
    let closed = Arc::new(watch::Sender::new(None));
    let end = |peer: &str, control, bulk, inbox| {
        Arc::new(End {
            peer: peer.to_owned(),
            deadlines,
            control,
            bulk,
            inbound: AsyncMutex::new(inbox),
            closed: closed.clone(),
            meter: Meter::default(),
        })
    };
    (
        end(listener, control_up, bulk_up, Inbox { control: control_at_dialer, bulk: bulk_at_dialer }),
        end(dialer, control_down, bulk_down, Inbox { control: control_at_listener, bulk: bulk_at_listener }),
    )
}

impl End {
    fn lost(&self, why: impl Into<String>) -> TransportError {
        TransportError::Lost { peer: self.peer.clone(), why: why.into() }
    }

    /// Resolves when either end closed it.
    async fn closed(&self) -> TransportError {
        let mut closed = self.closed.subscribe();
        match closed.wait_for(Option::is_some).await {
            Ok(reason) => self.lost(reason.clone().unwrap_or_default()),
            Err(_) => self.lost("dropped"),
        }
    }

    /// `work`, unless the connection closes or the deadline passes first.
    async fn within<T>(
        &self,
        after: std::time::Duration,
        what: &'static str,
        work: impl Future<Output = Result<T, TransportError>> + Send,
    ) -> Result<T, TransportError> {
        tokio::select! {
            biased;
            error = self.closed() => Err(error),
            done = timeout(after, work) => match done {
                Ok(result) => result,
                Err(_) => Err(TransportError::Deadline { peer: self.peer.clone(), what, after }),
            },
        }
    }
}

#[async_trait]
impl Connection for End {
    fn peer(&self) -> String {
        self.peer.clone()
    }

    fn carrier(&self) -> &'static str {
        "in-process"
    }

    fn verify_peer(&self, _: RunId, _: WorkerId) -> Result<(), TransportError> {
        Ok(())
    }

    async fn send(&self, frame: Frame) -> Result<(), TransportError> {
        check_control(&frame).map_err(|source| TransportError::Codec { peer: self.peer.clone(), source })?;
        let bytes = frame.wire_len();
        let queued = async { self.control.send(frame).await.map_err(|_| self.lost("dropped")) };
        self.within(self.deadlines.send, "read control frames", queued).await?;
        self.meter.control_sent(bytes);
        Ok(())
    }

    async fn send_bulk(&self, frame: Frame) -> Result<(), TransportError> {
        check_bulk(&frame).map_err(|source| TransportError::Codec { peer: self.peer.clone(), source })?;
        let bytes = frame.wire_len();
        let accepted = async {
            let (ack, accepted) = Ack::pair();
            self.bulk.send((frame, ack)).await.map_err(|_| self.lost("dropped"))?;
            self.meter.bulk_sent(bytes);
            accepted.await.map_err(|_| TransportError::NotAccepted { peer: self.peer.clone() })
        };
        self.within(self.deadlines.acknowledge, "acknowledge a bulk frame", accepted).await
    }

    async fn recv(&self) -> Result<Inbound, TransportError> {
        let mut inbox = self.inbound.lock().await;
        let Inbox { control, bulk } = &mut *inbox;
        tokio::select! {
            biased;
            Some(frame) = control.recv() => {
                self.meter.control_received(frame.wire_len());
                Ok(Inbound::Control(frame))
            }
            Some((frame, ack)) = bulk.recv() => {
                self.meter.bulk_received(frame.wire_len());
                Ok(Inbound::Bulk(frame, ack))
            }
            error = self.closed() => Err(error),
        }
    }

    fn traffic(&self) -> Traffic {
        self.meter.read()
    }

    fn close(&self, reason: &str) {
        self.closed.send_if_modified(|state| {
            let first = state.is_none();
            state.get_or_insert_with(|| reason.to_owned());
            first
        });
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.close("the other end was dropped");
    }
}
