//! Who gets in where, over QUIC and over TCP: every door of a run with the right certificate, another's, another run's, one that was taken
//! away, none, and with a token.
#![expect(clippy::unwrap_used, reason = "outside of `#[test]` functions the lint does not see that this is a test")]
use cohort_actors::certs::{Identity, RunAuthority, SigningKey, revoke};
use cohort_actors::transport::TransportOptions;
use cohort_actors::transport::reach::{Carrier, Reach, ReachDialer, ReachListener};
use cohort_actors::{
    AcceptTerms, Deadlines, Dialer, LinkError, LinkOptions, Listener, Shutdown, WorkerLink, accept_node, accept_worker, enrol,
};
use cohort_protocol::messages::handshake::{Enrol, Enrolled, Hello};
use cohort_protocol::messages::node::{HeadToNode, NodeToHead};
use cohort_protocol::{Epoch, Role, RunId, WorkerId, version};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const RUN: RunId = RunId(7);
const HEAD: WorkerId = WorkerId { role: Role::Node, index: 0 };
const SOON: Duration = Duration::from_secs(5);
const SECRET: [u8; 32] = [9; 32];

fn node(index: u16) -> WorkerId {
    WorkerId { role: Role::Node, index }
}

fn reach(carrier: Carrier) -> Reach {
    // A refused handshake shows as a deadline or a closed connection: both soon.
    let deadlines = Deadlines { connect: Duration::from_secs(2), ..Deadlines::default() };
    Reach::new(carrier, TransportOptions { deadlines, ..TransportOptions::default() })
}

/// A run's authority and one of its doors: the first, where tokens are shown, or any other.
struct Door {
    authority: Arc<RunAuthority>,
    listener: Arc<ReachListener>,
    reach: Reach,
    serving: tokio::task::JoinHandle<()>,
    /// What it says of those that it keeps out.
    kept_out: Arc<Mutex<Vec<String>>>,
    dir: tempfile::TempDir,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn door(strangers: bool, carrier: Carrier) -> Door {
    door_for(AcceptTerms::NODES, strangers, carrier)
}

fn door_for(roles: &'static [Role], strangers: bool, carrier: Carrier) -> Door {
    let reach = reach(carrier);
    let dir = tempfile::tempdir().unwrap();
    let authority = Arc::new(RunAuthority::open_or_create(dir.path(), RUN).unwrap());
    let sockets = reach.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    authority.issue_files(HEAD).unwrap();
    let identity = Identity::load(dir.path(), RUN, HEAD).unwrap();
    let open = if strangers { Reach::listen_with_strangers } else { Reach::listen };
    let listener = Arc::new(open(&reach, sockets, &identity).unwrap());
    let kept_out = Arc::default();
    let serving = tokio::spawn(serve(listener.clone(), authority.clone(), strangers, roles, Arc::clone(&kept_out)));
    Door { authority, listener, reach, serving, kept_out, dir }
}

async fn serve(
    listener: Arc<ReachListener>,
    authority: Arc<RunAuthority>,
    strangers: bool,
    roles: &'static [Role],
    kept_out: Arc<Mutex<Vec<String>>>,
) {
    let terms = AcceptTerms { run: RUN, epoch: Epoch(0), numerics: String::new(), corrects: false, deadline: SOON, roles };
    while let Ok(connection) = listener.accept().await {
        let (terms, authority, kept_out) = (terms.clone(), authority.clone(), kept_out.clone());
        tokio::spawn(async move {
            let admitted = if strangers {
                let enrol = |request: &Enrol| {
                    let certificate = authority.certify(node(1), &request.public_key).map_err(|e| e.to_string())?;
                    let known = request.secret == SECRET;
                    let enrolled = Enrolled { protocol: version::PROTOCOL, node: node(1), certificate };
                    known.then_some(enrolled).ok_or_else(|| "the token is not known".to_owned())
                };
                accept_node(connection, &terms, |_| Ok(()), enrol).await
            } else {
                accept_worker(connection, &terms, |_| Ok(())).await.map(Some)
            };
            match admitted {
                // A session stays until its other end goes, or is made to.
                Ok(Some(admitted)) => {
                    let ended = loop {
                        if let Err(error) = admitted.connection.recv().await {
                            break error;
                        }
                    };
                    kept_out.lock().unwrap().push(ended.to_string());
                }
                Ok(None) => {}
                Err(error) => kept_out.lock().unwrap().push(error.to_string()),
            }
        });
    }
}

fn hello(worker: WorkerId, run: RunId) -> Hello {
    Hello {
        protocol_min: version::PROTOCOL_MIN,
        protocol_max: version::PROTOCOL,
        run,
        worker,
        pid: 1,
        incarnation: 0,
        numerics: String::new(),
    }
}

/// Tries to get in as a place; `Err` says how it was kept out.
async fn session(dialer: ReachDialer, as_who: WorkerId, run: RunId) -> Result<(), String> {
    let options = LinkOptions { give_up: Some(Duration::from_millis(500)), ..LinkOptions::default() };
    let dialer: Arc<dyn Dialer> = Arc::new(dialer);
    let link = WorkerLink::<HeadToNode, NodeToHead>::connect(dialer, hello(as_who, run), options, Shutdown::new()).await;
    link.map(drop).map_err(|error| error.to_string())
}

fn dial(door: &Door, identity: &Identity) -> ReachDialer {
    door.reach.dialer(HEAD, door.listener.local_addr(), identity).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_door_opens_for_its_own_certificates_only() {
    let foreign_dir = tempfile::tempdir().unwrap();
    let foreign = RunAuthority::open_or_create(foreign_dir.path(), RUN).unwrap();
    let ways = [Carrier::Quic, Carrier::Tcp];
    for (strangers, carrier) in [true, false].into_iter().flat_map(|strangers| ways.map(|carrier| (strangers, carrier))) {
        let door = door(strangers, carrier);
        let own = door.authority.issue(node(1)).unwrap();
        session(dial(&door, &own), node(1), RUN).await.unwrap();
        // The right authority, another place: a worker's certificate, another host's.
        for (holder, claimed) in [(node(2), node(1)), (WorkerId { role: Role::Rollout, index: 1 }, node(1))] {
            let identity = door.authority.issue(holder).unwrap();
            let why = session(dial(&door, &identity), claimed, RUN).await.unwrap_err();
            assert!(why.contains("certificate"), "{strangers}: {holder} as {claimed}: {why}");
        }
        // Its own certificate, and a place that is not a host's.
        let worker = WorkerId { role: Role::Rollout, index: 1 };
        let why = session(dial(&door, &door.authority.issue(worker).unwrap()), worker, RUN).await.unwrap_err();
        assert!(why.contains("has no place here"), "{why}");
        let why = session(dial(&door, &own), node(1), RunId(8)).await.unwrap_err();
        assert!(why.contains("this is run 7"), "{why}");
        // Another authority, even of a run with the same number: no handshake.
        session(dial(&door, &foreign.issue(node(1)).unwrap()), node(1), RUN).await.unwrap_err();
        // No certificate at all.
        let at = door.listener.local_addr();
        let nobody = door.reach.stranger(HEAD, at, RUN, &door.authority.pem()).unwrap();
        session(nobody, node(1), RUN).await.unwrap_err();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_good_at_the_first_door_only_and_gives_what_opens_the_others() {
    for carrier in [Carrier::Quic, Carrier::Tcp] {
        show_a_token(carrier).await;
    }
}

async fn show_a_token(carrier: Carrier) {
    let first = door(true, carrier);
    let key = SigningKey::generate().unwrap();
    let request = Enrol {
        protocol_min: version::PROTOCOL_MIN,
        protocol_max: version::PROTOCOL,
        run: RUN,
        secret: SECRET,
        host: "gpu-2".into(),
        public_key: key.public(),
    };
    let stranger = |door: &Door| door.reach.stranger(HEAD, door.listener.local_addr(), RUN, &first.authority.pem()).unwrap();
    let wrong = Enrol { secret: [1; 32], ..request.clone() };
    let why = enrol(&stranger(&first), wrong, SOON).await.unwrap_err();
    assert!(matches!(&why, LinkError::Refused { reason, .. } if reason.contains("not known")), "{why}");
    let other = Enrol { run: RunId(8), ..request.clone() };
    assert!(enrol(&stranger(&first), other, SOON).await.unwrap_err().to_string().contains("this is run 7"));
    let enrolled = enrol(&stranger(&first), request.clone(), SOON).await.unwrap();
    let identity = Identity::assemble(RUN, enrolled.node, &first.authority.pem(), enrolled.certificate, &key).unwrap();
    session(dial(&first, &identity), node(1), RUN).await.unwrap();
    // A head node that is not of the authority that the token names is not told the secret.
    let impostor = door(true, carrier);
    assert!(enrol(&stranger(&impostor), request.clone(), SOON).await.is_err());
    // A door that lets no strangers in ends the handshake.
    let dir = tempfile::tempdir().unwrap();
    identity.save(dir.path()).unwrap();
    let loaded = Identity::load(dir.path(), RUN, node(1)).unwrap();
    session(dial(&first, &loaded), node(1), RUN).await.unwrap();
    let closed = door(false, carrier);
    let own = closed.reach.stranger(HEAD, closed.listener.local_addr(), RUN, &closed.authority.pem()).unwrap();
    assert!(enrol(&own, request, SOON).await.is_err());
}

/// What says a host that was let go, and what is to be done.
fn says_why(text: &str) -> bool {
    ["node-1 was drained", "revoked", "`cluster token RUN`", "--dir"].iter().all(|part| text.contains(part))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_was_let_go_is_kept_out_of_every_door_from_then_on_and_so_are_its_workers() {
    let worker = WorkerId { role: Role::Rollout, index: 3 };
    for carrier in [Carrier::Quic, Carrier::Tcp] {
        // Where hosts join, where they take weights, where workers come in.
        for (roles, strangers) in [(AcceptTerms::NODES, true), (AcceptTerms::NODES, false), (AcceptTerms::WORKERS, false)] {
            let door = door_for(roles, strangers, carrier);
            let place = |host| if roles == AcceptTerms::NODES { node(host) } else { worker };
            let of = |host| {
                let key = SigningKey::generate().unwrap();
                let certificate = door.authority.certify_for(place(host), host, &key.public()).unwrap();
                Identity::assemble(RUN, place(host), &door.authority.pem(), certificate, &key).unwrap()
            };
            let (gone, other) = (of(1), of(2));
            session(dial(&door, &gone), place(1), RUN).await.unwrap();
            let dialer: Arc<dyn Dialer> = Arc::new(dial(&door, &gone));
            let stands = WorkerLink::<HeadToNode, NodeToHead>::connect(
                dialer,
                hello(place(1), RUN),
                LinkOptions::default(),
                Shutdown::new(),
            );
            let stands = stands.await.unwrap();
            assert!(revoke(door.dir.path(), 1).unwrap());
            for _ in 0..2 {
                let why = session(dial(&door, &gone), place(1), RUN).await.unwrap_err();
                assert!(says_why(&why), "{roles:?} {carrier}: {why}");
            }
            assert!(door.kept_out.lock().unwrap().iter().any(|said| says_why(said)), "{:?}", door.kept_out);
            // Renewed in time, it is no better; the same place of another host is.
            let why = session(dial(&door, &of(1)), place(1), RUN).await.unwrap_err();
            assert!(says_why(&why), "{why}");
            session(dial(&door, &other), place(2), RUN).await.unwrap();
            // What stood at that moment is cut when there was time to leave in order.
            let cut = tokio::time::timeout(Duration::from_secs(15), stands.recv()).await.expect("it stands on");
            let why = cut.unwrap_err().to_string();
            assert!(says_why(&why), "{why}");
        }
    }
}
