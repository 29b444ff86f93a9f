//! A host that is refused for its certificate.
use super::*;
use crate::agent::head::HEAD;
use crate::ledger::place::write_atomically;
use cohort_actors::certs::RunAuthority;
use cohort_actors::transport::TransportError;
use std::time::Instant;

const RUN: RunId = RunId(5);
const NODE: WorkerId = WorkerId { role: Role::Node, index: 1 };

/// The directory of a host that has joined the run of an authority.
fn joined(authority: &RunAuthority, dir: &Path) {
    let paths = RunPaths::new(dir);
    authority.issue(NODE).unwrap().save(&children::certificates(&paths)).unwrap();
    let membership = Membership { run: RUN.0, node: NODE, keepers: Vec::new() };
    write_atomically(&dir.join("host.json"), &serde_json::to_vec(&membership).unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_of_another_authority_is_told_so_at_once_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let authority = |name: &str| RunAuthority::open_or_create(&dir.path().join(name), RUN).unwrap();
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let host = dir.path().join("host");
    std::fs::create_dir(&host).unwrap();
    joined(&theirs, &host);
    let reach = Reach::default();
    let sockets = reach.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = reach.listen(sockets, &ours.issue(HEAD).unwrap()).unwrap();
    let options = JoinOptions {
        head: listener.local_addr(),
        token: None,
        dir: host,
        offers: vec![(Role::Rollout, 1)],
        sample_with: None,
        devices: Vec::new(),
        host: "gpu-2".into(),
        http: None,
    };
    let begun = Instant::now();
    let error = run(options, Shutdown::new()).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(3), "it sought on for {:?}", begun.elapsed());
    assert!(matches!(error, JoinError::Link(LinkError::Lost(TransportError::Certificate { .. }))), "{error:?}");
    let text = error.to_string();
    assert!(["node-0.run-", "two runs", "`cluster token RUN`", "--dir"].iter().all(|part| text.contains(part)), "{text}");
}
