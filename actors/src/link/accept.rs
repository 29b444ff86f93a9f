//! The side that listens, the coordinator's or a node agent's: checks who comes, answers, and speaks to each peer through a
//! [`PeerLink`].
use super::{LinkError, receive, send_error};
use crate::transport::{Ack, Connection, Inbound, Traffic, TransportError};
use cohort_protocol::messages::WireMessage;
use cohort_protocol::messages::handshake::{Enrol, Enrolled, Handshake, Hello, Refused, Welcome};
use cohort_protocol::{CodecError, Epoch, Role, RunId, WorkerId, version};
use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long a refused worker gets to read why before the connection is cut.
const LINGER: Duration = Duration::from_secs(1);

/// What a worker must agree with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptTerms {
    /// The run.
    pub run: RunId,
    /// This coordinator's incarnation.
    pub epoch: Epoch,
    /// The run's numerics, one line. Rollout workers and learner ranks must name the same; graders do not compute.
    pub numerics: String,
    /// Whether rollout workers that name others are let in all the same, as corrected samplers ([`Admitted::corrected`]).
    pub corrects: bool,
    /// For `Hello` to arrive. 5 s suits.
    pub deadline: Duration,
    /// Whose places these are: [`AcceptTerms::WORKERS`] or [`AcceptTerms::NODES`].
    pub roles: &'static [Role],
}

impl AcceptTerms {
    /// Who may come to a coordinator.
    pub const WORKERS: &'static [Role] = &[Role::Rollout, Role::Reward, Role::Learner];
    /// Who may come to the rank of the learner that leads.
    pub const FOLLOWERS: &'static [Role] = &[Role::Learner];
    /// Who may come to a node agent.
    pub const NODES: &'static [Role] = &[Role::Node];
}

/// A worker that was welcomed.
pub struct Admitted {
    /// What it said of itself.
    pub hello: Hello,
    /// The negotiated version.
    pub protocol: u16,
    /// It samples with other numerics than the run's: nothing that it says of a log-prob is exact.
    pub corrected: bool,
    /// Its connection; [`Self::into_link`] types it.
    pub connection: Arc<dyn Connection>,
}

/// Reads `Hello`, checks it against `terms`, the certificate and `admit` (whose error is the reason given), and answers.
/// Takes at most the deadline and, for a refusal, one second more: call it in a task of its own for each connection.
///
/// Errors: [`LinkError::Rejected`] after a refusal was sent, [`LinkError::Lost`].
pub async fn accept_worker(
    connection: Arc<dyn Connection>,
    terms: &AcceptTerms,
    admit: impl FnOnce(&Hello) -> Result<(), String> + Send,
) -> Result<Admitted, LinkError> {
    let first = first_frame(&connection, terms).await?;
    let hello = hello_of(&first).map_err(|error| error.to_string());
    answer(connection, terms, hello, admit).await
}

/// As [`accept_worker`], for a listener that lets strangers in: an [`Enrol`] is answered by what `enrol` makes of it, and that
/// connection is over (`None`).
pub async fn accept_node(
    connection: Arc<dyn Connection>,
    terms: &AcceptTerms,
    admit: impl FnOnce(&Hello) -> Result<(), String> + Send,
    enrol: impl FnOnce(&Enrol) -> Result<Enrolled, String> + Send,
) -> Result<Option<Admitted>, LinkError> {
    let first = first_frame(&connection, terms).await?;
    let request = match &first {
        Inbound::Control(frame) => match Handshake::from_frame(frame) {
            Ok(Handshake::Enrol(request)) => request,
            _ => {
                let hello = hello_of(&first).map_err(|error| error.to_string());
                return answer(connection, terms, hello, admit).await.map(Some);
            }
        },
        Inbound::Bulk(..) => return Err(refuse(connection, "an Enrol is no bulk frame".into()).await?),
    };
    let verdict = if request.run == terms.run { enrol(&request) } else { Err(other_run(terms.run, request.run)) };
    match verdict {
        Ok(enrolled) => {
            connection.send(Handshake::Enrolled(enrolled).to_frame().map_err(LinkError::Unsendable)?).await?;
            linger(connection.as_ref()).await;
            connection.close("enrolled");
            Ok(None)
        }
        Err(reason) => Err(refuse(connection, reason).await?),
    }
}

async fn first_frame(connection: &Arc<dyn Connection>, terms: &AcceptTerms) -> Result<Inbound, LinkError> {
    let first = timeout(terms.deadline, connection.recv()).await;
    let first = first.map_err(|_| {
        connection.close("no Hello in time");
        TransportError::Deadline { peer: connection.peer(), what: "say Hello", after: terms.deadline }
    })??;
    Ok(first)
}

async fn answer(
    connection: Arc<dyn Connection>,
    terms: &AcceptTerms,
    hello: Result<Hello, String>,
    admit: impl FnOnce(&Hello) -> Result<(), String> + Send,
) -> Result<Admitted, LinkError> {
    let verdict = hello
        .and_then(|hello| Ok((check(&hello, terms, connection.as_ref())?, hello)))
        .and_then(|(protocol, hello)| admit(&hello).map(|()| (protocol, hello)));
    match verdict {
        Ok((protocol, hello)) => {
            let welcome = Handshake::Welcome(Welcome { protocol, epoch: terms.epoch });
            connection.send(welcome.to_frame().map_err(LinkError::Unsendable)?).await?;
            let corrected = computes(&hello) && hello.numerics != terms.numerics;
            Ok(Admitted { hello, protocol, corrected, connection })
        }
        Err(reason) => Err(refuse(connection, reason).await?),
    }
}

/// Says why, and gives the error to return.
async fn refuse(connection: Arc<dyn Connection>, reason: String) -> Result<LinkError, LinkError> {
    let refused = Handshake::Refused(Refused { reason: reason.clone() });
    connection.send(refused.to_frame().map_err(LinkError::Unsendable)?).await?;
    linger(connection.as_ref()).await;
    connection.close(&reason);
    Ok(LinkError::Rejected { peer: connection.peer(), reason })
}

/// The peer closes once it has read the answer; closing here first could overtake it.
async fn linger(connection: &dyn Connection) {
    // Where it does not close it is cut off.
    let _ = timeout(LINGER, async { while connection.recv().await.is_ok() {} }).await;
}

fn other_run(ours: RunId, theirs: RunId) -> String {
    format!("this is run {ours}, the peer was started for run {theirs}")
}

impl Admitted {
    /// Its place in the run.
    #[must_use]
    pub fn worker(&self) -> WorkerId {
        self.hello.worker
    }

    /// The session typed by its role: `In` is what the worker says, `Out` what the coordinator says.
    #[must_use]
    pub fn into_link<In: WireMessage, Out: WireMessage>(self) -> PeerLink<In, Out> {
        let sender = PeerSender { connection: self.connection, messages: PhantomData };
        PeerLink { hello: self.hello, protocol: self.protocol, sender, messages: PhantomData }
    }
}

impl fmt::Debug for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admitted").field("hello", &self.hello).field("peer", &self.connection.peer()).finish()
    }
}

/// The coordinator's session with one worker. It does not reconnect: the worker comes back with a new `Hello`.
pub struct PeerLink<In, Out> {
    hello: Hello,
    protocol: u16,
    sender: PeerSender<Out>,
    messages: PhantomData<fn() -> In>,
}

/// Sends to one worker over one connection; clonable.
pub struct PeerSender<Out> {
    connection: Arc<dyn Connection>,
    messages: PhantomData<fn(Out)>,
}

impl<In: WireMessage, Out: WireMessage> PeerLink<In, Out> {
    /// The next message, with the acknowledgement it waits for if it came as bulk. Cancel-safe.
    pub async fn recv(&self) -> Result<(In, Option<Ack>), LinkError> {
        Ok(receive(self.sender.connection.as_ref()).await?)
    }

    /// A handle for sending.
    #[must_use]
    pub fn sender(&self) -> PeerSender<Out> {
        self.sender.clone()
    }

    /// What the worker said of itself.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The negotiated version.
    #[must_use]
    pub fn protocol(&self) -> u16 {
        self.protocol
    }

    /// Payload bytes so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.sender.connection.traffic()
    }

    /// The peer's network address, where it has one.
    #[must_use]
    pub fn remote(&self) -> Option<SocketAddr> {
        self.sender.connection.remote()
    }

    /// Ends the session; the worker sees the reason.
    pub fn close(&self, reason: &str) {
        self.sender.connection.close(reason);
    }
}

impl<In, Out> fmt::Debug for PeerLink<In, Out> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerLink").field("worker", &self.hello.worker).finish_non_exhaustive()
    }
}

impl<Out: WireMessage> PeerSender<Out> {
    /// Sends on the control stream, in order.
    pub async fn send(&self, message: &Out) -> Result<(), LinkError> {
        let frame = message.to_frame().map_err(LinkError::Unsendable)?;
        self.connection.send(frame).await.map_err(send_error)
    }

    /// Sends on a stream of its own, once; returns when the worker accepted it.
    ///
    /// Errors: [`LinkError::NotAccepted`] (send it again or to another worker), [`LinkError::Lost`].
    pub async fn send_bulk(&self, message: &Out) -> Result<(), LinkError> {
        let frame = message.to_frame().map_err(LinkError::Unsendable)?;
        self.connection.send_bulk(frame).await.map_err(|error| match error {
            TransportError::NotAccepted { peer } => LinkError::NotAccepted { peer, tries: 1 },
            other => send_error(other),
        })
    }

    /// Payload bytes so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.connection.traffic()
    }

    /// Ends the session; the worker sees the reason.
    pub fn close(&self, reason: &str) {
        self.connection.close(reason);
    }
}

impl<Out> Clone for PeerSender<Out> {
    fn clone(&self) -> Self {
        Self { connection: self.connection.clone(), messages: PhantomData }
    }
}

impl<Out> fmt::Debug for PeerSender<Out> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerSender").field("peer", &self.connection.peer()).finish()
    }
}

fn hello_of(first: &Inbound) -> Result<Hello, CodecError> {
    let wrong = |got: &str| CodecError::Malformed { what: "Hello", why: format!("it is a {got}") };
    match first {
        Inbound::Control(frame) => match Handshake::from_frame(frame)? {
            Handshake::Hello(hello) => Ok(hello),
            Handshake::Welcome(_) => Err(wrong("Welcome")),
            Handshake::Refused(_) => Err(wrong("Refused")),
            Handshake::Enrol(_) => Err(wrong("Enrol")),
            Handshake::Enrolled(_) => Err(wrong("Enrolled")),
        },
        Inbound::Bulk(..) => Err(wrong("bulk frame")),
    }
}

fn computes(hello: &Hello) -> bool {
    matches!(hello.worker.role, Role::Rollout | Role::Learner)
}

/// The version to speak with this worker, or why not.
fn check(hello: &Hello, terms: &AcceptTerms, connection: &dyn Connection) -> Result<u16, String> {
    if hello.run != terms.run {
        return Err(other_run(terms.run, hello.run));
    }
    if !terms.roles.contains(&hello.worker.role) {
        return Err(format!("{} has no place here", hello.worker));
    }
    connection.verify_peer(hello.run, hello.worker).map_err(|error| error.to_string())?;
    let corrects = terms.corrects && hello.worker.role == Role::Rollout;
    if computes(hello) && !corrects && hello.numerics != terms.numerics {
        return Err(format!(
            "run numerics differ: the run has {:?}, {} has {:?}; use the same build, kernel path and config, or, for a rollout \
             worker, begin the run with rollout.other_numerics = \"correct\"",
            terms.numerics, hello.worker, hello.numerics
        ));
    }
    version::negotiate(hello.protocol_min, hello.protocol_max).ok_or_else(|| {
        format!(
            "no common protocol version: {} speaks {} to {}, this build {} to {}; use one build for all processes of a run",
            hello.worker,
            hello.protocol_min,
            hello.protocol_max,
            version::PROTOCOL_MIN,
            version::PROTOCOL
        )
    })
}
