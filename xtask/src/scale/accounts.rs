//! Groups through the real aggregator and the real ledger (segments and SQLite, each synced), as the coordinator's journal
//! writes them: what waits goes into one transaction.
//!
//! A group is small on purpose (two samples of 16 tokens): what is measured is what each group costs, not its bytes. Each
//! is opened, leased, delivered and scored in the ledger, aggregated with its advantages, and consumed by the commit of a
//! step of [`STEP`] groups.
use anyhow::{Context, Result, ensure};
use cohort_cluster::ledger::{Accepted, Entry, Ledger, RunMeta, RunPaths, audit};
use cohort_learner::advantage::rloo::Rloo;
use cohort_learner::aggregator::Aggregator;
use cohort_protocol::messages::reward::ScoreReply;
use cohort_protocol::*;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Groups of a step.
const STEP: u64 = 1024;
/// Samples of a group, and tokens of a sample.
const SAMPLES: u16 = 2;
const TOKENS: usize = 16;

/// What came of it.
pub(crate) struct Throughput {
    /// Groups written in one transaction at each stage.
    pub(crate) batch: u64,
    /// Groups in all.
    pub(crate) groups: u64,
    /// Groups a second through both.
    pub(crate) per_second: f64,
    /// Part of the time that the ledger took.
    pub(crate) ledger: f64,
}

/// What waits for the ledger's thread, batches.
const QUEUE: usize = 4;

/// Measures in a folder of its own beneath `dir`, which must be on the disk that is to be measured.
pub(crate) fn throughput(dir: &Path, groups: u64, batch: u64) -> Result<Throughput> {
    let groups = groups.next_multiple_of(STEP);
    let folder = tempfile::tempdir_in(dir)?;
    let paths = RunPaths::new(folder.path());
    let meta = RunMeta { run: RunId(1), numerics: "scale".into(), config_hash: "scale".into() };
    let mut ledger = Ledger::create(&paths, &meta)?;
    let epoch = ledger.begin_epoch(0)?;
    let delivered: Vec<_> = (0..groups).map(|group| (trajectories(group, epoch), scores(group, epoch))).collect();
    let (sender, queue) = std::sync::mpsc::sync_channel::<Vec<Entry>>(QUEUE);
    let begun = Instant::now();
    let writing = std::thread::spawn(move || -> Result<f64> {
        let mut busy = 0.0;
        for entries in queue {
            let begun = Instant::now();
            ledger.apply(&entries)?;
            busy += begun.elapsed().as_secs_f64();
        }
        Ok(busy)
    });
    let mut aggregator = Aggregator::new(usize::from(SAMPLES), Arc::new(Rloo), GroupId(0));
    let (mut step, mut digests) = (0, Vec::new());
    for (index, part) in delivered.chunks(batch as usize).enumerate() {
        let mut entries = Vec::with_capacity(4 * part.len() + 2);
        for (trajectories, _) in part {
            let (group, worker) = (trajectories.group, WORKER);
            entries.push(Entry::Opened { group, cursor: group.0, epoch });
            entries.push(Entry::Leased { group, attempt: AttemptId(1), worker, epoch, at_ms: 0 });
            entries.push(Entry::Trajectories(Accepted::trajectories(trajectories.clone(), worker)?));
        }
        for (trajectories, scores) in part {
            offer(&mut aggregator, trajectories, scores)?;
        }
        let ready = aggregator.take(part.len())?.context("a group is not complete")?;
        for ((_, scores), ready) in part.iter().zip(ready) {
            entries.push(Entry::Scores(Accepted::scores(scores.clone(), WORKER, ready.digest.clone())?));
            digests.push(ready.digest);
        }
        let done = index as u64 * batch + part.len() as u64;
        if done.is_multiple_of(STEP) {
            entries.extend(self::step(step, std::mem::take(&mut digests)));
            step += 1;
        }
        sender.send(entries).context("the ledger's thread has ended")?;
    }
    drop(sender);
    let busy = writing.join().map_err(|_| anyhow::anyhow!("the ledger's thread has panicked"))??;
    let seconds = begun.elapsed().as_secs_f64();
    let proof = audit(&paths)?;
    ensure!(proof.balanced, "the audit found {proof:?}");
    Ok(Throughput { batch, groups, per_second: groups as f64 / seconds, ledger: busy / seconds })
}

const WORKER: WorkerId = WorkerId { role: Role::Rollout, index: 1 };

/// Intent and commit of the step after `before`.
fn step(before: u64, digests: Vec<String>) -> [Entry; 2] {
    let (step, base) = (StepId(before + 1), PolicyVersion(before));
    let groups = (before * STEP..(before + 1) * STEP).map(GroupId).collect();
    let commit = StepCommit {
        step,
        version: base.next(),
        weights_sha256: String::new(),
        weights_digest: before,
        metrics: vec![("reward".into(), 0.5)],
    };
    [Entry::Intent(StepIntent { step, base, groups, digests }), Entry::Commit(commit)]
}

fn offer(aggregator: &mut Aggregator, batch: &TrajectoryBatch, reply: &ScoreReply) -> Result<()> {
    for (trajectory, outcome) in batch.trajectories.iter().zip(&reply.outcomes) {
        let ScoreOutcome::Scored(score) = &outcome.outcome else { continue };
        aggregator.offer(ScoredTrajectory { trajectory: trajectory.clone(), score: score.clone() })?;
    }
    Ok(())
}

fn trajectories(group: u64, epoch: Epoch) -> Arc<TrajectoryBatch> {
    let sample = |sample: u16| Trajectory {
        group: GroupId(group),
        sample: SampleIx(sample),
        token_ids: (0..TOKENS as u32).map(|t| t * 7 + u32::from(sample)).collect::<Vec<_>>().into(),
        mask: (0..TOKENS).map(|t| u8::from(t >= TOKENS / 2)).collect(),
        logp: vec![-0.5; TOKENS].into(),
        logp_sampled: vec![-0.5; TOKENS].into(),
        spans: vec![VersionSpan {
            start: TOKENS as u32 / 2,
            len: TOKENS as u32 / 2,
            version: PolicyVersion(group / STEP),
            exact: true,
        }],
        temperature: 1.0,
        turns: vec![Turn::text(TurnRole::User, "two and two?"), Turn::text(TurnRole::Assistant, "four")],
        finish: FinishReason::Stop,
        generate_us: group,
        context_json: "{}".into(),
    };
    let (purpose, attempt) = (LeasePurpose::Train, AttemptId(1));
    let trajectories = (0..SAMPLES).map(sample).collect();
    Arc::new(TrajectoryBatch { epoch, purpose, group: GroupId(group), attempt, trajectories })
}

fn scores(group: u64, epoch: Epoch) -> Arc<ScoreReply> {
    let scored = |sample: u16| {
        let score = f64::from(sample) + (group % 3) as f64;
        let score = Score { score, breakdown: vec![("exact".into(), score)], metadata_json: String::new() };
        score::SampleOutcome { sample: SampleIx(sample), outcome: ScoreOutcome::Scored(score) }
    };
    let (purpose, attempt) = (LeasePurpose::Train, AttemptId(1));
    let outcomes = (0..SAMPLES).map(scored).collect();
    Arc::new(ScoreReply { epoch, purpose, group: GroupId(group), attempt, outcomes, score_us: 10 })
}
