//! A worker's side: finds its coordinator, keeps finding it, and keeps what is in flight alive across connections.
use super::{LinkError, receive, send_error};
use crate::backoff::{BackoffPolicy, Jitter};
use crate::shutdown::Shutdown;
use crate::transport::{Ack, Connection, Dialer, Inbound, TransportError};
use cohort_protocol::messages::WireMessage;
use cohort_protocol::messages::handshake::{Handshake, Hello, Welcome};
use cohort_protocol::{CodecError, Epoch, Frame, version};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

/// Times a bulk message is sent to a peer that drops it unaccepted.
const BULK_TRIES: u32 = 10;
/// A connection that lived this long counts as a success: the next loss is answered by the first, short delay.
const STABLE_AFTER: Duration = Duration::from_secs(2);

/// How a worker looks for its coordinator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkOptions {
    /// Delays between tries. Default 0.05 s doubling to 1 s, with jitter.
    pub backoff: BackoffPolicy,
    /// For the answer to `Hello`. Default 5 s.
    pub handshake: Duration,
    /// How long to look before [`LinkError::GaveUp`]; `None`: until shutdown. Default 300 s.
    pub give_up: Option<Duration>,
    /// Goes on looking where the first connection fails for a certificate, which may be renewed meanwhile. Default true; else that is
    /// the answer. A link that has stood once always insists.
    pub insists: bool,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            backoff: BackoffPolicy::RECONNECT,
            handshake: Duration::from_secs(5),
            give_up: Some(Duration::from_secs(300)),
            insists: true,
        }
    }
}

/// A worker's session; `In` is what the coordinator says, `Out` what the worker says.
pub struct WorkerLink<In, Out> {
    dialer: Arc<dyn Dialer>,
    hello: Hello,
    options: LinkOptions,
    shutdown: Shutdown,
    jitter: Jitter,
    failures: u32,
    since: Instant,
    connection: Arc<dyn Connection>,
    session: watch::Sender<Session>,
    messages: PhantomData<fn(Out) -> In>,
}

/// What senders need to know of the present connection.
#[derive(Clone)]
struct Session {
    /// `None` between two connections.
    connection: Option<Arc<dyn Connection>>,
    welcome: Welcome,
}

/// Sends a worker's messages over whatever connection the link has; clonable, valid across reconnections.
pub struct LinkSender<Out> {
    session: watch::Receiver<Session>,
    shutdown: Shutdown,
    backoff: BackoffPolicy,
    messages: PhantomData<fn(Out)>,
}

impl<In: WireMessage, Out: WireMessage> WorkerLink<In, Out> {
    /// Looks for the coordinator until it welcomes this worker.
    ///
    /// Errors: [`LinkError::Refused`] (final), [`LinkError::GaveUp`], [`LinkError::Shutdown`].
    pub async fn connect(
        dialer: Arc<dyn Dialer>,
        hello: Hello,
        options: LinkOptions,
        shutdown: Shutdown,
    ) -> Result<Self, LinkError> {
        let mut jitter = Jitter::new(u64::from(hello.pid) << 32 | u64::from(hello.incarnation));
        let (connection, welcome) = seek(dialer.as_ref(), &hello, &options, &shutdown, 0, &mut jitter).await?;
        let session = watch::Sender::new(Session { connection: Some(connection.clone()), welcome });
        let (since, messages) = (Instant::now(), PhantomData);
        Ok(Self { dialer, hello, options, shutdown, jitter, failures: 0, since, connection, session, messages })
    }

    /// The next message, with the acknowledgement it waits for if it came as bulk. Cancel-safe.
    ///
    /// Errors: [`LinkError::Lost`] (call [`Self::reconnect`]), [`LinkError::Shutdown`].
    pub async fn recv(&self) -> Result<(In, Option<Ack>), LinkError> {
        tokio::select! {
            biased;
            reason = self.shutdown.wait() => Err(LinkError::Shutdown { reason }),
            message = receive(self.connection.as_ref()) => Ok(message?),
        }
    }

    /// After a loss: looks for the coordinator again. Senders carry on over the new connection. When the epoch in the
    /// answer is another one than before, every lease of the old one is void.
    ///
    /// Errors: as [`Self::connect`].
    pub async fn reconnect(&mut self) -> Result<Welcome, LinkError> {
        self.connection.close("reconnecting");
        self.session.send_modify(|session| session.connection = None);
        self.failures = if self.since.elapsed() < STABLE_AFTER { self.failures.saturating_add(1) } else { 1 };
        let found = seek(self.dialer.as_ref(), &self.hello, &self.options, &self.shutdown, self.failures, &mut self.jitter).await;
        let (connection, welcome) = found?;
        self.connection = connection.clone();
        self.since = Instant::now();
        self.session.send_replace(Session { connection: Some(connection), welcome: welcome.clone() });
        Ok(welcome)
    }

    /// A handle for sending.
    #[must_use]
    pub fn sender(&self) -> LinkSender<Out> {
        LinkSender {
            session: self.session.subscribe(),
            shutdown: self.shutdown.clone(),
            backoff: self.options.backoff,
            messages: PhantomData,
        }
    }

    /// The coordinator's incarnation.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.session.borrow().welcome.epoch
    }

    /// The negotiated protocol version.
    #[must_use]
    pub fn protocol(&self) -> u16 {
        self.session.borrow().welcome.protocol
    }

    /// The present connection, for its traffic and its name.
    #[must_use]
    pub fn connection(&self) -> &Arc<dyn Connection> {
        &self.connection
    }

    /// Ends the session; the coordinator sees the reason.
    pub fn close(&self, reason: &str) {
        self.connection.close(reason);
    }
}

impl<In, Out> Drop for WorkerLink<In, Out> {
    fn drop(&mut self) {
        self.connection.close("the worker ended its session");
    }
}

impl<In, Out> fmt::Debug for WorkerLink<In, Out> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerLink").field("worker", &self.hello.worker).field("peer", &self.connection.peer()).finish()
    }
}

impl<Out: WireMessage> LinkSender<Out> {
    /// Sends on the control stream, once.
    ///
    /// Errors: [`LinkError::Lost`] where there is no connection or it breaks; [`LinkError::Unsendable`].
    pub async fn send(&self, message: &Out) -> Result<(), LinkError> {
        let frame = message.to_frame().map_err(LinkError::Unsendable)?;
        let connection = self.session.borrow().connection.clone();
        let Some(connection) = connection else { return Err(LinkError::Lost(no_connection())) };
        connection.send(frame).await.map_err(send_error)
    }

    /// Sends on a stream of its own until the coordinator accepted it (L3): waits out lost connections, sends again
    /// what was dropped.
    ///
    /// Errors: [`LinkError::StaleEpoch`] (drop the message), [`LinkError::NotAccepted`], [`LinkError::Unsendable`],
    /// [`LinkError::Shutdown`] where no connection is left, [`LinkError::Lost`] where the link itself is gone.
    pub async fn send_bulk(&self, message: &Out) -> Result<(), LinkError> {
        let frame = message.to_frame().map_err(LinkError::Unsendable)?;
        let mut session = self.session.clone();
        let then = session.borrow().welcome.epoch;
        let mut jitter = Jitter::new(frame.wire_len());
        let mut dropped = 0;
        loop {
            let connection = self.connected(&mut session, then).await?;
            match connection.send_bulk(frame.clone()).await {
                Ok(()) => return Ok(()),
                Err(TransportError::NotAccepted { peer }) => {
                    dropped += 1;
                    if dropped == BULK_TRIES {
                        return Err(LinkError::NotAccepted { peer, tries: dropped });
                    }
                    sleep(self.backoff.delay(dropped, &mut jitter)).await;
                }
                Err(error) => match send_error(error) {
                    LinkError::Lost(why) => {
                        debug!(target: "cohort::link", peer = connection.peer(), error = %why, "bulk_interrupted");
                        // Wakes the receiving side too, whose job it is to reconnect.
                        connection.close("a bulk message did not get through");
                        self.replaced(&mut session, &connection).await?;
                    }
                    other => return Err(other),
                },
            }
        }
    }

    /// The coordinator's incarnation at the other end of the present, or the last, connection.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.session.borrow().welcome.epoch
    }

    /// Waits for a connection of epoch `then`.
    async fn connected(&self, session: &mut watch::Receiver<Session>, then: Epoch) -> Result<Arc<dyn Connection>, LinkError> {
        loop {
            {
                let now = session.borrow_and_update();
                if now.welcome.epoch != then {
                    return Err(LinkError::StaleEpoch { then, now: now.welcome.epoch });
                }
                if let Some(connection) = &now.connection {
                    return Ok(connection.clone());
                }
            }
            self.changed(session).await?;
        }
    }

    /// Waits until the link has dropped `broken`.
    async fn replaced(&self, session: &mut watch::Receiver<Session>, broken: &Arc<dyn Connection>) -> Result<(), LinkError> {
        while session.borrow_and_update().connection.as_ref().is_some_and(|now| Arc::ptr_eq(now, broken)) {
            self.changed(session).await?;
        }
        Ok(())
    }

    async fn changed(&self, session: &mut watch::Receiver<Session>) -> Result<(), LinkError> {
        tokio::select! {
            biased;
            changed = session.changed() => changed.map_err(|_| LinkError::Lost(no_connection())),
            reason = self.shutdown.wait() => Err(LinkError::Shutdown { reason }),
        }
    }
}

impl<Out> Clone for LinkSender<Out> {
    fn clone(&self) -> Self {
        Self { session: self.session.clone(), shutdown: self.shutdown.clone(), backoff: self.backoff, messages: PhantomData }
    }
}

impl<Out> fmt::Debug for LinkSender<Out> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkSender").finish_non_exhaustive()
    }
}

fn no_connection() -> TransportError {
    TransportError::Lost { peer: "coordinator".into(), why: "no connection".into() }
}

/// Tries until welcomed, refused, told to leave or out of time. `failures` so far decide the first delay.
async fn seek(
    dialer: &dyn Dialer,
    hello: &Hello,
    options: &LinkOptions,
    shutdown: &Shutdown,
    mut failures: u32,
    jitter: &mut Jitter,
) -> Result<(Arc<dyn Connection>, Welcome), LinkError> {
    let started = Instant::now();
    let (mut tries, mut told, first) = (0, false, failures == 0);
    loop {
        let pause = options.backoff.delay(failures, jitter);
        let attempt = async {
            sleep(pause).await;
            dial(dialer, hello, options.handshake).await
        };
        let outcome = tokio::select! {
            biased;
            reason = shutdown.wait() => return Err(LinkError::Shutdown { reason }),
            outcome = attempt => outcome,
        };
        let last = match outcome {
            Ok((connection, welcome)) => {
                info!(target: "cohort::link", worker = %hello.worker, peer = connection.peer(), over = connection.carrier(),
                    epoch = welcome.epoch.0, protocol = welcome.protocol, "connected");
                return Ok((connection, welcome));
            }
            Err(LinkError::Lost(error)) => error,
            Err(refused) => return Err(refused),
        };
        if let TransportError::Certificate { .. } = &last {
            if first && !options.insists {
                return Err(LinkError::Lost(last));
            }
            if !told {
                warn!(target: "cohort::link", worker = %hello.worker, error = %last, "certificate_refused");
                told = true;
            }
        }
        tries += 1;
        failures = failures.saturating_add(1);
        if options.give_up.is_some_and(|limit| started.elapsed() >= limit) {
            return Err(LinkError::GaveUp { address: dialer.address(), after: started.elapsed(), tries, last: last.to_string() });
        }
        // A coordinator that restarts is away for a second or two; only a longer absence deserves attention.
        if tries == 8 {
            warn!(target: "cohort::link", worker = %hello.worker, address = dialer.address(), error = %last, "still_seeking");
        }
    }
}

/// One connection and its handshake.
async fn dial(dialer: &dyn Dialer, hello: &Hello, deadline: Duration) -> Result<(Arc<dyn Connection>, Welcome), LinkError> {
    let connection = dialer.connect().await?;
    let peer = connection.peer();
    let answer = async {
        connection.send(Handshake::Hello(hello.clone()).to_frame().map_err(LinkError::Unsendable)?).await?;
        Ok::<_, LinkError>(connection.recv().await?)
    };
    let answer = timeout(deadline, answer).await.map_err(|_| TransportError::Deadline {
        peer: peer.clone(),
        what: "answer Hello",
        after: deadline,
    })??;
    match handshake(&answer) {
        Ok(Handshake::Welcome(welcome)) if (version::PROTOCOL_MIN..=version::PROTOCOL).contains(&welcome.protocol) => {
            Ok((connection, welcome))
        }
        Ok(Handshake::Welcome(welcome)) => {
            let reason = format!(
                "it answered with protocol {}, this build speaks {} to {}; use one build for all processes of a run",
                welcome.protocol,
                version::PROTOCOL_MIN,
                version::PROTOCOL
            );
            Err(LinkError::Refused { peer, reason })
        }
        Ok(Handshake::Refused(refused)) => Err(LinkError::Refused { peer, reason: refused.reason }),
        Ok(Handshake::Hello(_) | Handshake::Enrol(_) | Handshake::Enrolled(_)) => {
            Err(TransportError::Codec { peer, source: not_an_answer("frame of another handshake") }.into())
        }
        Err(source) => Err(TransportError::Codec { peer, source }.into()),
    }
}

fn handshake(answer: &Inbound) -> Result<Handshake, CodecError> {
    match answer {
        Inbound::Control(frame @ Frame { .. }) => Handshake::from_frame(frame),
        Inbound::Bulk(..) => Err(not_an_answer("bulk frame")),
    }
}

fn not_an_answer(got: &str) -> CodecError {
    CodecError::Malformed { what: "answer to Hello", why: format!("it is a {got}") }
}
