//! Who gets in where, over QUIC and over TCP: every door of a run with the right certificate, another's, another run's, none, and
//! with a token.
#![expect(clippy::unwrap_used, reason = "outside of `#[test]` functions the lint does not see that this is a test")]
use cohort_actors::certs::{Identity, RunAuthority, SigningKey};
use cohort_actors::transport::TransportOptions;
use cohort_actors::transport::reach::{Carrier, Reach, ReachDialer, ReachListener};
use cohort_actors::{
    AcceptTerms, Deadlines, Dialer, LinkError, LinkOptions, Listener, Shutdown, WorkerLink, accept_node, accept_worker, enrol,
};
use cohort_protocol::messages::handshake::{Enrol, Enrolled, Hello};
use cohort_protocol::messages::node::{HeadToNode, NodeToHead};
use cohort_protocol::{Epoch, Role, RunId, WorkerId, version};
use std::sync::Arc;
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
    _dir: tempfile::TempDir,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn door(strangers: bool, carrier: Carrier) -> Door {
    let reach = reach(carrier);
    let dir = tempfile::tempdir().unwrap();
    let authority = Arc::new(RunAuthority::open_or_create(dir.path(), RUN).unwrap());
    let sockets = reach.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let identity = authority.issue(HEAD).unwrap();
    let open = if strangers { Reach::listen_with_strangers } else { Reach::listen };
    let listener = Arc::new(open(&reach, sockets, &identity).unwrap());
    let serving = tokio::spawn(serve(listener.clone(), authority.clone(), strangers));
    Door { authority, listener, reach, serving, _dir: dir }
}

async fn serve(listener: Arc<ReachListener>, authority: Arc<RunAuthority>, strangers: bool) {
    let terms = AcceptTerms {
        run: RUN,
        epoch: Epoch(0),
        numerics: String::new(),
        corrects: false,
        deadline: SOON,
        roles: AcceptTerms::NODES,
    };
    while let Ok(connection) = listener.accept().await {
        let (terms, authority) = (terms.clone(), authority.clone());
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
            if let Ok(Some(admitted)) = admitted {
                // A session stays until its other end goes.
                while admitted.connection.recv().await.is_ok() {}
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
