//! One TCP connection as [`Streams`]: the two pure halves behind a lock, a task that reads records and one that writes them.
use super::inbox::{Inbox, Taken};
use super::outbox::{CONTROL, Outbox, Written};
use super::record::Record;
use crate::transport::assemble::{ByteStream, Cut, FrameError};
use crate::transport::framed::{BulkIn, BulkOutcome, CLOSED, ControlOut, Streams};
use crate::transport::{Meter, TransportOptions};
use bytes::{Bytes, BytesMut};
use cohort_protocol::{CodecError, Frame};
use rustls::pki_types::CertificateDer;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// For the last word to get out, and for what the peer had under way to be read: unread bytes would make the system reset the
/// connection, and the last word with it.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes for one read.
const READ: usize = 64 << 10;
/// Close code: as in QUIC, the peer broke the protocol.
const BAD_RECORD: u32 = 1;

/// What the other end grants, said at the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grants {
    /// Bytes of each stream that nobody has taken.
    pub(super) window: u32,
    /// Bulk frames under way.
    pub(super) max_bulks: u32,
}

/// Who is at the other end.
pub(super) struct Far {
    pub(super) remote: SocketAddr,
    pub(super) certificate: Option<CertificateDer<'static>>,
    pub(super) grants: Grants,
}

/// The handle of a connection. The tasks end with it, and it with them.
pub(super) struct TcpStreams(Arc<Mux>);

struct Mux {
    far: Far,
    state: Mutex<State>,
    /// Wakes the task that writes.
    outgoing: Notify,
    /// Wakes who waits for a control frame to go out.
    control_out: Notify,
    /// Wakes who waits for bulk frames of the peer.
    opened: Notify,
    /// The bulk frames that the peer grants.
    slots: Arc<Semaphore>,
    over: watch::Sender<bool>,
}

struct State {
    out: Outbox,
    inbox: Inbox,
    ended: Option<String>,
}

impl TcpStreams {
    /// Starts a connection whose two ends have told their grants; gives its control stream too.
    pub(super) fn start<T>(io: T, far: Far, options: &TransportOptions) -> (Self, (ControlSend, ControlRecv))
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let inbox = Inbox::new(options.stream_window, options.max_bulk_streams);
        let news = inbox.control_news();
        let mux = Arc::new(Mux {
            state: Mutex::new(State { out: Outbox::new(far.grants.window), inbox, ended: None }),
            outgoing: Notify::new(),
            control_out: Notify::new(),
            opened: Notify::new(),
            slots: Arc::new(Semaphore::new((far.grants.max_bulks as usize).min(Semaphore::MAX_PERMITS))),
            over: watch::Sender::new(false),
            far,
        });
        let (read, write) = tokio::io::split(io);
        // They end by themselves, `LINGER` after the connection at the latest; the last word must outlive the handle.
        tokio::spawn(until_over(mux.clone(), read_records(mux.clone(), read, options.idle)));
        tokio::spawn(until_over(mux.clone(), write_records(mux.clone(), write, options.keep_alive)));
        (Self(mux.clone()), (ControlSend(mux.clone()), ControlRecv { mux, news }))
    }
}

impl Mux {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first end stays; `tell`: the peer does not know yet, with the code for it.
    fn end(&self, why: &str, tell: Option<u32>) {
        {
            let mut state = self.state();
            if state.ended.is_some() {
                return;
            }
            state.ended = Some(why.to_owned());
            state.out.close(tell.map(|code| (code, why.to_owned())));
            state.inbox.cut();
        }
        self.slots.close();
        self.outgoing.notify_one();
        self.control_out.notify_one();
        self.opened.notify_one();
        self.over.send_replace(true);
    }

    fn arrived(&self, record: Record) -> Result<(), CodecError> {
        let mut state = self.state();
        if state.ended.is_some() {
            return Ok(());
        }
        match record {
            Record::Data { stream, last, bytes } => {
                if state.inbox.data(stream, last, &bytes)? {
                    self.opened.notify_one();
                }
            }
            Record::Credit { stream, bytes } => {
                state.out.granted(stream, bytes);
                self.outgoing.notify_one();
            }
            Record::Answer { stream, accepted } => state.out.answered(stream, accepted),
            Record::Abandoned { stream } => state.inbox.abandoned(stream),
            Record::Alive => {}
            Record::Close { reason, .. } => {
                drop(state);
                self.end(&reason, None);
            }
        }
        Ok(())
    }

    fn fill(&self, batch: &mut Vec<u8>) -> Written {
        let mut state = self.state();
        let written = state.out.fill(batch);
        state.inbox.answered(written.answers);
        if written.control {
            self.control_out.notify_one();
        }
        written
    }

    async fn chunk(&self, stream: u32, max: usize, news: &Notify) -> Result<Option<Bytes>, Cut> {
        loop {
            {
                let mut state = self.state();
                match state.inbox.take(stream, max) {
                    Taken::Bytes(bytes, grant) => {
                        if let Some(grant) = grant.filter(|_| state.ended.is_none()) {
                            state.out.grant(stream, grant);
                            self.outgoing.notify_one();
                        }
                        return Ok(Some(bytes));
                    }
                    Taken::End => return Ok(None),
                    Taken::Cut => return Err(Cut),
                    Taken::Nothing => {}
                }
            }
            news.notified().await;
        }
    }

    fn answer(&self, stream: u32, accepted: bool) {
        let mut state = self.state();
        state.inbox.forget(stream);
        if state.ended.is_none() {
            state.out.answer(stream, accepted);
            self.outgoing.notify_one();
        }
    }
}

impl Streams for TcpStreams {
    const CARRIER: &'static str = "tcp";
    type Bulk = BulkRecv;

    fn remote(&self) -> SocketAddr {
        self.0.far.remote
    }

    fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.0.far.certificate.clone()
    }

    async fn accept(&self) -> Option<BulkRecv> {
        loop {
            {
                let mut state = self.0.state();
                if let Some((stream, news)) = state.inbox.next_opened() {
                    return Some(BulkRecv { mux: self.0.clone(), stream, news, answer: false });
                }
                if state.ended.is_some() {
                    return None;
                }
            }
            self.0.opened.notified().await;
        }
    }

    async fn deliver(&self, frame: Frame, meter: &Meter) -> BulkOutcome {
        let bytes = frame.wire_len();
        let Ok(slot) = self.0.slots.clone().acquire_owned().await else { return BulkOutcome::Lost };
        let (tell, told) = oneshot::channel();
        let stream = {
            let mut state = self.0.state();
            let open = state.ended.is_none();
            open.then(|| state.out.bulk(frame, slot, tell)).flatten()
        };
        let Some(stream) = stream else {
            // Four billion frames have used the numbers up, or the connection is over.
            self.0.end("the connection has no number left for a bulk frame; the next one has", Some(CLOSED));
            return BulkOutcome::Lost;
        };
        self.0.outgoing.notify_one();
        // Once there is an answer it changes nothing.
        let _given_up = Abandon { mux: &self.0, stream };
        match told.await {
            Ok((outcome, whole)) => {
                if whole {
                    meter.bulk_sent(bytes);
                }
                outcome
            }
            Err(_) => BulkOutcome::Lost,
        }
    }

    fn close(&self, code: u32, reason: &str) {
        self.0.end(reason, Some(code));
    }

    fn closed(&self) -> Option<String> {
        self.0.state().ended.clone()
    }
}

impl Drop for TcpStreams {
    fn drop(&mut self) {
        self.0.end("the other end was dropped", Some(CLOSED));
    }
}

/// Gives a bulk frame up when whoever waits for its answer is dropped.
struct Abandon<'a> {
    mux: &'a Mux,
    stream: u32,
}

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.mux.state().out.abandon(self.stream);
        self.mux.outgoing.notify_one();
    }
}

/// The control stream's way out.
pub(super) struct ControlSend(Arc<Mux>);

impl ControlOut for ControlSend {
    async fn write(&mut self, frame: Frame) -> Result<(), ()> {
        {
            let mut state = self.0.state();
            if state.ended.is_some() {
                return Err(());
            }
            state.out.control(frame);
        }
        self.0.outgoing.notify_one();
        loop {
            {
                let state = self.0.state();
                if state.ended.is_some() {
                    return Err(());
                }
                if !state.out.control_pending() {
                    return Ok(());
                }
            }
            self.0.control_out.notified().await;
        }
    }
}

/// The control stream's way in.
pub(super) struct ControlRecv {
    mux: Arc<Mux>,
    news: Arc<Notify>,
}

impl ByteStream for ControlRecv {
    async fn chunk(&mut self, max: usize) -> Result<Option<Bytes>, Cut> {
        self.mux.chunk(CONTROL, max, &self.news).await
    }
}

/// A bulk frame at its receiver.
pub(super) struct BulkRecv {
    mux: Arc<Mux>,
    stream: u32,
    news: Arc<Notify>,
    /// What the sender is told when this is dropped.
    answer: bool,
}

impl ByteStream for BulkRecv {
    async fn chunk(&mut self, max: usize) -> Result<Option<Bytes>, Cut> {
        self.mux.chunk(self.stream, max, &self.news).await
    }
}

impl BulkIn for BulkRecv {
    async fn begin(&mut self) -> Result<(), FrameError> {
        Ok(())
    }

    async fn accept(mut self) {
        self.answer = true;
    }
}

impl Drop for BulkRecv {
    fn drop(&mut self) {
        self.mux.answer(self.stream, self.answer);
    }
}

/// A task of a connection, which may outlive it by `LINGER`.
async fn until_over(mux: Arc<Mux>, work: impl Future<Output = ()>) {
    let mut over = mux.over.subscribe();
    let late = async {
        // An error says that the sender is gone, which this function holds.
        let _ = over.wait_for(|over| *over).await;
        sleep(LINGER).await;
    };
    tokio::select! {
        () = work => {}
        () = late => {}
    }
}

async fn read_records<T: AsyncRead>(mux: Arc<Mux>, mut io: ReadHalf<T>, idle: Duration) {
    let mut buffer = BytesMut::with_capacity(READ);
    loop {
        loop {
            match Record::take(&mut buffer) {
                Ok(Some(record)) => {
                    if let Err(error) = mux.arrived(record) {
                        return mux.end(&format!("bad record: {error}"), Some(BAD_RECORD));
                    }
                }
                Ok(None) => break,
                Err(error) => return mux.end(&format!("bad record: {error}"), Some(BAD_RECORD)),
            }
        }
        buffer.reserve(READ);
        match timeout(idle, io.read_buf(&mut buffer)).await {
            Ok(Ok(0)) => return mux.end("the peer went away without a word", None),
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return mux.end("the peer went away without a word", None);
            }
            Ok(Err(error)) => return mux.end(&error.to_string(), None),
            Err(_) => return mux.end(&format!("nothing was heard for {idle:?}"), Some(CLOSED)),
        }
    }
}

async fn write_records<T: AsyncWrite>(mux: Arc<Mux>, mut io: WriteHalf<T>, keep_alive: Duration) {
    let mut batch = Vec::new();
    let mut quiet_since = Instant::now();
    loop {
        batch.clear();
        let written = mux.fill(&mut batch);
        if batch.is_empty() && !written.last {
            tokio::select! {
                () = mux.outgoing.notified() => continue,
                () = sleep_until(quiet_since + keep_alive) => Record::Alive.put(&mut batch),
            }
        }
        let sent = async {
            io.write_all(&batch).await?;
            io.flush().await
        };
        if let Err(error) = sent.await {
            return mux.end(&error.to_string(), None);
        }
        quiet_since = Instant::now();
        if written.last {
            // The peer has heard why; where it is gone this fails, and nothing is lost.
            let _ = io.shutdown().await;
            return;
        }
    }
}
