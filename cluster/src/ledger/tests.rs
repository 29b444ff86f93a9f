use super::store::{Ledger, RunMeta};
use super::*;
use crate::progress::EvaluationReport;
use cohort_protocol::messages::reward::ScoreReply;
use cohort_protocol::score::SampleOutcome;
use cohort_protocol::*;
use std::path::Path;

const WORKER: WorkerId = WorkerId { role: Role::Rollout, index: 1 };

pub(in crate::ledger) fn meta() -> RunMeta {
    RunMeta { run: RunId(77), numerics: "native f32".into(), config_hash: "c0ffee".into() }
}

pub(in crate::ledger) fn batch(group: u64) -> Accepted<TrajectoryBatch> {
    let trajectory = Trajectory {
        group: GroupId(group),
        sample: SampleIx(0),
        token_ids: vec![1, 2, 3 + group as u32].into(),
        mask: vec![0, 1, 1],
        logp: vec![0.0, -0.5, -0.25].into(),
        logp_sampled: vec![0.0, -0.5, -0.25].into(),
        spans: vec![VersionSpan { start: 1, len: 2, version: PolicyVersion(0), exact: true }],
        temperature: 1.0,
        turns: vec![Turn::text(TurnRole::User, "hello")],
        finish: FinishReason::Stop,
        generate_us: group,
        context_json: "{}".into(),
    };
    let batch = TrajectoryBatch {
        epoch: Epoch(1),
        purpose: LeasePurpose::Train,
        group: GroupId(group),
        attempt: AttemptId(1),
        trajectories: vec![trajectory],
    };
    Accepted::trajectories(batch.into(), WORKER).unwrap()
}

pub(in crate::ledger) fn scores(group: u64) -> Accepted<ScoreReply> {
    let score = Score { score: 0.5, breakdown: vec![("exact".into(), 0.5)], metadata_json: "{}".into() };
    let reply = ScoreReply {
        epoch: Epoch(1),
        purpose: LeasePurpose::Train,
        group: GroupId(group),
        attempt: AttemptId(1),
        outcomes: vec![SampleOutcome { sample: SampleIx(0), outcome: ScoreOutcome::Scored(score) }],
        score_us: 10,
    };
    Accepted::scores(reply.into(), WORKER, format!("payload-{group}")).unwrap()
}

pub(in crate::ledger) fn opened(group: u64) -> Vec<Entry> {
    let group = GroupId(group);
    vec![
        Entry::Opened { group, cursor: group.0, epoch: Epoch(1) },
        Entry::Leased { group, attempt: AttemptId(1), worker: WORKER, epoch: Epoch(1), at_ms: 5 },
    ]
}

fn intent(step: u64, groups: &[u64]) -> StepIntent {
    StepIntent {
        step: StepId(step),
        base: PolicyVersion(step - 1),
        groups: groups.iter().copied().map(GroupId).collect(),
        digests: groups.iter().map(|g| format!("d{g}")).collect(),
    }
}

fn commit(step: u64) -> StepCommit {
    StepCommit {
        step: StepId(step),
        version: PolicyVersion(step),
        weights_sha256: String::new(),
        weights_digest: u64::MAX - step,
        metrics: vec![("loss".into(), 0.125), ("reward_mean".into(), -1.5)],
    }
}

/// A run with two committed steps of two groups, one dropped group and two in flight.
fn filled(dir: &Path) -> RunPaths {
    let paths = RunPaths::new(dir);
    let mut ledger = Ledger::create(&paths, &meta()).unwrap();
    assert_eq!(ledger.begin_epoch(1).unwrap(), Epoch(1));
    for group in 0..7 {
        ledger.apply(&opened(group)).unwrap();
        if group < 6 {
            ledger.apply(&[Entry::Trajectories(batch(group))]).unwrap();
        }
        if group < 4 {
            ledger.apply(&[Entry::Scores(scores(group))]).unwrap();
        }
    }
    ledger.apply(&[Entry::Intent(intent(1, &[0, 1])), Entry::Commit(commit(1)), Entry::Intent(intent(2, &[2, 3]))]).unwrap();
    ledger.apply(&[Entry::Commit(commit(2))]).unwrap();
    ledger.apply(&[Entry::Dropped { group: GroupId(5), reason: "score_failed".into(), detail: "judge: 500".into() }]).unwrap();
    let checkpoint =
        Entry::Checkpoint { version: PolicyVersion(2), dir: "checkpoints/step-2".into(), manifest_sha256: "ab".into(), at_ms: 9 };
    ledger.apply(&[checkpoint]).unwrap();
    let report = EvaluationReport {
        step: 0,
        greedy: true,
        reward: 0.1,
        parts: vec![("exact".into(), 0.1)],
        per_prompt: vec![0.0, 0.2],
        samples: 1,
        example: None,
    };
    ledger.apply(&[Entry::Evaluation(report)]).unwrap();
    paths
}

#[test]
fn the_past_comes_back_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let paths = filled(dir.path());
    let mut ledger = Ledger::open(&paths).unwrap();
    assert_eq!(ledger.meta().unwrap(), meta());
    let past = ledger.past().unwrap();
    assert_eq!(past.committed(), 2);
    assert_eq!(past.commits[&StepId(2)], commit(2));
    assert_eq!(past.intents[&StepId(1)], intent(1, &[0, 1]));
    assert_eq!(past.open_groups.keys().map(|g| g.0).collect::<Vec<_>>(), [4, 6]);
    assert_eq!(past.open_groups[&GroupId(4)].trajectories, Some((batch(4).digest, WORKER)));
    assert_eq!(past.open_groups[&GroupId(6)].trajectories, None);
    assert_eq!((past.next_group, past.next_cursor), (7, 7));
    assert_eq!(past.checkpoints[0].dir, "checkpoints/step-2");
    assert_eq!(past.evaluations[0].per_prompt, [0.0, 0.2]);
    let back = ledger.trajectories(GroupId(4)).unwrap().unwrap();
    assert_eq!(back.value, batch(4).value);
    assert_eq!(ledger.scores(GroupId(1)).unwrap().unwrap().value, scores(1).value);
    assert!(ledger.scores(GroupId(6)).unwrap().is_none());
    assert_eq!(ledger.begin_epoch(2).unwrap(), Epoch(2));
}

#[test]
fn the_audit_balances_and_counts() {
    let dir = tempfile::tempdir().unwrap();
    let report = audit(&filled(dir.path())).unwrap();
    assert_eq!(report.findings, Vec::<String>::new());
    assert!(report.balanced);
    assert_eq!((report.generated, report.consumed, report.in_flight), (7, 4, 2));
    assert_eq!(report.dropped, [("score_failed".to_owned(), 1)].into());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["unit"], "group");
}

#[test]
fn the_first_accepted_wins() {
    let dir = tempfile::tempdir().unwrap();
    let paths = filled(dir.path());
    let mut ledger = Ledger::open(&paths).unwrap();
    for entry in [Entry::Trajectories(batch(4)), Entry::Scores(scores(0)), Entry::Commit(commit(2)), opened(0).remove(0)] {
        let error = ledger.apply(std::slice::from_ref(&entry)).unwrap_err();
        assert!(matches!(error, LedgerError::Doubled { .. }), "{error}");
    }
    drop(ledger);
    assert!(audit(&paths).unwrap().balanced);
}

#[test]
fn every_row_is_missed_when_deleted_noticed_when_doubled_and_when_edited() {
    let source = tempfile::tempdir().unwrap();
    let original = filled(source.path());
    for table in schema::TABLES {
        let columns: Vec<String> = table.columns.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let (name, first, all) = (table.name, &columns[0], columns.join(", "));
        for (act, sql) in [
            ("delete first", format!("DELETE FROM {name} WHERE seq = 1")),
            ("delete last", format!("DELETE FROM {name} WHERE seq = (SELECT max(seq) FROM {name})")),
            // A thorough intruder: the unique keys go first.
            (
                "double",
                format!(
                    "CREATE TABLE copy AS SELECT * FROM {name}; DROP TABLE {name}; ALTER TABLE copy RENAME TO {name};
                     INSERT INTO {name} (seq, {all}, link) SELECT seq + 1000, {all}, link FROM {name} WHERE seq = 1"
                ),
            ),
            ("edit", format!("UPDATE {name} SET {first} = {first} || '9' WHERE seq = 1")),
        ] {
            let copy = RunPaths::new(source.path().join("copy"));
            if copy.root().exists() {
                std::fs::remove_dir_all(copy.root()).unwrap();
            }
            std::fs::create_dir_all(copy.segments()).unwrap();
            std::fs::copy(original.ledger(), copy.ledger()).unwrap();
            let segment = segments::segment_path(&original.segments(), 1);
            std::fs::copy(&segment, segments::segment_path(&copy.segments(), 1)).unwrap();
            let conn = rusqlite::Connection::open(copy.ledger()).unwrap();
            conn.execute_batch(&format!("PRAGMA synchronous = OFF; {sql}")).unwrap();
            drop(conn);
            let report = audit(&copy).unwrap();
            assert!(!report.balanced, "{act} in {name} went unseen");
            assert!(report.findings.iter().any(|f| f.contains(name)), "{act} in {name}: {:?}", report.findings);
        }
    }
}

#[test]
fn a_doubled_row_does_not_fit_between_the_keys() {
    let dir = tempfile::tempdir().unwrap();
    let conn = rusqlite::Connection::open(filled(dir.path()).ledger()).unwrap();
    for table in schema::TABLES.iter().filter(|t| t.columns[0].1.contains("UNIQUE")) {
        let columns: Vec<String> = table.columns.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let all = columns.join(", ");
        let sql = format!(
            "INSERT INTO {0} (seq, {all}, link) SELECT seq + 1000, {all}, zeroblob(32) FROM {0} WHERE seq = 1",
            table.name
        );
        assert!(conn.execute_batch(&sql).is_err(), "{}", table.name);
    }
}

#[test]
fn a_damaged_segment_is_found_by_the_audit() {
    let dir = tempfile::tempdir().unwrap();
    let paths = filled(dir.path());
    let path = segments::segment_path(&paths.segments(), 1);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 4;
    std::fs::write(&path, &bytes).unwrap();
    let report = audit(&paths).unwrap();
    assert!(!report.balanced && report.findings[0].contains("checksum"), "{:?}", report.findings);
}

#[test]
fn a_full_disk_is_named_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let paths = filled(dir.path());
    let mut ledger = Ledger::open(&paths).unwrap();
    ledger.limit_pages(1);
    let mut next = 7;
    let error = loop {
        let mut entries = opened(next);
        entries.push(Entry::Trajectories(batch(next)));
        match ledger.apply(&entries) {
            Ok(()) => next += 1,
            Err(error) => break error,
        }
        assert!(next < 10_000);
    };
    assert!(matches!(error, LedgerError::NoSpace { .. }), "{error}");
    assert!(error.to_string().contains("--resume"));
    // Room again: the same facts are taken, and everything is there once.
    ledger.limit_pages(1 << 30);
    let mut entries = opened(next);
    entries.push(Entry::Trajectories(batch(next)));
    ledger.apply(&entries).unwrap();
    drop(ledger);
    let report = audit(&paths).unwrap();
    assert!(report.balanced, "{:?}", report.findings);
    assert_eq!(report.generated, next + 1);
}

#[test]
fn whole_records_behind_the_index_are_taken_over_and_torn_ones_cut() {
    let dir = tempfile::tempdir().unwrap();
    let paths = filled(dir.path());
    let (a, b) = (batch(6), scores(6));
    // A crash between the sync of the segment and the transaction: the records are there, the rows are not.
    let last = segments::segment_path(&paths.segments(), 1);
    let before = std::fs::read(&last).unwrap();
    {
        let other = tempfile::tempdir().unwrap();
        let (mut log, _) = segments::SegmentLog::open(other.path(), None).unwrap();
        log.append(segments::RecordKind::Trajectories, &a.payload).unwrap();
        log.append(segments::RecordKind::Scores, &b.payload).unwrap();
        // A group that is not in flight any more: none of ours.
        log.append(segments::RecordKind::Trajectories, &batch(0).payload).unwrap();
        let records = std::fs::read(segments::segment_path(other.path(), 1)).unwrap();
        let mut bytes = before;
        bytes.extend_from_slice(&records[segments::MAGIC.len()..]);
        bytes.extend_from_slice(&[9; 13]);
        std::fs::write(&last, bytes).unwrap();
    }
    let ledger = Ledger::open(&paths).unwrap();
    let past = ledger.past().unwrap();
    assert_eq!(past.open_groups[&GroupId(6)].trajectories, Some((a.digest, WORKER)));
    assert_eq!(past.open_groups[&GroupId(6)].scores, None, "scores are asked for again");
    drop(ledger);
    assert!(audit(&paths).unwrap().balanced);
    Ledger::open(&paths).unwrap();
}

#[test]
fn a_new_run_never_takes_an_old_ones_place() {
    let dir = tempfile::tempdir().unwrap();
    let paths = filled(dir.path());
    assert!(matches!(Ledger::create(&paths, &meta()), Err(LedgerError::Exists { .. })));
    let empty = RunPaths::new(dir.path().join("other"));
    assert!(matches!(Ledger::open(&empty), Err(LedgerError::Missing { .. })));
    std::fs::create_dir_all(empty.root()).unwrap();
    std::fs::write(empty.ledger(), b"not a database, whatever its name says, and long enough to be looked at").unwrap();
    assert!(matches!(Ledger::open(&empty), Err(LedgerError::Corrupt { .. })));
}

#[test]
fn digests_ignore_timings_and_nothing_else() {
    let a = batch(3);
    let mut slower = (*a.value).clone();
    slower.trajectories[0].generate_us = 1 << 40;
    slower.attempt = AttemptId(9);
    slower.epoch = Epoch(9);
    assert_eq!(entry::digest_trajectories(&slower).unwrap(), a.digest);
    slower.trajectories[0].logp.0[1] = -0.500_000_06;
    assert_ne!(entry::digest_trajectories(&slower).unwrap(), a.digest);
}
