//! One test body, every transport: what `Connection` promises holds in-process, over QUIC and over TCP.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "outside of `#[test]` functions the lint does not see that this is a test"
)]
use cohort_actors::certs::RunAuthority;
use cohort_actors::transport::TransportOptions;
use cohort_actors::transport::inproc::InprocAddress;
use cohort_actors::transport::quic::{QuicDialer, QuicListener};
use cohort_actors::transport::tcp::{TlsDialer, TlsListener};
use cohort_actors::{Ack, Connection, Deadlines, Dialer, Inbound, Listener, Traffic, TransportError};
use cohort_protocol::{CodecError, Frame, Role, RunId, WorkerId, limits};
use std::any::Any;
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

const RUN: RunId = RunId(7);
const WORKER: WorkerId = WorkerId { role: Role::Rollout, index: 0 };
/// Longer than anything that should happen, shorter than a test's patience.
const SOON: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
enum Kind {
    Inproc,
    Quic,
    Tcp,
}

/// Two connected ends and what keeps them alive.
struct Ends {
    worker: Arc<dyn Connection>,
    coordinator: Arc<dyn Connection>,
    _keep: Box<dyn Any>,
}

async fn connect(kind: Kind, deadlines: Deadlines) -> Ends {
    match kind {
        Kind::Inproc => {
            let address = InprocAddress::new("coordinator", deadlines);
            let listener = address.listen();
            let dialer = address.dialer();
            let (worker, coordinator) = tokio::join!(dialer.connect(), listener.accept());
            Ends { worker: worker.unwrap(), coordinator: coordinator.unwrap(), _keep: Box::new((listener, dialer)) }
        }
        Kind::Quic | Kind::Tcp => {
            let dir = tempfile::tempdir().unwrap();
            let authority = RunAuthority::open_or_create(dir.path(), RUN).unwrap();
            let coordinator = authority.issue(WorkerId { role: Role::Coordinator, index: 0 }).unwrap();
            let worker = authority.issue(WORKER).unwrap();
            let options = TransportOptions { deadlines, ..TransportOptions::default() };
            let (listener, dialer): (Box<dyn Listener>, Box<dyn Dialer>) = if let Kind::Quic = kind {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                let listener = QuicListener::new(socket, &coordinator, options).unwrap();
                let dialer = QuicDialer::new(listener.local_addr(), &worker, options).unwrap();
                (Box::new(listener), Box::new(dialer))
            } else {
                let socket = TcpListener::bind("127.0.0.1:0").unwrap();
                let listener = TlsListener::new(socket, &coordinator, options).unwrap();
                let dialer = TlsDialer::new(listener.local_addr(), &worker, options).unwrap();
                (Box::new(listener), Box::new(dialer))
            };
            let (worker, coordinator) = tokio::join!(dialer.connect(), listener.accept());
            Ends { worker: worker.unwrap(), coordinator: coordinator.unwrap(), _keep: Box::new((listener, dialer)) }
        }
    }
}

fn frame(tag: u8, body: Vec<u8>) -> Frame {
    Frame { direction: 2, tag, body: body.into() }
}

fn numbered(n: u32, size: usize) -> Frame {
    let mut body = n.to_le_bytes().to_vec();
    body.resize(size.max(4), 0xa5);
    frame(1, body)
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(SOON, work).await.unwrap_or_else(|_| panic!("{what}: nothing within {SOON:?}"))
}

async fn next_control(connection: &dyn Connection) -> Frame {
    match soon("control frame", connection.recv()).await.unwrap() {
        Inbound::Control(frame) => frame,
        other => panic!("{other:?}"),
    }
}

async fn next_bulk(connection: &dyn Connection) -> (Frame, Ack) {
    match soon("bulk frame", connection.recv()).await.unwrap() {
        Inbound::Bulk(frame, ack) => (frame, ack),
        other => panic!("{other:?}"),
    }
}

async fn control_frames_keep_their_order(kind: Kind) {
    let ends = connect(kind, Deadlines::default()).await;
    for (from, to) in [(&ends.worker, &ends.coordinator), (&ends.coordinator, &ends.worker)] {
        let sent: Vec<Frame> = (0..500).map(|n| numbered(n, (n as usize * 37) % 3000)).collect();
        let sending = async {
            for frame in sent.clone() {
                from.send(frame).await.unwrap();
            }
        };
        let receiving = async {
            for expected in &sent {
                assert_eq!(&next_control(to.as_ref()).await, expected);
            }
        };
        tokio::join!(sending, receiving);
    }
}

async fn a_bulk_send_returns_only_after_accept(kind: Kind) {
    let ends = connect(kind, Deadlines::default()).await;
    let body: Vec<u8> = (0..3_000_000u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
    let sending = ends.worker.send_bulk(frame(2, body.clone()));
    tokio::pin!(sending);
    let (received, ack) = tokio::select! {
        early = &mut sending => panic!("returned before it was accepted: {early:?}"),
        received = next_bulk(ends.coordinator.as_ref()) => received,
    };
    assert!(received.body == body && received.tag == 2);
    let early = timeout(Duration::from_millis(100), &mut sending).await;
    assert!(early.is_err(), "returned while the handler still held it: {early:?}");
    ack.accept();
    soon("acknowledgement", sending).await.unwrap();
}

async fn a_dropped_ack_asks_for_the_frame_again(kind: Kind) {
    let ends = connect(kind, Deadlines::default()).await;
    let handler = async {
        drop(next_bulk(ends.coordinator.as_ref()).await);
        let (again, ack) = next_bulk(ends.coordinator.as_ref()).await;
        ack.accept();
        again
    };
    let sender = async {
        let first = soon("answer", ends.worker.send_bulk(numbered(1, 100_000))).await;
        assert!(matches!(first, Err(TransportError::NotAccepted { .. })), "{first:?}");
        soon("answer", ends.worker.send_bulk(numbered(1, 100_000))).await.unwrap();
    };
    let (again, ()) = tokio::join!(handler, sender);
    assert_eq!(again, numbered(1, 100_000));
}

async fn an_unread_peer_stops_the_sender(kind: Kind) {
    let deadlines = Deadlines { send: Duration::from_millis(300), ..Deadlines::default() };
    let ends = connect(kind, deadlines).await;
    let size = 64 << 10;
    let mut queued = 0;
    let stopped = loop {
        match ends.worker.send(numbered(queued, size)).await {
            Ok(()) => queued += 1,
            Err(error) => break error,
        }
        assert!(queued < 400, "no backpressure after {} MiB", (queued as usize * size) >> 20);
    };
    assert!(matches!(stopped, TransportError::Deadline { .. }), "{stopped:?}");
    for n in 0..queued {
        assert_eq!(next_control(ends.coordinator.as_ref()).await, numbered(n, size), "the frame in the way was not cut");
    }
    ends.worker.send(numbered(9999, 4)).await.unwrap();
    assert_eq!(next_control(ends.coordinator.as_ref()).await, numbered(9999, 4));
}

async fn held_bulks_do_not_hold_up_control(kind: Kind) {
    let ends = connect(kind, Deadlines::default()).await;
    let senders: Vec<_> = (0..40)
        .map(|n| {
            let worker = ends.worker.clone();
            tokio::spawn(async move { worker.send_bulk(numbered(n, 200_000)).await })
        })
        .collect();
    let (_, first) = next_bulk(ends.coordinator.as_ref()).await;
    ends.worker.send(numbered(1, 4)).await.unwrap();
    let mut held = vec![first];
    loop {
        match soon("control frame behind bulk", ends.coordinator.recv()).await.unwrap() {
            Inbound::Control(_) => break,
            Inbound::Bulk(_, ack) => held.push(ack),
        }
    }
    assert!(held.len() <= 40);
    let mut accepted = held.len();
    held.into_iter().for_each(Ack::accept);
    while accepted < 40 {
        next_bulk(ends.coordinator.as_ref()).await.1.accept();
        accepted += 1;
    }
    for sender in senders {
        soon("bulk", sender).await.unwrap().unwrap();
    }
}

async fn an_oversized_frame_is_refused_at_its_sender(kind: Kind) {
    let ends = connect(kind, Deadlines::default()).await;
    let error = ends.worker.send(frame(1, vec![0; limits::MAX_CONTROL_BODY + 1])).await.unwrap_err();
    assert!(matches!(&error, TransportError::Codec { source: CodecError::TooLong { .. }, .. }), "{error:?}");
    assert_eq!(ends.worker.traffic(), Traffic::default());
    let largest = frame(1, vec![7; limits::MAX_CONTROL_BODY]);
    let (sent, got) = tokio::join!(ends.worker.send(largest.clone()), next_control(ends.coordinator.as_ref()));
    sent.unwrap();
    assert!(got == largest, "the largest frame passes");
}

async fn a_lost_peer_is_an_error_everywhere(kind: Kind) {
    let ends = connect(kind, Deadlines::default()).await;
    let Ends { worker, coordinator, _keep } = ends;
    let bulk = worker.send_bulk(numbered(1, 50_000));
    let receive = worker.recv();
    let leave = async {
        let (_, _ack) = next_bulk(coordinator.as_ref()).await;
        coordinator.close("the test is over");
        drop(coordinator);
    };
    let (bulk, receive, ()) = soon("loss", async { tokio::join!(bulk, receive, leave) }).await;
    for error in [bulk.unwrap_err(), receive.unwrap_err()] {
        let TransportError::Lost { why, .. } = &error else { panic!("{error:?}") };
        assert!(why.contains("the test is over"), "the reason is passed on: {why}");
    }
    let later = soon("send", async {
        loop {
            if let Err(error) = worker.send(numbered(2, 4)).await {
                return error;
            }
        }
    });
    assert!(matches!(later.await, TransportError::Lost { .. }));
}

async fn what_arrived_before_a_loss_is_still_read(kind: Kind) {
    let Ends { worker, coordinator, _keep } = connect(kind, Deadlines::default()).await;
    let frames = [numbered(1, 4), numbered(2, 4)];
    let bytes = frames.iter().map(Frame::wire_len).sum::<u64>();
    for frame in frames.clone() {
        worker.send(frame).await.unwrap();
    }
    // In-process a frame has arrived as soon as it is sent; over a network only what arrived before the loss is promised.
    if !matches!(kind, Kind::Inproc) {
        let arrived = async {
            while coordinator.traffic().control_received < bytes {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        soon("arrival", arrived).await;
    }
    worker.close("the test is over");
    drop(worker);
    for frame in frames {
        assert_eq!(next_control(coordinator.as_ref()).await, frame);
    }
    let end = soon("loss", coordinator.recv()).await.map(|_| ());
    let Err(TransportError::Lost { why, .. }) = &end else { panic!("{end:?}") };
    assert!(why.contains("the test is over"), "the reason is passed on: {why}");
}

async fn traffic_is_counted_to_the_byte(kind: Kind) {
    let ends = connect(kind, Deadlines::default()).await;
    let (mut control, mut bulk) = (0, 0);
    for n in 0..20 {
        let (c, b) = (numbered(n, n as usize * 100), numbered(n, n as usize * 10_000));
        (control, bulk) = (control + c.wire_len(), bulk + b.wire_len());
        ends.worker.send(c).await.unwrap();
        let receive = async {
            let mut bulk_seen = false;
            let mut control_seen = false;
            while !(bulk_seen && control_seen) {
                match soon("frame", ends.coordinator.recv()).await.unwrap() {
                    Inbound::Control(_) => control_seen = true,
                    Inbound::Bulk(_, ack) => {
                        bulk_seen = true;
                        ack.accept();
                    }
                }
            }
        };
        let (sent, ()) = tokio::join!(ends.worker.send_bulk(b), receive);
        sent.unwrap();
    }
    let up = Traffic { control_sent: control, bulk_sent: bulk, ..Traffic::default() };
    let down = Traffic { control_received: control, bulk_received: bulk, ..Traffic::default() };
    assert_eq!((ends.worker.traffic(), ends.coordinator.traffic()), (up, down));
}

async fn cancelled_calls_leave_the_connection_whole(kind: Kind) {
    let ends = connect(kind, Deadlines::default()).await;
    for n in 0..20u32 {
        // Dropped at various points of its way: before the first byte, in the middle, while waiting for the answer.
        let wait = Duration::from_micros(u64::from(n) * 150);
        let _ = timeout(wait, ends.worker.send_bulk(numbered(n, 400_000))).await;
        let _ = timeout(Duration::from_micros(50), ends.coordinator.recv()).await;
    }
    ends.worker.send(numbered(77, 4)).await.unwrap();
    let sending = ends.worker.send_bulk(numbered(78, 1000));
    let receiving = async {
        let (mut control, mut bulk) = (false, false);
        while !(control && bulk) {
            match soon("frame", ends.coordinator.recv()).await.unwrap() {
                Inbound::Control(frame) => control |= frame == numbered(77, 4),
                Inbound::Bulk(frame, ack) => {
                    bulk |= frame == numbered(78, 1000);
                    ack.accept();
                }
            }
        }
    };
    let (sent, ()) = tokio::join!(sending, receiving);
    sent.unwrap();
}

async fn a_silent_handler_runs_into_the_deadline(kind: Kind) {
    let deadlines = Deadlines { acknowledge: Duration::from_millis(200), ..Deadlines::default() };
    let ends = connect(kind, deadlines).await;
    let hold = next_bulk(ends.coordinator.as_ref());
    let (sent, _held) = tokio::join!(ends.worker.send_bulk(numbered(1, 10)), hold);
    let error = sent.unwrap_err();
    assert!(matches!(error, TransportError::Deadline { what: "acknowledge a bulk frame", .. }), "{error:?}");
}

async fn the_other_end_is_who_it_says(kind: Kind) {
    let ends = connect(kind, Deadlines::default()).await;
    ends.coordinator.verify_peer(RUN, WORKER).unwrap();
    ends.worker.verify_peer(RUN, WorkerId { role: Role::Coordinator, index: 0 }).unwrap();
    if !matches!(kind, Kind::Inproc) {
        for (run, worker) in
            [(RunId(8), WORKER), (RUN, WorkerId { role: Role::Learner, index: 0 }), (RUN, WorkerId { index: 1, ..WORKER })]
        {
            let error = ends.coordinator.verify_peer(run, worker).unwrap_err();
            assert!(matches!(error, TransportError::Identity { .. }), "{error:?}");
        }
    }
}

macro_rules! conformance {
    ($($test:ident),+ $(,)?) => {
        mod inproc {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $test() { super::$test(super::Kind::Inproc).await; })+
        }
        mod quic {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $test() { super::$test(super::Kind::Quic).await; })+
        }
        mod tcp {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $test() { super::$test(super::Kind::Tcp).await; })+
        }
    };
}

conformance!(
    control_frames_keep_their_order,
    a_bulk_send_returns_only_after_accept,
    a_dropped_ack_asks_for_the_frame_again,
    an_unread_peer_stops_the_sender,
    held_bulks_do_not_hold_up_control,
    an_oversized_frame_is_refused_at_its_sender,
    a_lost_peer_is_an_error_everywhere,
    what_arrived_before_a_loss_is_still_read,
    traffic_is_counted_to_the_byte,
    cancelled_calls_leave_the_connection_whole,
    a_silent_handler_runs_into_the_deadline,
    the_other_end_is_who_it_says,
);
