//! Where a run can be reached: its sockets, what children find where their predecessors left it, where other hosts come in.
use super::children::certificates;
use super::head::HEAD;
use super::orders::Orders;
use super::weights::{holder, shelf::Shelf};
use super::{AgentError, AgentOptions, handover, news};
use crate::progress::ProgressSink;
use cohort_actors::certs::{Identity, RunAuthority};
use cohort_actors::transport::reach::{Reach, Sockets};
use cohort_actors::{AcceptTerms, Listener};
use cohort_engine::SharedRing;
use cohort_protocol::messages::node::RunFacts;
use cohort_protocol::{Epoch, RunId};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// The sockets of a run.
pub(super) struct Ports {
    pub(super) coordinator: Sockets,
    /// For agents of other hosts, and for weights; none: the run keeps to this host.
    pub(super) others: Option<(Sockets, Sockets)>,
}

impl Ports {
    /// Loopback only, unless the configuration says where to listen: agents at that port, workers at the next, weights at
    /// the one after.
    pub(super) fn bind(listen: Option<SocketAddr>, reach: &Reach) -> Result<Self, AgentError> {
        let bind = |what, address: SocketAddr| reach.bind(address).map_err(|source| AgentError::System { what, source });
        let Some(listen) = listen else {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            return Ok(Self { coordinator: bind("bind the coordinator's port", address)?, others: None });
        };
        let next = |n: u16| SocketAddr::new(listen.ip(), if listen.port() == 0 { 0 } else { listen.port().saturating_add(n) });
        Ok(Self {
            coordinator: bind("bind the port after cluster.listen, for workers", next(1))?,
            others: Some((
                bind("bind cluster.listen, for other hosts", listen)?,
                bind("bind the second port after cluster.listen, for weights", next(2))?,
            )),
        })
    }
}

/// What every child finds where its predecessor left it: the port, the ring, the pipes.
pub(super) fn hand_over(
    options: &AgentOptions,
    sockets: Sockets,
    ring: &SharedRing,
    progress: Arc<dyn ProgressSink>,
) -> Result<(String, news::Heard, Orders), AgentError> {
    let system = |what| move |source| AgentError::System { what, source };
    let (news, teller) = std::io::pipe().map_err(system("open the progress pipe"))?;
    let (orders_out, orders_in) = std::io::pipe().map_err(system("open the orders pipe"))?;
    let name = format!("cohort-{:016x}-{}", options.run.0, std::process::id());
    let ring_memory = OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{}", ring.fd()));
    let (udp, tcp) = sockets.into_descriptors();
    let mut items = BTreeMap::from([
        (handover::Item::Ring as u8, OwnedFd::from(ring_memory.map_err(system("keep the weight ring"))?)),
        (handover::Item::Progress as u8, OwnedFd::from(teller)),
        (handover::Item::Orders as u8, OwnedFd::from(orders_out)),
    ]);
    items.extend(udp.map(|socket| (handover::Item::Udp as u8, socket)));
    items.extend(tcp.map(|socket| (handover::Item::Tcp as u8, socket)));
    handover::serve(&name, items).map_err(system("open the hand-over socket"))?;
    let heard = news::listen(news, progress).map_err(system("start the progress reader"))?;
    let orders = Orders::new(orders_in).map_err(system("prepare the orders pipe"))?;
    Ok((name, heard, orders))
}

/// Where other hosts come in, and what they are told.
pub(super) struct Doors {
    pub(super) facts: RunFacts,
    pub(super) listener: Option<Arc<dyn Listener>>,
    pub(super) listen: Option<SocketAddr>,
    pub(super) serving: Vec<JoinHandle<()>>,
}

impl Doors {
    pub(super) fn open(
        options: &AgentOptions,
        authority: &RunAuthority,
        ring: &Arc<SharedRing>,
        shelf: &Arc<Shelf>,
        reach: &Reach,
        coordinator: SocketAddr,
        others: Option<(Sockets, Sockets)>,
    ) -> Result<Self, AgentError> {
        let system = |what| move |source| AgentError::System { what, source };
        let (coordinator_port, slots) = (coordinator.port(), options.slots);
        let facts = RunFacts { config: String::new(), coordinator_port, weights_port: 0, slots };
        let mut doors = Self { facts, listener: None, listen: None, serving: Vec::new() };
        let Some((agents, weights)) = others else { return Ok(doors) };
        // From its file, so that a renewal of the file is shown.
        authority.issue_files(HEAD)?;
        let identity = Identity::load(&certificates(&options.paths), options.run, HEAD)?;
        doors.facts.weights_port = weights.local_addr().map_err(system("read the weights' port"))?.port();
        doors.facts.config = std::fs::read_to_string(options.paths.config()).map_err(system("read config.toml"))?;
        let agents = reach.listen_with_strangers(agents, &identity)?;
        doors.listen = Some(agents.local_addr());
        doors.listener = Some(Arc::new(agents));
        let weights: Arc<dyn Listener> = Arc::new(reach.listen(weights, &identity)?);
        let serving = holder::serve(weights, node_terms(options.run), ring.clone(), shelf.clone());
        doors.serving.push(tokio::spawn(serving));
        Ok(doors)
    }
}

/// Who may take weights from a host.
pub(super) fn node_terms(run: RunId) -> AcceptTerms {
    let deadline = Duration::from_secs(5);
    AcceptTerms { run, epoch: Epoch(0), numerics: String::new(), corrects: false, deadline, roles: AcceptTerms::NODES }
}

/// Where this host's own workers find a socket that listens on all addresses.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
