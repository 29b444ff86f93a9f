//! Clocks: one that is set touches nothing but certificates, whose refusal says what mends it; and how long a peer that does not
//! answer is waited for. On one thread, whose wall clock the tests set.
use super::*;
use crate::certs::RunAuthority;
use crate::transport::{COORDINATOR, Connection, Deadlines, Dialer, Inbound, Listener, TransportError};
use crate::wall::set;
use cohort_protocol::{Frame, Role};

const RUN: RunId = RunId(7);
const OTHER: RunId = RunId(8);
const WORKER: WorkerId = WorkerId { role: Role::Rollout, index: 0 };
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
const WAYS: [Carrier; 2] = [Carrier::Quic, Carrier::Tcp];

fn authority(run: RunId) -> (tempfile::TempDir, RunAuthority) {
    let dir = tempfile::tempdir().unwrap();
    let authority = RunAuthority::open_or_create(dir.path(), run).unwrap();
    (dir, authority)
}

fn reach(carrier: Carrier) -> Reach {
    Reach::new(carrier, TransportOptions::default())
}

fn listen(authority: &RunAuthority) -> ReachListener {
    let sockets = Sockets::bind("127.0.0.1:0".parse().unwrap(), Carrier::Auto).unwrap();
    reach(Carrier::Auto).listen(sockets, &authority.issue(COORDINATOR).unwrap()).unwrap()
}

async fn both(dialer: &ReachDialer, listener: &ReachListener) -> (Arc<dyn Connection>, Arc<dyn Connection>) {
    let (dialled, accepted) = tokio::join!(dialer.connect(), listener.accept());
    (dialled.unwrap(), accepted.unwrap())
}

/// The words of a refusal; nothing else will do.
async fn refusal(dialer: &ReachDialer) -> String {
    match dialer.connect().await.map(|connection| connection.peer()) {
        Err(TransportError::Certificate { peer, why }) => {
            assert!(peer.contains("127.0.0.1:"), "{peer}");
            why
        }
        other => panic!("{other:?}"),
    }
}

fn says(text: &str, parts: &[&str]) {
    assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} in: {text}");
}

#[tokio::test]
async fn a_clock_that_is_set_ends_and_extends_certificates_and_nothing_else() {
    let (_dir, authority) = authority(RUN);
    let listener = listen(&authority);
    for carrier in WAYS {
        let dialer = reach(carrier).dialer(COORDINATOR, listener.local_addr(), &authority.issue(WORKER).unwrap()).unwrap();
        let (near, far) = both(&dialer, &listener).await;
        // Hours forward, which certificates outlast, and half an hour back: handshakes are as before.
        for shift in [5 * HOUR, -HOUR / 2, 20 * DAY] {
            set::set(shift);
            drop(both(&dialer, &listener).await);
        }
        // Beyond their end, and before their beginning.
        set::set(31 * DAY);
        says(&refusal(&dialer).await, &["expired", "coordinator-0.run-", "valid from", "`cluster certs RUN --rotate`"]);
        set::set(-5 * HOUR);
        says(&refusal(&dialer).await, &["not valid yet", "coordinator-0.run-", "set the clock of the host that is wrong"]);
        // The connection that stood through all of it neither ended nor lost its deadlines.
        let frame = Frame { direction: 2, tag: 1, body: vec![1].into() };
        near.send(frame.clone()).await.unwrap();
        let Inbound::Control(got) = far.recv().await.unwrap() else { panic!() };
        assert_eq!(got, frame);
        let (sent, taken) = tokio::join!(near.send_bulk(frame), async {
            let Inbound::Bulk(_, ack) = far.recv().await.unwrap() else { panic!() };
            ack.accept();
        });
        sent.unwrap();
        let () = taken;
        // Whoever renews is let in again.
        let again = listen(&authority);
        let renewed = reach(carrier).dialer(COORDINATOR, again.local_addr(), &authority.issue(WORKER).unwrap()).unwrap();
        drop(both(&renewed, &again).await);
        set::set(0);
    }
}

#[tokio::test]
async fn who_is_refused_for_an_expired_certificate_is_told_which_and_what_mends_it() {
    let (_dir, authority) = authority(RUN);
    let listener = listen(&authority);
    set::set(-31 * DAY);
    let old = authority.issue(WORKER).unwrap();
    set::set(0);
    for carrier in WAYS {
        let dialer = reach(carrier).dialer(COORDINATOR, listener.local_addr(), &old).unwrap();
        let told = refusal(&dialer).await;
        says(&told, &["it refuses the certificate shown to it, rollout-0.run-", "until 20", "`cluster certs RUN --rotate`"]);
        says(&told, &["`cluster token RUN` and another --dir"]);
    }
}

#[tokio::test]
async fn who_is_of_another_run_is_told_so_at_either_end() {
    let ((_dir, ours), (_other, theirs), (_again, again)) = (authority(RUN), authority(OTHER), authority(RUN));
    let listener = listen(&ours);
    for carrier in WAYS {
        // It trusts its own run's authority: the listener's certificate is not by that.
        let foreign = theirs.issue(WORKER).unwrap();
        let dialer = reach(carrier).dialer(COORDINATOR, listener.local_addr(), &foreign).unwrap();
        let told = refusal(&dialer).await;
        says(
            &told,
            &["authority of run 0000000000000007", "authority of run 0000000000000008", "two runs", "`cluster token RUN`"],
        );
        // It trusts the listener, which does not trust it.
        let mut foreign = again.issue(WORKER).unwrap();
        foreign.trust(ours.issue(WORKER).unwrap().authority());
        let dialer = reach(carrier).dialer(COORDINATOR, listener.local_addr(), &foreign).unwrap();
        says(&refusal(&dialer).await, &["it trusts another authority", "rollout-0.run-0000000000000007", "two runs"]);
        // A token of another run.
        let stranger = reach(carrier).stranger(COORDINATOR, listener.local_addr(), RUN, &theirs.pem()).unwrap();
        says(
            &refusal(&stranger).await,
            &["authority of run 0000000000000007", "trusted here, authority of run 0000000000000008"],
        );
    }
}

/// In virtual time, which goes on only where nothing else is to be done.
#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_nobody_is_waited_for_no_longer_over_both_ways_than_over_one() {
    let (_dir, authority) = authority(RUN);
    // Bound and never read.
    let silent = Sockets::bind("127.0.0.1:0".parse().unwrap(), Carrier::Auto).unwrap();
    let at = silent.local_addr().unwrap();
    let worker = authority.issue(WORKER).unwrap();
    for carrier in [Carrier::Auto, Carrier::Quic, Carrier::Tcp] {
        let dialer = reach(carrier).dialer(COORDINATOR, at, &worker).unwrap();
        let begun = Instant::now();
        let error = dialer.connect().await.map(|connection| connection.peer()).unwrap_err();
        let limit = Deadlines::default().connect;
        assert!(begun.elapsed() <= limit + Duration::from_millis(100), "{carrier}: {:?}", begun.elapsed());
        assert!(error.to_string().contains("handshake"), "{carrier}: {error}");
    }
}
