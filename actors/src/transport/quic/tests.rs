//! What only this transport can get wrong: certificates, raw bytes of a hostile peer, silence.
use super::*;
use crate::certs::RunAuthority;
use crate::transport::{EndpointError, Inbound};
use cohort_protocol::{Frame, Role, RunId, limits};
use std::path::Path;
use std::time::SystemTime;
use tokio::time::Instant;

const RUN: RunId = RunId(7);
const WORKER: WorkerId = WorkerId { role: Role::Rollout, index: 0 };

fn quick() -> TransportOptions {
    TransportOptions { keep_alive: Duration::from_millis(200), idle: Duration::from_millis(800), ..TransportOptions::default() }
}

fn authority(dir: &Path) -> RunAuthority {
    RunAuthority::open_or_create(dir, RUN).unwrap()
}

fn listen(authority: &RunAuthority, options: TransportOptions) -> QuicListener {
    QuicListener::new(UdpSocket::bind("127.0.0.1:0").unwrap(), &authority.issue(COORDINATOR).unwrap(), options).unwrap()
}

async fn dial(listener: &QuicListener, identity: &Identity) -> Result<Arc<dyn Connection>, TransportError> {
    QuicDialer::new(listener.local_addr(), identity, quick()).unwrap().connect().await
}

/// A peer that speaks QUIC with a proper certificate and then whatever the test writes.
async fn raw(listener: &QuicListener, crypto: rustls::ClientConfig) -> Result<quinn::Connection, ConnectionError> {
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(crypto).unwrap()));
    endpoint.connect_with(config, listener.local_addr(), &name_of(RUN, COORDINATOR)).unwrap().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_rejected() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (ours, theirs) = (authority(ours.path()), authority(theirs.path()));
    let listener = listen(&ours, quick());
    let now = SystemTime::now();
    let day = Duration::from_secs(86_400);
    let name = name_of(RUN, WORKER);

    let expired = ours.issue_for(&name, WORKER, now - 2 * day, now - day).unwrap();
    let error = dial(&listener, &expired).await.map(|c| c.peer()).unwrap_err();
    assert!(error.to_string().to_lowercase().contains("expired"), "{error}");
    let not_yet = ours.issue_for(&name, WORKER, now + day, now + 2 * day).unwrap();
    dial(&listener, &not_yet).await.map(|c| c.peer()).unwrap_err();

    // A certificate of another authority, by a client that would trust the server.
    let mut foreign = theirs.issue(WORKER).unwrap();
    foreign.trust(ours.issue(WORKER).unwrap().authority());
    let error = dial(&listener, &foreign).await.map(|c| c.peer()).unwrap_err();
    assert!(matches!(error, TransportError::Certificate { .. }), "{error:?}");

    let mut anonymous = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(tls::roots(&ours.issue(WORKER).unwrap()).unwrap())
        .with_no_client_auth();
    anonymous.alpn_protocols = vec![ALPN.to_vec()];
    if let Ok(quic) = raw(&listener, anonymous).await {
        // The client's half of the handshake ends first; the listener's alert follows.
        let reason = timeout(Duration::from_secs(5), quic.closed()).await.unwrap().to_string();
        assert!(reason.contains("certificate"), "{reason}");
    }

    let accepted = timeout(Duration::from_millis(200), listener.accept()).await;
    assert!(accepted.is_err(), "a stranger got through");
    let friend = ours.issue(WORKER).unwrap();
    let (friend, accepted) = tokio::join!(dial(&listener, &friend), listener.accept());
    friend.unwrap();
    accepted.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_reject_a_false_coordinator() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (ours, theirs) = (authority(ours.path()), authority(theirs.path()));
    let worker = ours.issue(WORKER).unwrap();
    let socket = || UdpSocket::bind("127.0.0.1:0").unwrap();
    // A worker's certificate of the right run does not make a coordinator.
    let impostor = QuicListener::new(socket(), &ours.issue(WORKER).unwrap(), quick()).unwrap();
    let error = dial(&impostor, &worker).await.map(|c| c.peer()).unwrap_err();
    assert!(error.to_string().contains("not valid for"), "{error}");
    let foreign = QuicListener::new(socket(), &theirs.issue(COORDINATOR).unwrap(), quick()).unwrap();
    dial(&foreign, &worker).await.map(|c| c.peer()).unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_bytes_end_the_connection_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let listener = listen(&authority, quick());
    let control = |bytes: Vec<u8>| (false, bytes);
    let bulk = |bytes: Vec<u8>| (true, bytes);
    let too_long = |limit: usize| u32::try_from(limit + 3).unwrap().to_le_bytes().to_vec();
    let mut trailing = vec![2];
    trailing.extend(Frame { direction: 2, tag: 1, body: vec![1, 2, 3].into() }.to_bytes());
    trailing.push(0);
    let cases = [
        ("control frame over the limit", control(too_long(limits::MAX_CONTROL_BODY)), "over the limit"),
        ("control frame shorter than its header", control(vec![1, 0, 0, 0, 9]), "shorter than its header"),
        ("bulk frame over the limit", bulk([vec![2], too_long(limits::MAX_BULK_BODY)].concat()), "over the limit"),
        ("unknown kind of stream", bulk(vec![9, 0, 0, 0, 0]), "kind 9"),
        ("bulk frame that ends early", bulk(vec![2, 10, 0, 0, 0, 1, 1, 5]), "early"),
        ("bulk frame with a tail", bulk(trailing), "trailing"),
    ];
    for (what, (on_bulk_stream, bytes), named) in cases {
        let quic = raw(&listener, tls::client(&authority.issue(WORKER).unwrap(), ALPN).unwrap().0).await.unwrap();
        let (mut send, _recv) = stream::open_control(&quic).await.unwrap();
        let connection = listener.accept().await.unwrap();
        let mut bulk_stream;
        if on_bulk_stream {
            bulk_stream = quic.open_bi().await.unwrap();
            bulk_stream.0.write_all(&bytes).await.unwrap();
            bulk_stream.0.finish().unwrap();
        } else {
            send.write_all(&bytes).await.unwrap();
        }
        let error = timeout(Duration::from_secs(5), connection.recv()).await.unwrap().unwrap_err();
        assert!(matches!(&error, TransportError::Codec { .. }), "{what}: {error:?}");
        assert!(error.to_string().contains(named), "{what}: {error}");
        let told = timeout(Duration::from_secs(5), quic.closed()).await.unwrap().to_string();
        assert!(told.contains(named), "{what}: the peer is told {told}");
    }
    let worker = authority.issue(WORKER).unwrap();
    let (dialled, accepted) = tokio::join!(dial(&listener, &worker), listener.accept());
    dialled.unwrap();
    accepted.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claimed_length_allocates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let listener = listen(&authority, quick());
    let quic = raw(&listener, tls::client(&authority.issue(WORKER).unwrap(), ALPN).unwrap().0).await.unwrap();
    let _control = stream::open_control(&quic).await.unwrap();
    let connection = listener.accept().await.unwrap();
    // Two frames of the largest size fit the budget; the claims alone must not take memory, only the arrival of bytes.
    let before = resident();
    let mut claims = Vec::new();
    for _ in 0..2 {
        let (mut send, recv) = quic.open_bi().await.unwrap();
        let len = u32::try_from(limits::MAX_BULK_BODY).unwrap().to_le_bytes();
        send.write_all(&[&[2][..], &len, &[1, 1, 0]].concat()).await.unwrap();
        claims.push((send, recv));
    }
    assert!(timeout(Duration::from_millis(300), connection.recv()).await.is_err());
    assert!(resident().saturating_sub(before) < 64 << 20, "grew by {} MiB", (resident() - before) >> 20);
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// A relay that can stop relaying: to both ends the peer falls silent, as behind a cut cable.
async fn relay(to: SocketAddr) -> (SocketAddr, AbortHandle) {
    let front = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = front.local_addr().unwrap();
    let back = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    back.connect(to).await.unwrap();
    let task = tokio::spawn(async move {
        let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
        let mut client = None;
        loop {
            tokio::select! {
                Ok((n, from)) = front.recv_from(&mut up) => {
                    client = Some(from);
                    back.send(&up[..n]).await.unwrap();
                }
                Ok(n) = back.recv(&mut down) => {
                    if let Some(client) = client {
                        front.send_to(&down[..n], client).await.unwrap();
                    }
                }
            }
        }
    });
    (address, task.abort_handle())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_is_lost_within_the_idle_time() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let listener = listen(&authority, quick());
    let (through, cut) = relay(listener.local_addr()).await;
    let dialer = QuicDialer::new(through, &authority.issue(WORKER).unwrap(), quick()).unwrap();
    let (worker, coordinator) = tokio::join!(dialer.connect(), listener.accept());
    let (worker, coordinator) = (worker.unwrap(), coordinator.unwrap());
    // Longer than the idle time: keep-alives hold a connection on which nothing is said.
    assert!(timeout(2 * quick().idle, worker.recv()).await.is_err(), "a quiet connection was dropped");
    cut.abort();
    let since = Instant::now();
    let bulk = coordinator.send_bulk(Frame { direction: 3, tag: 1, body: vec![0; 10_000].into() });
    let (a, b, c) = tokio::join!(worker.recv(), coordinator.recv(), bulk);
    for error in [a.map(|_: Inbound| ()).unwrap_err(), b.map(|_| ()).unwrap_err(), c.unwrap_err()] {
        assert!(matches!(&error, TransportError::Lost { .. }), "{error:?}");
    }
    // Detection takes one idle time after the last packet either way; a loaded machine gets as much again.
    assert!(since.elapsed() < 4 * quick().idle, "took {:?}", since.elapsed());
}

/// Were ten such datagrams more than the kernel takes at once, all would be lost, and the path's limit fall back to 1,200.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_carries_long_datagrams_is_used_in_full() {
    const BYTES: usize = 16 << 20;
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let (coordinator, worker) = (authority.issue(COORDINATOR).unwrap(), authority.issue(WORKER).unwrap());
    let here = || UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut serving = quinn::ServerConfig::with_crypto(Arc::new(server_crypto(&coordinator, false).unwrap().0));
    serving.transport_config(Arc::new(transport(&quick()).unwrap()));
    let server = Endpoint::new(server_endpoint(&coordinator), Some(serving), here(), Arc::new(TokioRuntime)).unwrap();
    let dialer = QuicDialer::new(server.local_addr().unwrap(), &worker, quick()).unwrap();
    let taking = tokio::spawn(async move {
        let connection = server.accept().await.unwrap().await.unwrap();
        let (mut back, mut stream) = connection.accept_bi().await.unwrap();
        assert_eq!(stream.read_to_end(BYTES).await.unwrap().len(), BYTES);
        back.write_all(&[1]).await.unwrap();
        connection.closed().await
    });
    let connection = dialer.endpoint.connect(dialer.at, &dialer.server_name).unwrap().await.unwrap();
    let (mut stream, mut answer) = connection.open_bi().await.unwrap();
    stream.write_all(&vec![3; BYTES]).await.unwrap();
    stream.finish().unwrap();
    answer.read_exact(&mut [0]).await.unwrap();
    assert_eq!(connection.stats().path.current_mtu, PAYLOAD);
    connection.close(0u32.into(), b"");
    taking.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let listener = listen(&authority, TransportOptions { max_connections: 2, ..quick() });
    let worker = authority.issue(WORKER).unwrap();
    let mut held = Vec::new();
    for _ in 0..2 {
        let (dialled, accepted) = tokio::join!(dial(&listener, &worker), listener.accept());
        held.push((dialled.unwrap(), accepted.unwrap()));
    }
    let refused = dial(&listener, &worker).await.map(|c| c.peer()).unwrap_err();
    assert!(refused.to_string().contains("refused"), "{refused}");
    held.pop();
    let (dialled, accepted) = tokio::join!(dial(&listener, &worker), listener.accept());
    dialled.unwrap();
    accepted.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_out_of_range_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let identity = authority(dir.path()).issue(COORDINATOR).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let small = TransportOptions { bulk_budget: 1 << 20, ..TransportOptions::default() };
    let error = QuicListener::new(socket, &identity, small).unwrap_err();
    assert!(matches!(&error, EndpointError::Option { name: "bulk_budget", .. }), "{error}");
}

/// A coordinator is killed and the next one takes its socket over: nothing says goodbye, and the idle time is long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_back_on_its_socket_is_noticed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    authority.issue_files(COORDINATOR).unwrap();
    let options = TransportOptions { keep_alive: Duration::from_millis(200), idle: Duration::from_secs(60), ..quick() };
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let dialer = QuicDialer::new(socket.local_addr().unwrap(), &authority.issue(WORKER).unwrap(), options).unwrap();
    let identity = || Identity::load(dir.path(), RUN, COORDINATOR).unwrap();
    // A runtime of its own that stops with everything on it, as a killed process does.
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (worker, held) = {
        let socket = socket.try_clone().unwrap();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let identity = identity();
        doomed.spawn(async move {
            let listener = QuicListener::new(socket, &identity, options).unwrap();
            let accepted = listener.accept().await.unwrap();
            assert!(sender.send((listener, accepted)).is_ok());
        });
        let connected = dialer.connect().await.unwrap();
        let held = receiver.await.unwrap();
        doomed.shutdown_background();
        (connected, held)
    };
    let _next = QuicListener::new(socket, &identity(), options).unwrap();
    let error = timeout(Duration::from_secs(10), worker.recv()).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("reset"), "{error}");
    drop(held);
}
