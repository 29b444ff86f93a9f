//! A reward worker against a coordinator's end of the link, over the in-process transport.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
use async_trait::async_trait;
use cohort_actors::transport::inproc::{InprocAddress, InprocListener};
use cohort_actors::{AcceptTerms, Deadlines, Listener, PeerLink, Shutdown, accept_worker};
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::reward::{CoordinatorToReward, RewardToCoordinator, SampleToScore, ScoreReply, ScoreRequest};
use cohort_protocol::{
    AttemptId, Epoch, GroupId, LeasePurpose, Role, RunId, SampleIx, Score, ScoreOutcome, Turn, TurnRole, WorkerId, version,
};
use cohort_reward_workers::{Reward, RewardArgs, RewardError, ScoreInput, run_worker};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

type Link = PeerLink<RewardToCoordinator, CoordinatorToReward>;

/// Scores a sample by its text's length, when it is let.
struct Gate {
    open: Semaphore,
    running: AtomicUsize,
    most: AtomicUsize,
}

impl Gate {
    fn new(open: usize) -> Arc<Self> {
        Arc::new(Self { open: Semaphore::new(open), running: AtomicUsize::new(0), most: AtomicUsize::new(0) })
    }
}

#[async_trait]
impl Reward for Gate {
    fn name(&self) -> &str {
        "gate"
    }
    async fn score(&self, input: &ScoreInput) -> Vec<ScoreOutcome> {
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
        self.open.acquire().await.unwrap().forget();
        self.running.fetch_sub(1, Ordering::SeqCst);
        assert!(!input.item.contains_key("panic"), "asked to");
        let one =
            |score: usize| ScoreOutcome::Scored(Score { score: score as f64, breakdown: vec![], metadata_json: "{}".into() });
        input.samples.iter().map(|s| one(s.last_turn().len())).collect()
    }
    fn breakers(&self) -> Vec<(String, String)> {
        vec![("gate".into(), "closed".into())]
    }
}

struct Bench {
    listener: InprocListener,
    worker: JoinHandle<Result<(), RewardError>>,
    shutdown: Shutdown,
}

impl Bench {
    fn start(reward: Arc<dyn Reward>, capacity: u16) -> Self {
        let address = InprocAddress::new("coordinator", Deadlines::default());
        let (listener, shutdown) = (address.listen(), Shutdown::new());
        let hello = Hello {
            protocol_min: version::PROTOCOL_MIN,
            protocol_max: version::PROTOCOL,
            run: RunId(1),
            worker: WorkerId { role: Role::Reward, index: 0 },
            pid: 1,
            incarnation: 0,
            numerics: String::new(),
        };
        let args = RewardArgs { hello, reward, capacity };
        let worker = tokio::spawn(run_worker(args, Arc::new(address.dialer()), shutdown.clone()));
        Self { listener, worker, shutdown }
    }

    /// Welcomes the worker to an epoch and hears its `Ready`.
    async fn welcome(&self, epoch: u64) -> Link {
        let terms = AcceptTerms {
            run: RunId(1),
            epoch: Epoch(epoch),
            numerics: String::new(),
            corrects: false,
            deadline: Duration::from_secs(5),
            roles: AcceptTerms::WORKERS,
        };
        let connection = self.listener.accept().await.unwrap();
        let link: Link = accept_worker(connection, &terms, |_| Ok(())).await.unwrap().into_link();
        assert!(matches!(link.recv().await.unwrap(), (RewardToCoordinator::Ready(_), None)));
        link
    }
}

fn request(epoch: u64, group: u64, item: &str) -> CoordinatorToReward {
    let sample = |i: u16| SampleToScore {
        sample: SampleIx(i),
        turns: vec![Turn::text(TurnRole::Assistant, "x".repeat(usize::from(i) + 1))],
        context_json: "{}".into(),
    };
    CoordinatorToReward::Score(ScoreRequest {
        epoch: Epoch(epoch),
        purpose: LeasePurpose::Train,
        group: GroupId(group),
        attempt: AttemptId(1),
        item_json: item.into(),
        seed: 0,
        samples: vec![sample(0), sample(1)],
    })
}

/// The next reply, with its acknowledgement given or withheld; beats are skipped.
async fn reply(link: &Link, acknowledge: bool) -> ScoreReply {
    loop {
        match link.recv().await.unwrap() {
            (RewardToCoordinator::Scored(reply), Some(ack)) => {
                if acknowledge {
                    ack.accept();
                } else {
                    // Lost together with its connection, below.
                    std::mem::forget(ack);
                }
                return reply;
            }
            (RewardToCoordinator::Beat(_), None) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn grades_within_its_capacity_and_drains() {
    let gate = Gate::new(0);
    let bench = Bench::start(gate.clone(), 2);
    let link = bench.welcome(1).await;
    for group in 0..4 {
        link.sender().send_bulk(&request(1, group, "{}")).await.unwrap();
    }
    link.sender().send(&CoordinatorToReward::Drain("test".into())).await.unwrap();
    gate.open.add_permits(4);
    for _ in 0..4 {
        let reply = reply(&link, true).await;
        let scores: Vec<_> = reply.outcomes.iter().map(|o| (o.sample.0, o.outcome.clone())).collect();
        let scored = |score| ScoreOutcome::Scored(Score { score, breakdown: vec![], metadata_json: "{}".into() });
        assert_eq!(scores, [(0, scored(1.0)), (1, scored(2.0))]);
    }
    bench.worker.await.unwrap().unwrap();
    assert_eq!(gate.most.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_unacknowledged_reply_is_sent_again_to_the_same_epoch_only() {
    let bench = Bench::start(Gate::new(100), 1);
    let link = bench.welcome(1).await;
    link.sender().send_bulk(&request(1, 7, "{}")).await.unwrap();
    let first = reply(&link, false).await;
    link.close("test");
    drop(link);
    let link = bench.welcome(1).await;
    assert_eq!(reply(&link, false).await, first);
    link.close("test");
    drop(link);
    // A new epoch: what belonged to the old one is dropped, and the worker is free for new work.
    let link = bench.welcome(2).await;
    link.sender().send_bulk(&request(2, 8, "{}")).await.unwrap();
    assert_eq!(reply(&link, true).await.group, GroupId(8));
    bench.shutdown.trigger("test");
    bench.worker.await.unwrap().unwrap();
}

#[tokio::test]
async fn bad_items_and_panics_are_failures_of_their_group() {
    let bench = Bench::start(Gate::new(100), 2);
    let link = bench.welcome(1).await;
    for (group, item, want) in [(0, "[1]", "item of group 0 is not a JSON object"), (1, "{\"panic\": 1}", "the grader panicked")]
    {
        link.sender().send_bulk(&request(1, group, item)).await.unwrap();
        let reply = reply(&link, true).await;
        assert_eq!(reply.outcomes.len(), 2);
        for outcome in &reply.outcomes {
            assert!(
                matches!(&outcome.outcome, ScoreOutcome::Failed { error, retryable: false } if error.contains(want)),
                "{outcome:?}"
            );
        }
    }
    link.sender().send_bulk(&request(1, 2, "{}")).await.unwrap();
    assert_eq!(reply(&link, true).await.group, GroupId(2), "the worker lives on");
    bench.shutdown.trigger("test");
    bench.worker.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn beats_each_second_with_the_breakers() {
    let bench = Bench::start(Gate::new(100), 1);
    let link = bench.welcome(1).await;
    let begun = tokio::time::Instant::now();
    for second in 1..=3u64 {
        let (RewardToCoordinator::Beat(beat), None) = link.recv().await.unwrap() else { panic!("a beat was expected") };
        assert_eq!((beat.progress, beat.running), (0, 0));
        assert_eq!(beat.breakers, [("gate".to_owned(), "closed".to_owned())]);
        assert!(begun.elapsed() <= Duration::from_secs(second) + Duration::from_millis(50));
    }
    bench.shutdown.trigger("test");
    bench.worker.await.unwrap().unwrap();
}
