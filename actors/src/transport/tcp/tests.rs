//! What only this transport can get wrong: certificates, raw bytes of a hostile peer, silence.
use super::record::{MAX_DATA, Record, put_data_header};
use super::*;
use crate::certs::RunAuthority;
use cohort_protocol::{Frame, Role, limits};
use std::path::Path;
use std::time::SystemTime;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

const RUN: RunId = RunId(7);
const WORKER: WorkerId = WorkerId { role: Role::Rollout, index: 0 };
const SOON: Duration = Duration::from_secs(5);

fn quick() -> TransportOptions {
    TransportOptions { keep_alive: Duration::from_millis(200), idle: Duration::from_millis(800), ..TransportOptions::default() }
}

fn authority(dir: &Path) -> RunAuthority {
    RunAuthority::open_or_create(dir, RUN).unwrap()
}

fn socket() -> std::net::TcpListener {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap()
}

fn listen(authority: &RunAuthority, options: TransportOptions) -> TlsListener {
    TlsListener::new(socket(), &authority.issue(COORDINATOR).unwrap(), options).unwrap()
}

async fn dial(listener: &TlsListener, identity: &Identity) -> Result<Arc<dyn Connection>, TransportError> {
    TlsDialer::new(listener.local_addr(), identity, quick()).unwrap().connect().await
}

/// A peer with a proper certificate that then writes whatever the test wants.
async fn raw(listener: &TlsListener, authority: &RunAuthority) -> TlsStream<TcpStream> {
    let config = tls::client(&authority.issue(WORKER).unwrap(), ALPN).unwrap().0;
    let tcp = TcpStream::connect(listener.local_addr()).await.unwrap();
    let name = ServerName::try_from(name_of(RUN, COORDINATOR)).unwrap();
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    hear(&mut tls).await.unwrap();
    say(&mut tls, &quick()).await.unwrap();
    tls
}

/// The reason with which the listener closed.
async fn told(tls: &mut TlsStream<TcpStream>) -> String {
    let mut buffer = bytes::BytesMut::new();
    loop {
        while let Some(record) = Record::take(&mut buffer).unwrap() {
            if let Record::Close { reason, .. } = record {
                return reason;
            }
        }
        assert_ne!(timeout(SOON, tls.read_buf(&mut buffer)).await.unwrap().unwrap(), 0, "closed without a reason");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_rejected_and_told_why() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (ours, theirs) = (authority(ours.path()), authority(theirs.path()));
    let listener = listen(&ours, quick());
    let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
    let name = name_of(RUN, WORKER);
    let why = async |identity: &Identity| dial(&listener, identity).await.map(|c| c.peer()).unwrap_err().to_string();

    let expired = why(&ours.issue_for(&name, WORKER, now - 2 * day, now - day).unwrap()).await;
    assert!(expired.to_lowercase().contains("expired"), "{expired}");
    why(&ours.issue_for(&name, WORKER, now + day, now + 2 * day).unwrap()).await;
    // A certificate of another authority, by a client that would trust the server.
    let mut foreign = theirs.issue(WORKER).unwrap();
    foreign.trust(ours.issue(WORKER).unwrap().authority());
    why(&foreign).await;
    let pem = ours.pem();
    let anonymous = TlsDialer::stranger(COORDINATOR, listener.local_addr(), RUN, &pem, quick()).unwrap().connect().await;
    let anonymous = anonymous.map(|c| c.peer()).unwrap_err().to_string();
    assert!(anonymous.to_lowercase().contains("certificate"), "{anonymous}");
    // A worker's certificate of the right run does not make a coordinator.
    let impostor = TlsListener::new(socket(), &ours.issue(WORKER).unwrap(), quick()).unwrap();
    let error = dial(&impostor, &ours.issue(WORKER).unwrap()).await.map(|c| c.peer()).unwrap_err();
    assert!(error.to_string().contains("not valid for"), "{error}");

    assert!(timeout(Duration::from_millis(200), listener.accept()).await.is_err(), "a stranger got through");
    let friend = ours.issue(WORKER).unwrap();
    let (friend, accepted) = tokio::join!(dial(&listener, &friend), listener.accept());
    friend.unwrap();
    accepted.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_tls_is_dropped_and_costs_nobody_else_anything() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let listener = listen(&authority, quick());
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 300], &[0x16, 3, 1, 0xff, 0xff]] {
        let mut tcp = TcpStream::connect(listener.local_addr()).await.unwrap();
        tcp.write_all(garbage).await.unwrap();
        tcp.shutdown().await.unwrap();
        // The end, a reset or an alert: nothing more comes in any case.
        let _ = timeout(SOON, tcp.read_to_end(&mut Vec::new())).await.unwrap();
    }
    let worker = authority.issue(WORKER).unwrap();
    let (dialled, accepted) = tokio::join!(dial(&listener, &worker), listener.accept());
    dialled.unwrap();
    accepted.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_bytes_end_the_connection_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let options = TransportOptions { stream_window: 20_000, max_bulk_streams: 2, ..quick() };
    let listener = listen(&authority, options);
    let data = |stream: u32, last: bool, bytes: &[u8]| {
        let mut out = Vec::new();
        Record::Data { stream, last, bytes: bytes::Bytes::copy_from_slice(bytes) }.put(&mut out);
        out
    };
    let claim = |limit: usize| u32::try_from(limit + 3).unwrap().to_le_bytes();
    let mut trailing = Frame { direction: 2, tag: 1, body: vec![1, 2, 3].into() }.to_bytes();
    trailing.push(0);
    let mut long = Vec::new();
    put_data_header(0, false, MAX_DATA + 1, &mut long);
    let ended = [data(1, true, &[200, 0, 0, 0]), data(1, false, &[1])].concat();
    let flood = [data(1, false, &[100, 0, 0, 0]), data(1, false, &[0; 10_000]), data(1, false, &[0; 10_000])].concat();
    let cases = [
        ("control frame over the limit", data(0, false, &claim(limits::MAX_CONTROL_BODY)), "over the limit"),
        ("control frame shorter than its header", data(0, false, &[1, 0, 0, 0, 9]), "shorter than its header"),
        ("bulk frame over the limit", data(1, false, &claim(limits::MAX_BULK_BODY)), "over the limit"),
        ("bulk frame that ends early", data(1, true, &[10, 0, 0, 0, 1, 1, 5]), "early"),
        ("bulk frame with a tail", data(1, true, &trailing), "trailing"),
        ("unknown kind of record", vec![99; 9], "no kind 99"),
        ("record over the limit", long, "over the limit"),
        ("bytes after the end", ended, "after the end"),
        ("more than was granted", flood, "was granted"),
        ("too many bulk frames", (1..=3).flat_map(|n| data(n, false, &[9])).collect(), "one more than the 2"),
    ];
    for (what, bytes, named) in cases {
        let mut peer = raw(&listener, &authority).await;
        let connection = listener.accept().await.unwrap();
        peer.write_all(&bytes).await.unwrap();
        peer.flush().await.unwrap();
        let error = timeout(SOON, connection.recv()).await.unwrap().unwrap_err();
        assert!(error.to_string().contains(named), "{what}: {error}");
        let told = told(&mut peer).await;
        assert!(told.contains(named), "{what}: the peer is told {told}");
    }
    let worker = authority.issue(WORKER).unwrap();
    let (dialled, accepted) = tokio::join!(dial(&listener, &worker), listener.accept());
    dialled.unwrap();
    accepted.unwrap();
}

/// A peer that says nothing, not even that it is alive, as one that was stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_is_lost_within_the_idle_time() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let listener = listen(&authority, quick());
    let worker = authority.issue(WORKER).unwrap();
    let (quiet, accepted) = tokio::join!(dial(&listener, &worker), listener.accept());
    let (quiet, _accepted) = (quiet.unwrap(), accepted.unwrap());
    // Longer than the idle time: signs of life hold a connection on which nothing is said.
    assert!(timeout(2 * quick().idle, quiet.recv()).await.is_err(), "a quiet connection was dropped");

    let mut stopped = raw(&listener, &authority).await;
    let connection = listener.accept().await.unwrap();
    let since = Instant::now();
    let bulk = connection.send_bulk(Frame { direction: 3, tag: 1, body: vec![0; 10_000].into() });
    let (received, bulk) = tokio::join!(connection.recv(), bulk);
    for error in [received.map(drop).unwrap_err(), bulk.unwrap_err()] {
        assert!(error.to_string().contains("nothing was heard for 800ms"), "{error}");
    }
    assert!(since.elapsed() < 4 * quick().idle, "took {:?}", since.elapsed());
    assert!(told(&mut stopped).await.contains("nothing was heard"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let listener = listen(&authority, TransportOptions { max_connections: 1, ..quick() });
    let worker = authority.issue(WORKER).unwrap();
    let (dialled, accepted) = tokio::join!(dial(&listener, &worker), listener.accept());
    let held = (dialled.unwrap(), accepted.unwrap());
    dial(&listener, &worker).await.map(|c| c.peer()).unwrap_err();
    drop(held);
    // The place is free as soon as the connection that had it is dropped.
    let (dialled, accepted) = tokio::join!(dial(&listener, &worker), listener.accept());
    dialled.unwrap();
    accepted.unwrap();
}
