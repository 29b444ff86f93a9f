//! Which way is taken, and what is remembered of it.
use super::*;
use crate::certs::{RunAuthority, name_of};
use crate::transport::{COORDINATOR, Deadlines, Dialer, Inbound, Listener, TransportError};
use cohort_protocol::Role;
use std::net::{TcpListener, UdpSocket};
use std::time::SystemTime;

const RUN: RunId = RunId(7);
const WORKER: WorkerId = WorkerId { role: Role::Rollout, index: 0 };

fn reach(carrier: Carrier) -> Reach {
    let deadlines = Deadlines { connect: Duration::from_secs(3), ..Deadlines::default() };
    Reach::new(carrier, TransportOptions { deadlines, ..TransportOptions::default() })
}

struct Run {
    authority: RunAuthority,
    _dir: tempfile::TempDir,
}

fn run() -> Run {
    let dir = tempfile::tempdir().unwrap();
    Run { authority: RunAuthority::open_or_create(dir.path(), RUN).unwrap(), _dir: dir }
}

impl Run {
    fn listen(&self, sockets: Sockets) -> ReachListener {
        reach(Carrier::Auto).listen(sockets, &self.authority.issue(COORDINATOR).unwrap()).unwrap()
    }

    fn dialer(&self, from: &Reach, at: SocketAddr) -> ReachDialer {
        from.dialer(COORDINATOR, at, &self.authority.issue(WORKER).unwrap()).unwrap()
    }
}

fn local(carrier: Carrier) -> Sockets {
    Sockets::bind("127.0.0.1:0".parse().unwrap(), carrier).unwrap()
}

/// What carried a connection, at both ends.
async fn carried(dialer: &ReachDialer, listener: &ReachListener) -> &'static str {
    let (dialled, accepted) = tokio::join!(dialer.connect(), listener.accept());
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
    assert_eq!(dialled.carrier(), accepted.carrier());
    dialled.carrier()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_is_taken_where_it_passes_and_the_asked_for_one_where_one_is_asked_for() {
    let run = run();
    let listener = run.listen(local(Carrier::Auto));
    for (asked, taken) in [(Carrier::Auto, "quic"), (Carrier::Quic, "quic"), (Carrier::Tcp, "tcp")] {
        let dialer = run.dialer(&reach(asked), listener.local_addr());
        assert_eq!(carried(&dialer, &listener).await, taken, "{asked}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_is_taken_where_udp_is_swallowed_and_remembered_for_the_address() {
    let run = run();
    let listener = run.listen(local(Carrier::Tcp));
    // Bound and never read: datagrams vanish, as behind a wall that drops them.
    let _swallows = UdpSocket::bind(listener.local_addr()).unwrap();
    let from = reach(Carrier::Auto);
    let first = Instant::now();
    assert_eq!(carried(&run.dialer(&from, listener.local_addr()), &listener).await, "tcp");
    assert!(first.elapsed() >= Duration::from_secs(2), "UDP was given its time: {:?}", first.elapsed());
    assert!(from.blocked.holds(listener.local_addr().ip()));
    // Another dialer of the process, another port of the address: at once.
    let other = run.listen(local(Carrier::Tcp));
    let second = Instant::now();
    assert_eq!(carried(&run.dialer(&from, other.local_addr()), &other).await, "tcp");
    assert!(second.elapsed() < Duration::from_secs(1), "{:?}", second.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_was_away_and_is_back_is_not_behind_a_wall() {
    let run = run();
    // Bound by somebody who answers neither, as the sockets of a coordinator that is being restarted.
    let sockets = local(Carrier::Auto);
    let from = reach(Carrier::Auto);
    let dialer = run.dialer(&from, sockets.local_addr().unwrap());
    let back = async {
        tokio::time::sleep(Duration::from_millis(2300)).await;
        let listener = run.listen(sockets);
        let first = listener.accept().await.unwrap();
        (listener, first)
    };
    let (dialled, (listener, _first)) = tokio::join!(dialer.connect(), back);
    assert_eq!(dialled.unwrap().carrier(), "quic");
    assert!(!from.blocked.holds(listener.local_addr().ip()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_over_udp_is_an_answer_and_silence_over_both_names_both() {
    let (ours, theirs) = (run(), run());
    let listener = ours.listen(local(Carrier::Auto));
    let from = reach(Carrier::Auto);
    let begun = Instant::now();
    let refused = theirs.dialer(&from, listener.local_addr()).connect().await.map(|c| c.peer()).unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(1), "TCP was not tried: {:?}", begun.elapsed());
    assert!(matches!(refused, TransportError::Certificate { .. }), "{refused}");
    // Nobody: a free port.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = ours.dialer(&from, free).connect().await.map(|c| c.peer()).unwrap_err().to_string();
    assert!(nobody.contains("QUIC handshake"), "{nobody}");
    assert!(!from.blocked.holds(free.ip()), "nobody there is no wall");
}

/// What a place's file holds at the time of a handshake is what is shown, at either end and over either way; nobody is cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_shown_by_the_next_handshake_and_cuts_nobody_off() {
    let dir = tempfile::tempdir().unwrap();
    let authority = RunAuthority::open_or_create(dir.path(), RUN).unwrap();
    let load = |who| Identity::load(dir.path(), RUN, who).unwrap();
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    // To be valid for one second more.
    let save = |who: WorkerId, until: SystemTime| {
        authority.issue_for(&name_of(RUN, who), who, now - hour, until).unwrap().save(dir.path()).unwrap();
    };
    for who in [COORDINATOR, WORKER] {
        save(who, now + Duration::from_secs(2));
    }
    let listener = reach(Carrier::Auto).listen(local(Carrier::Auto), &load(COORDINATOR)).unwrap();
    let dialers = [Carrier::Quic, Carrier::Tcp]
        .map(|carrier| reach(carrier).dialer(COORDINATOR, listener.local_addr(), &load(WORKER)).unwrap());
    let mut standing = Vec::new();
    for dialer in &dialers {
        let (dialled, accepted) = tokio::join!(dialer.connect(), listener.accept());
        standing.push((dialled.unwrap(), accepted.unwrap()));
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let expired = |error: TransportError| error.to_string().to_lowercase().contains("expired");
    for (renewed, both) in [(COORDINATOR, false), (WORKER, true)] {
        for dialer in &dialers {
            assert!(expired(dialer.connect().await.map(drop).unwrap_err()), "before {renewed} has a new one");
        }
        save(renewed, now + hour);
        for dialer in dialers.iter().filter(|_| both) {
            let (dialled, accepted) = tokio::join!(dialer.connect(), listener.accept());
            dialled.unwrap().verify_peer(RUN, COORDINATOR).unwrap();
            accepted.unwrap().verify_peer(RUN, WORKER).unwrap();
        }
    }
    for (near, far) in standing {
        let sent = cohort_protocol::Frame { direction: 2, tag: 1, body: vec![1].into() };
        near.send(sent.clone()).await.unwrap();
        let Inbound::Control(got) = far.recv().await.unwrap() else { panic!() };
        assert_eq!(got, sent, "a connection outlives the certificates that it began with");
    }
}

#[tokio::test(start_paused = true)]
async fn a_blocked_address_is_forgotten_after_a_while() {
    let (blocked, ip) = (Blocked::default(), IpAddr::from([127, 0, 0, 1]));
    assert!(blocked.note(ip), "said the first time");
    assert!(!blocked.note(ip), "and not again");
    tokio::time::advance(FORGET - Duration::from_secs(1)).await;
    assert!(blocked.holds(ip));
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(!blocked.holds(ip));
    assert!(blocked.clear(ip) && !blocked.clear(ip));
}

#[test]
fn sockets_share_a_port_and_survive_a_handover() {
    let sockets = local(Carrier::Auto);
    let at = sockets.local_addr().unwrap();
    let (udp, tcp) = sockets.into_descriptors();
    let again = Sockets::from_descriptors(Carrier::Auto, || udp.ok_or("udp"), || tcp.ok_or("tcp")).unwrap();
    assert_eq!(again.local_addr().unwrap(), at);
    assert_eq!("tcp".parse(), Ok(Carrier::Tcp));
    assert!("udp".parse::<Carrier>().unwrap_err().contains("auto, quic or tcp"));
}
