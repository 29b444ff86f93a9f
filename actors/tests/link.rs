//! The session of a worker with its coordinator: handshake, refusals, reconnection, what survives it.
#![expect(clippy::unwrap_used, reason = "outside of `#[test]` functions the lint does not see that this is a test")]
use cohort_actors::backoff::BackoffPolicy;
use cohort_actors::transport::inproc::{InprocAddress, InprocListener};
use cohort_actors::{
    AcceptTerms, Deadlines, Dialer, LinkError, LinkOptions, Listener, PeerLink, Shutdown, WorkerLink, accept_worker,
};
use cohort_protocol::messages::WireMessage;
use cohort_protocol::messages::handshake::{Handshake, Hello};
use cohort_protocol::messages::rollout::{CoordinatorToRollout, Ready, RolloutBeat, RolloutToCoordinator};
use cohort_protocol::{AttemptId, Epoch, GroupId, LeasePurpose, PolicyVersion, Role, RunId, TrajectoryBatch, WorkerId, version};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

type Worker = WorkerLink<CoordinatorToRollout, RolloutToCoordinator>;
type Peer = PeerLink<RolloutToCoordinator, CoordinatorToRollout>;

const QUICK: LinkOptions = LinkOptions {
    backoff: BackoffPolicy { base: Duration::from_millis(1), max: Duration::from_millis(5), jitter: 0.5, first_at_once: false },
    handshake: Duration::from_secs(5),
    insists: true,
    give_up: None,
};

fn hello() -> Hello {
    Hello {
        protocol_min: version::PROTOCOL_MIN,
        protocol_max: version::PROTOCOL,
        run: RunId(1),
        worker: WorkerId { role: Role::Rollout, index: 0 },
        pid: 42,
        incarnation: 0,
        numerics: "f32/avx512".into(),
    }
}

fn terms(epoch: u64) -> AcceptTerms {
    AcceptTerms {
        run: RunId(1),
        epoch: Epoch(epoch),
        numerics: "f32/avx512".into(),
        corrects: false,
        deadline: Duration::from_secs(5),
        roles: AcceptTerms::WORKERS,
    }
}

fn batch(group: u64) -> RolloutToCoordinator {
    RolloutToCoordinator::Trajectories(TrajectoryBatch {
        epoch: Epoch(1),
        purpose: LeasePurpose::Train,
        group: GroupId(group),
        attempt: AttemptId(1),
        trajectories: Vec::new(),
    })
}

fn address() -> (InprocAddress, InprocListener, Arc<dyn Dialer>) {
    let address = InprocAddress::new("coordinator", Deadlines::default());
    let listener = address.listen();
    let dialer = Arc::new(address.dialer());
    (address, listener, dialer)
}

async fn admit(listener: &InprocListener, epoch: u64) -> Peer {
    let connection = listener.accept().await.unwrap();
    accept_worker(connection, &terms(epoch), |_| Ok(())).await.unwrap().into_link()
}

async fn linked(listener: &InprocListener, dialer: Arc<dyn Dialer>, shutdown: &Shutdown) -> (Worker, Peer) {
    let (worker, peer) = tokio::join!(Worker::connect(dialer, hello(), QUICK, shutdown.clone()), admit(listener, 1));
    (worker.unwrap(), peer)
}

#[tokio::test]
async fn messages_pass_both_ways_after_the_handshake() {
    let (_address, listener, dialer) = address();
    let (worker, peer) = linked(&listener, dialer, &Shutdown::new()).await;
    assert_eq!((worker.epoch(), worker.protocol(), peer.protocol()), (Epoch(1), version::PROTOCOL, version::PROTOCOL));
    assert_eq!(peer.hello(), &hello());
    let ready = RolloutToCoordinator::Ready(Ready { version: Some(PolicyVersion(3)), capacity: 2 });
    worker.sender().send(&ready).await.unwrap();
    let (got, ack) = peer.recv().await.unwrap();
    assert!(got == ready && ack.is_none());
    peer.sender().send(&CoordinatorToRollout::Drain("done".into())).await.unwrap();
    assert_eq!(worker.recv().await.unwrap().0, CoordinatorToRollout::Drain("done".into()));
    let accept = async {
        let (got, ack) = peer.recv().await.unwrap();
        ack.unwrap().accept();
        got
    };
    let sender = worker.sender();
    let message = batch(5);
    let (sent, got) = tokio::join!(sender.send_bulk(&message), accept);
    sent.unwrap();
    assert_eq!(got, batch(5));
}

/// What is wrong with the worker, and what the reason must name.
#[tokio::test]
async fn a_refusal_is_final_and_says_why() {
    type Spoil = fn(&mut Hello);
    let wrong: [(&str, Spoil, &[&str]); 6] = [
        ("run", |h| h.run = RunId(9), &["run 1", "run 9"]),
        ("role", |h| h.worker.role = Role::Coordinator, &["coordinator-0"]),
        ("numerics", |h| h.numerics = "bf16".into(), &["f32/avx512", "bf16"]),
        ("version", |h| (h.protocol_min, h.protocol_max) = (900, 901), &["900", "901"]),
        ("inverted versions", |h| (h.protocol_min, h.protocol_max) = (2, 1), &["2 to 1"]),
        ("place", |h| h.worker.index = 7, &["no place for rollout-7"]),
    ];
    for (what, spoil, named) in wrong {
        let (_address, listener, dialer) = address();
        let mut hello = hello();
        spoil(&mut hello);
        let coordinator = async {
            let connection = listener.accept().await.unwrap();
            accept_worker(connection, &terms(1), |hello| match hello.worker.index {
                0 => Ok(()),
                n => Err(format!("no place for rollout-{n}")),
            })
            .await
        };
        let (worker, coordinator) = tokio::join!(Worker::connect(dialer, hello, QUICK, Shutdown::new()), coordinator);
        let Err(LinkError::Refused { reason, .. }) = worker else { panic!("{what}: {worker:?}") };
        assert!(named.iter().all(|n| reason.contains(n)), "{what}: {reason}");
        assert!(matches!(coordinator, Err(LinkError::Rejected { .. })), "{what}: {coordinator:?}");
    }
}

#[tokio::test]
async fn other_numerics_are_let_in_where_the_run_corrects_for_them_and_of_samplers_only() {
    let terms = AcceptTerms { corrects: true, ..terms(1) };
    for (role, numerics, corrected) in [
        (Role::Rollout, "bf16", Some(true)),
        (Role::Rollout, "f32/avx512", Some(false)),
        (Role::Reward, "", Some(false)),
        (Role::Learner, "bf16", None),
    ] {
        let (_address, listener, dialer) = address();
        let hello = Hello { worker: WorkerId { role, index: 0 }, numerics: numerics.into(), ..hello() };
        let coordinator = async { accept_worker(listener.accept().await.unwrap(), &terms, |_| Ok(())).await };
        let (_worker, admitted) = tokio::join!(Worker::connect(dialer, hello, QUICK, Shutdown::new()), coordinator);
        assert_eq!(admitted.ok().map(|a| a.corrected), corrected, "{role} {numerics}");
    }
}

#[tokio::test]
async fn graders_need_no_numerics() {
    let (_address, listener, dialer) = address();
    let hello = Hello { worker: WorkerId { role: Role::Reward, index: 0 }, numerics: String::new(), ..hello() };
    let (worker, _peer) = tokio::join!(Worker::connect(dialer, hello, QUICK, Shutdown::new()), admit(&listener, 1));
    worker.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_says_nothing_is_dropped() {
    let (_address, listener, dialer) = address();
    let connection = dialer.connect().await.unwrap();
    let error = accept_worker(listener.accept().await.unwrap(), &terms(1), |_| Ok(())).await.unwrap_err();
    assert!(error.to_string().contains("say Hello"), "{error}");
    connection.recv().await.unwrap_err();
}

#[tokio::test]
async fn something_else_than_hello_is_refused() {
    let (_address, listener, dialer) = address();
    let connection = dialer.connect().await.unwrap();
    let beat = RolloutToCoordinator::Beat(RolloutBeat { tokens: 0, running: 0 });
    connection.send(beat.to_frame().unwrap()).await.unwrap();
    let accept = async { accept_worker(listener.accept().await.unwrap(), &terms(1), |_| Ok(())).await };
    let answer = async {
        let cohort_actors::Inbound::Control(frame) = connection.recv().await.unwrap() else { panic!() };
        connection.close("read");
        Handshake::from_frame(&frame).unwrap()
    };
    let (error, answer) = tokio::join!(accept, answer);
    assert!(matches!(error, Err(LinkError::Rejected { .. })));
    assert!(matches!(answer, Handshake::Refused(_)));
}

#[tokio::test]
async fn a_bulk_message_survives_a_lost_connection_of_the_same_epoch() {
    let (_address, listener, dialer) = address();
    let (mut worker, peer) = linked(&listener, dialer, &Shutdown::new()).await;
    let sender = worker.sender();
    let sending = tokio::spawn(async move { sender.send_bulk(&batch(5)).await });
    let (_, unanswered) = peer.recv().await.unwrap();
    drop((unanswered, peer));
    assert!(worker.recv().await.unwrap_err().is_lost());
    let (welcome, peer) = tokio::join!(worker.reconnect(), admit(&listener, 1));
    assert_eq!(welcome.unwrap().epoch, Epoch(1));
    let (again, ack) = peer.recv().await.unwrap();
    ack.unwrap().accept();
    assert_eq!(again, batch(5));
    sending.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_new_epoch_voids_what_was_in_flight() {
    let (address, listener, dialer) = address();
    let (mut worker, peer) = linked(&listener, dialer, &Shutdown::new()).await;
    let sender = worker.sender();
    let sending = tokio::spawn({
        let sender = sender.clone();
        async move { sender.send_bulk(&batch(5)).await }
    });
    let received = peer.recv().await.unwrap();
    drop((received, peer, listener));
    assert!(worker.recv().await.unwrap_err().is_lost());
    let listener = address.listen();
    let (welcome, _peer) = tokio::join!(worker.reconnect(), admit(&listener, 2));
    assert_eq!((welcome.unwrap().epoch, worker.epoch(), sender.epoch()), (Epoch(2), Epoch(2), Epoch(2)));
    let error = sending.await.unwrap().unwrap_err();
    assert!(matches!(error, LinkError::StaleEpoch { then: Epoch(1), now: Epoch(2) }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_bulk_message_dropped_again_and_again_is_given_up() {
    let (_address, listener, dialer) = address();
    let (worker, peer) = linked(&listener, dialer, &Shutdown::new()).await;
    let drops = async {
        while let Ok(message) = peer.recv().await {
            drop(message)
        }
    };
    let sender = worker.sender();
    let message = batch(1);
    let error = tokio::select! {
        sent = sender.send_bulk(&message) => sent.unwrap_err(),
        () = drops => panic!("the connection ended"),
    };
    assert!(matches!(error, LinkError::NotAccepted { tries: 10, .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn giving_up_names_the_address() {
    let address = InprocAddress::new("desk", Deadlines::default());
    let options = LinkOptions { give_up: Some(Duration::from_secs(30)), ..LinkOptions::default() };
    let error = Worker::connect(Arc::new(address.dialer()), hello(), options, Shutdown::new()).await.unwrap_err();
    let LinkError::GaveUp { address, tries, after, .. } = &error else { panic!("{error:?}") };
    assert!(address.contains("desk"));
    // 0.05 s doubling to 1 s with half of it jitter: 30 s make 30 to 60 tries and a handful of short ones.
    assert!((30..70).contains(tries) && *after >= Duration::from_secs(30), "{tries} tries in {after:?}");
}

#[tokio::test]
async fn shutdown_ends_every_wait() {
    let (_address, listener, dialer) = address();
    let shutdown = Shutdown::new();
    let (worker, peer) = linked(&listener, dialer.clone(), &shutdown).await;
    let nobody = InprocAddress::new("nobody", Deadlines::default());
    let seeking = tokio::spawn(Worker::connect(Arc::new(nobody.dialer()), hello(), QUICK, shutdown.clone()));
    let receiving = tokio::spawn(async move { worker.recv().await.map(|_| ()) });
    shutdown.trigger("SIGTERM");
    for error in [seeking.await.unwrap().unwrap_err(), receiving.await.unwrap().unwrap_err()] {
        assert!(matches!(&error, LinkError::Shutdown { reason } if reason == "SIGTERM"), "{error:?}");
    }
    timeout(Duration::from_secs(5), peer.recv()).await.unwrap().unwrap_err();
}
