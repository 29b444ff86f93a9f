//! What an earlier coordinator of this launch said last, in `status.json`: a hint, which may be old.
use super::CoordinatorArgs;
use crate::progress::RunStatus;
use cohort_protocol::{Role, WorkerId};
use std::time::Duration;

/// The last word of an earlier coordinator.
#[derive(Debug)]
pub(super) struct Predecessor(RunStatus);

impl Predecessor {
    /// `None` for the first coordinator of a launch, and where nothing can be read.
    pub(super) fn of(args: &CoordinatorArgs) -> Option<Self> {
        let said = std::fs::read(args.paths.status()).ok().filter(|_| args.incarnation > 0)?;
        serde_json::from_slice(&said).ok().map(Self)
    }

    /// Whom it had: name, starts and process of each. A process that is no longer there is nobody's.
    pub(super) fn workers(&self) -> Vec<(WorkerId, u32, u32)> {
        let workers = self.0.actors.iter().filter(|actor| actor.role != Role::Coordinator);
        workers.filter_map(|a| Some((WorkerId { role: a.role, index: a.index }, a.restarts, a.pid?))).collect()
    }

    /// How long ago the launch began, where it is `now_ms` since the Unix epoch. For reports: a clock that was set shows in it.
    pub(super) fn launched(&self, now_ms: u64) -> Duration {
        let elapsed = Duration::try_from_secs_f64(self.0.elapsed_s).unwrap_or_default();
        elapsed.saturating_add(Duration::from_millis(now_ms.saturating_sub(self.0.updated_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::Predecessor;
    use std::time::Duration;

    #[test]
    fn the_launch_began_when_the_predecessor_says() {
        let said = |elapsed_s: &str| {
            let text = r#"{"phase":"collecting","epoch":2,"step":2,"steps":9,"updated_ms":1500,"actors":[]"#;
            Predecessor(serde_json::from_str(&format!("{text}{elapsed_s}}}")).unwrap())
        };
        assert_eq!(said(r#","elapsed_s":4.5"#).launched(2500), Duration::from_millis(5500));
        assert_eq!(said(r#","elapsed_s":4.5"#).launched(500), Duration::from_millis(4500), "a clock that was set back");
        for damaged in ["", r#","elapsed_s":-1"#, r#","elapsed_s":1e300"#] {
            assert_eq!(said(damaged).launched(2500), Duration::from_secs(1), "{damaged}");
        }
    }
}
