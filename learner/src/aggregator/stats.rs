//! Metrics of the groups that a step consumes, by the names users know. Fixed order: groups, then samples.
use crate::advantage::{is_constant, mean, std};
use crate::metrics::Tally;
use cohort_protocol::{FinishReason, GroupPayload, PolicyVersion, ScoredTrajectory};

/// Rewards, lengths, tool use and staleness of a step's groups. `base` is the version that consumes them.
#[must_use]
pub fn of_groups(groups: &[GroupPayload], base: PolicyVersion) -> Tally {
    let mut tally = Tally::default();
    for group in groups {
        let rewards: Vec<f64> = group.samples.iter().map(|s| s.score.score).collect();
        tally.mean("reward", rewards.iter().sum(), count(rewards.len()));
        tally.mean("reward_std", std(&rewards, false), 1.0);
        tally.mean("frac_reward_zero_std", f64::from(u8::from(is_constant(&rewards))), 1.0);
        let inexact = group.samples.iter().any(|sample| sample.trajectory.is_inexact());
        tally.sum("exactness/inexact_groups", f64::from(u8::from(inexact)));
    }
    parts(groups, &mut tally);
    for sample in groups.iter().flat_map(|g| &g.samples) {
        lengths(sample, &mut tally);
        tools(sample, &mut tally);
        if let Some(oldest) = sample.trajectory.oldest_version() {
            let staleness = count(usize::try_from(base.0.saturating_sub(oldest.0)).unwrap_or(usize::MAX));
            tally.mean("staleness/mean", staleness, 1.0);
            tally.max("staleness/max", staleness);
        }
    }
    tally
}

/// `rewards/{name}/mean` and `/std` of each part of the breakdown, over all samples that have it.
fn parts(groups: &[GroupPayload], tally: &mut Tally) {
    let all = || groups.iter().flat_map(|g| &g.samples).flat_map(|s| &s.score.breakdown);
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in all() {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    for name in names {
        let values: Vec<f64> = all().filter(|(n, _)| n == name).map(|&(_, v)| v).collect();
        tally.mean(&format!("rewards/{name}/mean"), mean(&values), 1.0);
        tally.mean(&format!("rewards/{name}/std"), std(&values, false), 1.0);
    }
}

fn lengths(sample: &ScoredTrajectory, tally: &mut Tally) {
    let t = &sample.trajectory;
    let length = count(t.completion_len());
    tally.sum("num_tokens", count(t.len()));
    tally.mean("completions/mean_length", length, 1.0);
    tally.min("completions/min_length", length);
    tally.max("completions/max_length", length);
    let clipped = matches!(t.finish, FinishReason::Length | FinishReason::Context);
    tally.mean("completions/clipped_ratio", f64::from(u8::from(clipped)), 1.0);
    if !clipped {
        tally.mean("completions/mean_terminated_length", length, 1.0);
        tally.min("completions/min_terminated_length", length);
        tally.max("completions/max_terminated_length", length);
    }
}

/// Calls per sample, and failures per call.
fn tools(sample: &ScoredTrajectory, tally: &mut Tally) {
    let turns = &sample.trajectory.turns;
    let calls = count(turns.iter().map(|t| t.tool_calls.len()).sum());
    let failures = count(turns.iter().flat_map(|t| &t.tool_results).filter(|r| r.is_error).count());
    tally.mean("tools/call_frequency", calls, 1.0);
    tally.mean("tools/failure_frequency", failures, calls);
}

#[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^53")]
fn count(n: usize) -> f64 {
    n as f64
}
