//! New certificates while a run goes on: for this host's places at once, for other hosts by telling them to ask.
//!
//! Invariant **R1**: a certificate is replaced twice before it ends ([`RENEWAL`], a third of its life), so that a host that misses
//! one renewal is still let in.
use cohort_actors::certs::{CertError, RENEWAL, RunAuthority};
use cohort_protocol::WorkerId;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// Makes certificates anew.
#[derive(Debug)]
pub(super) struct Rotation {
    authority: Arc<RunAuthority>,
    due: Interval,
}

impl Rotation {
    /// The first one is due a period after the launch, which issued those there are.
    pub(super) fn new(authority: Arc<RunAuthority>) -> Self {
        Self::every(RENEWAL, authority)
    }

    fn every(period: Duration, authority: Arc<RunAuthority>) -> Self {
        let mut due = interval_at(Instant::now() + period, period);
        // A host that slept renews once, not once for every period.
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { authority, due }
    }

    /// When the next one is due. Cancel-safe.
    pub(super) async fn due(&mut self) {
        self.due.tick().await;
    }

    /// Gives the places of this host new certificates; their processes show them from the next handshake on.
    ///
    /// # Errors
    /// The first one that cannot be made or written; those before it are new.
    pub(super) fn renew(&self, places: impl IntoIterator<Item = WorkerId>) -> Result<usize, CertError> {
        let mut renewed = 0;
        for who in places {
            self.authority.issue_files(who)?;
            renewed += 1;
        }
        Ok(renewed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_actors::certs::{LIFETIME, issued};
    use cohort_protocol::{Role, RunId};

    #[tokio::test]
    async fn places_are_renewed_twice_before_their_certificates_end() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(RunAuthority::open_or_create(dir.path(), RunId(5)).unwrap());
        let place = WorkerId { role: Role::Rollout, index: 0 };
        authority.issue_files(place).unwrap();
        assert!(RENEWAL * 2 < LIFETIME);
        let period = Duration::from_millis(20);
        let mut rotation = Rotation::every(period, authority);
        let (begun, mut seen) = (Instant::now(), Vec::new());
        for n in 1..=2 {
            seen.push(issued(dir.path()).unwrap().remove(0).fingerprint);
            rotation.due().await;
            assert!(begun.elapsed() >= period * n);
            assert_eq!(rotation.renew([place]).unwrap(), 1);
        }
        seen.push(issued(dir.path()).unwrap().remove(0).fingerprint);
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 3, "each is another one");
    }
}
