//! `cluster rollouts RUN --step N`: the groups that a step consumed, side by side, read from the ledger. Reads only; the run
//! may be running.
use super::summary::{shown, turns};
use super::{CliError, Exit, json_line};
use crate::config::{Inputs, Resolved};
use crate::ledger::segments::{Place, RecordKind, read_record};
use crate::ledger::{LedgerError, RunPaths};
use cohort_learner::advantage::Advantage;
use cohort_learner::training::Training;
use cohort_protocol::export::{GroupJson, TrajectoryJson};
use cohort_protocol::messages::reward::ScoreReply;
use cohort_protocol::{CodecError, GroupId, ScoreOutcome, ScoredTrajectory, TrajectoryBatch, TurnRole, codec};
use cohort_rollout::{Dataset, registry};
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Run directory
    run: PathBuf,
    /// Which step, from 1 [default: the last]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    step: Option<u64>,
    /// Only this group
    #[arg(long, value_name = "ID")]
    group: Option<u64>,
    /// Print everything as one line of JSON, token ids and log-probs too (`score` reads it)
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    run_dir: PathBuf,
    step: u64,
    /// Policy that the step started from; in a synchronous run it generated the groups.
    version: u64,
    groups: Vec<GroupJson>,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    let paths = RunPaths::new(&args.run);
    let reader = Reader::open(paths)?;
    let (step, version, mut wanted) = reader.intent(args.step)?;
    if let Some(only) = args.group {
        wanted.retain(|&g| g == only);
        if wanted.is_empty() {
            return Err(CliError::new(Exit::Data, format!("step {step} did not consume group {only}")));
        }
    }
    let groups = wanted.into_iter().map(|g| reader.group(g, step)).collect::<Result<Vec<_>, _>>()?;
    let report = Report { run_dir: args.run.clone(), step, version, groups };
    if args.json {
        json_line(out, &report)?
    } else {
        text(&report, out)?
    }
    Ok(Exit::Success)
}

/// A run that is read beside its writer.
struct Reader {
    paths: RunPaths,
    conn: Connection,
    advantage: Arc<dyn Advantage>,
    /// The rows of the data; `None` where the file is no longer there.
    data: Option<Arc<dyn Dataset>>,
}

impl Reader {
    fn open(paths: RunPaths) -> Result<Self, CliError> {
        let ledger = paths.ledger();
        if !ledger.is_file() {
            return Err(LedgerError::Missing { path: paths.root().to_owned() }.into());
        }
        let conn = Connection::open_with_flags(&ledger, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .and_then(|conn| conn.pragma_update(None, "query_only", true).map(|()| conn))
            .map_err(|e| LedgerError::sqlite(&ledger, e))?;
        let config = Resolved::load(&Inputs { files: vec![paths.config()], ..Inputs::default() })?.config;
        let training = Training::try_from(&config.training).map_err(|e| CliError::new(Exit::Usage, e))?;
        let data = registry::dataset(&config.environment, Path::new("."), config.training.seed);
        if let Err(error) = &data {
            super::report(&format!("the data rows cannot be shown: {error}"));
        }
        Ok(Self { paths, conn, advantage: training.advantage, data: data.ok() })
    }

    fn query<T>(&self, result: rusqlite::Result<T>) -> Result<T, CliError> {
        Ok(result.map_err(|e| LedgerError::sqlite(&self.paths.ledger(), e))?)
    }

    /// A committed step, the policy version it started from, and its groups.
    fn intent(&self, step: Option<u64>) -> Result<(u64, u64, Vec<u64>), CliError> {
        let last = self.query(self.conn.query_row("SELECT coalesce(max(step), 0) FROM commits", [], |r| r.get::<_, i64>(0)))?;
        let step = step.unwrap_or(last.unsigned_abs());
        let sql = "SELECT i.base, i.groups FROM intents i JOIN commits c ON c.step = i.step WHERE i.step = ?";
        let found =
            self.conn.query_row(sql, [step.cast_signed()], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, String>(1)?))).optional();
        let Some((base, groups)) = self.query(found)? else {
            let has = if last == 0 { "no step is committed yet".to_owned() } else { format!("steps 1 to {last} are committed") };
            return Err(CliError::new(Exit::Data, format!("{} has no step {step}: {has}", self.paths.root().display())));
        };
        let groups = serde_json::from_str(&groups)
            .map_err(|e| CliError::new(Exit::RunDirectory, format!("the intent of step {step} is damaged: {e}")))?;
        Ok((step, base.unsigned_abs(), groups))
    }

    /// The bytes of a group's record.
    fn record(&self, group: u64, table: &str, kind: RecordKind) -> Result<Vec<u8>, CliError> {
        let sql = format!("SELECT segment, offset, len FROM {table} WHERE grp = ?");
        let place = self.conn.query_row(&sql, [group.cast_signed()], |r| {
            Ok(Place { segment: r.get(0)?, offset: r.get::<_, i64>(1)?.unsigned_abs(), len: r.get(2)? })
        });
        Ok(read_record(&self.paths.segments(), self.query(place)?, kind)?)
    }

    fn group(&self, group: u64, step: u64) -> Result<GroupJson, CliError> {
        let damaged = |e: CodecError| CliError::new(Exit::RunDirectory, format!("the records of group {group}: {e}"));
        let batch = self.record(group, "trajectories", RecordKind::Trajectories)?;
        let batch: TrajectoryBatch = codec::decode(&batch).map_err(damaged)?;
        let reply = self.record(group, "scores", RecordKind::Scores)?;
        let reply: ScoreReply = codec::decode(&reply).map_err(damaged)?;
        let mut scored = Vec::with_capacity(batch.trajectories.len());
        for (trajectory, outcome) in batch.trajectories.into_iter().zip(reply.outcomes) {
            match outcome.outcome {
                ScoreOutcome::Scored(score) => scored.push(ScoredTrajectory { trajectory, score }),
                ScoreOutcome::Failed { error, .. } => {
                    let why = format!("group {group} was consumed with a failed score: {error}");
                    return Err(CliError::new(Exit::RunDirectory, why));
                }
            }
        }
        let rewards: Vec<f64> = scored.iter().map(|s| s.score.score).collect();
        let advantages = self.advantage.advantages(&rewards);
        let trajectories = scored.iter().zip(advantages).map(|(s, a)| TrajectoryJson::new(s, Some(a))).collect();
        Ok(GroupJson { group_id: group, step, item: self.item(group)?, trajectories })
    }

    /// The data row of a group.
    fn item(&self, group: u64) -> Result<serde_json::Value, CliError> {
        let Some(data) = &self.data else { return Ok(serde_json::Value::Null) };
        let cursor =
            self.conn.query_row("SELECT cursor FROM generated WHERE grp = ?", [group.cast_signed()], |r| r.get::<_, i64>(0));
        let item = data.train(GroupId(self.query(cursor)?.unsigned_abs()));
        serde_json::from_str(&item.json).map_err(|e| CliError::new(Exit::Data, format!("row {}: {e}", item.row)))
    }
}

fn text(report: &Report, out: &mut dyn Write) -> Result<(), CliError> {
    writeln!(out, "step {}, {} groups, from policy version {}", report.step, report.groups.len(), report.version)?;
    for group in &report.groups {
        let rewards: Vec<f64> = group.trajectories.iter().map(|t| t.total_reward).collect();
        let mean = rewards.iter().sum::<f64>() / rewards.len().max(1) as f64;
        writeln!(out, "\ngroup {}  mean reward {mean:.3} over {} samples", group.group_id, rewards.len())?;
        let shared = shared_turns(group);
        if let Some(first) = group.trajectories.first() {
            turns(&first.turns[..shared], "  ", out)?;
        }
        for t in &group.trajectories {
            let parts: Vec<String> = t.breakdown.iter().map(|(k, v)| format!("{k} {v}")).collect();
            let sampled = t.mask.iter().filter(|&&m| m == 1).count();
            writeln!(
                out,
                "  {:<8} reward {:.3}  advantage {:+.3}  {} tokens, {}  {}",
                t.trajectory_id,
                t.total_reward,
                t.advantage.unwrap_or(0.0),
                sampled,
                serde_json::to_value(t.finish_reason)?.as_str().unwrap_or_default(),
                shown(&parts.join(", "))
            )?;
            turns(&t.turns[shared..], "    ", out)?;
        }
    }
    Ok(())
}

/// Turns that all samples of a group begin with.
fn shared_turns(group: &GroupJson) -> usize {
    let Some((first, rest)) = group.trajectories.split_first() else { return 0 };
    let same = |i: usize| {
        rest.iter().all(|t| t.turns.get(i).map(|t| (t.role, &t.content)) == first.turns.get(i).map(|t| (t.role, &t.content)))
    };
    (0..first.turns.len()).take_while(|&i| same(i) && first.turns[i].role != TurnRole::Assistant).count()
}
