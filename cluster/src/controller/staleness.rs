//! How stale data may be. The one rule: at consumption, learner version - oldest token version <= `max_staleness`.
use super::plan::Plan;
use cohort_protocol::PolicyVersion;

/// Policy versions between the learner and a group's oldest token.
#[must_use]
pub fn staleness(learner: PolicyVersion, oldest: PolicyVersion) -> u64 {
    learner.0.saturating_sub(oldest.0 + u64::from(planted!(StalenessOffByOne)))
}

/// Whether a group whose tokens were sampled under `versions` (oldest, newest) may be consumed by the step that starts
/// from `learner`. A group in which nothing was sampled is never stale. Tokens of a version that the learner has not
/// reached are never admissible: they were not sampled from this run's policy.
#[must_use]
pub fn admissible(learner: PolicyVersion, versions: Option<(PolicyVersion, PolicyVersion)>, max_staleness: u64) -> bool {
    versions.is_none_or(|(oldest, newest)| newest <= learner && staleness(learner, oldest) <= max_staleness)
}

/// Training groups that may be under way and in no step yet, when `decided` steps have theirs: with those steps' groups no more
/// than the steps up to `version` + `max_staleness` + 1 consume (eq. 3 of AReaL, 2505.24298), and never more than the run.
#[must_use]
pub fn ahead(version: PolicyVersion, decided: u64, plan: &Plan) -> u64 {
    let reach = version.0.saturating_add(plan.max_staleness).saturating_add(1).min(plan.steps);
    reach.saturating_sub(decided).saturating_mul(u64::from(plan.groups_per_step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synchronous_runs_take_the_current_version_only() {
        let v = |a, b| Some((PolicyVersion(a), PolicyVersion(b)));
        let at = |versions, max| admissible(PolicyVersion(5), versions, max);
        assert!(at(v(5, 5), 0) && at(None, 0));
        assert!(!at(v(4, 5), 0) && !at(v(6, 6), 0) && !at(v(5, 6), 3));
        assert!(at(v(3, 5), 2) && !at(v(2, 5), 2));
    }
}
