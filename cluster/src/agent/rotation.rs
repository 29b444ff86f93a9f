//! New certificates while a run goes on: for this host's places at once, for other hosts by telling them to ask.
//!
//! Invariants
//! - **R1** a certificate is replaced twice before it ends ([`RENEWAL`], a third of its life), so that a host that misses one renewal
//!   is still let in.
//! - **R2** where the clock of this host is set, or the host has slept, certificates are replaced within [`LOOK`]: those that there
//!   are may be over, or not have begun.
use cohort_actors::certs::{CLOCK_SKEW, CertError, RENEWAL, RunAuthority};
use cohort_actors::wall::{self, Moment};
use cohort_protocol::WorkerId;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// Between two looks at the clock.
const LOOK: Duration = Duration::from_secs(10);
/// A clock that has gone otherwise by so much since the last renewal was set: half of what certificates allow for.
const DRIFT: Duration = Duration::from_secs(CLOCK_SKEW.as_secs() / 2);

/// Makes certificates anew.
#[derive(Debug)]
pub(super) struct Rotation {
    authority: Arc<RunAuthority>,
    due: Interval,
    look: Interval,
    /// When those that there are were issued.
    issued: Moment,
}

impl Rotation {
    /// The first one is due a period after the launch, which issued those there are.
    pub(super) fn new(authority: Arc<RunAuthority>) -> Self {
        Self::every(RENEWAL, LOOK, authority)
    }

    fn every(period: Duration, look: Duration, authority: Arc<RunAuthority>) -> Self {
        let mut due = interval_at(Instant::now() + period, period);
        // A host that slept renews once, not once for every period.
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = interval_at(Instant::now() + look, look);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { authority, due, look, issued: moment() }
    }

    /// When the next one is due. Cancel-safe.
    pub(super) async fn due(&mut self) {
        loop {
            tokio::select! {
                _ = self.due.tick() => return,
                _ = self.look.tick() => {
                    let drift = self.issued.drift(&moment());
                    if drift > DRIFT {
                        tracing::warn!(target: "cohort::agent", drift_s = drift.as_secs(), "clock_was_set");
                        return;
                    }
                }
            }
        }
    }

    /// Gives the places of this host new certificates; their processes show them from the next handshake on.
    ///
    /// # Errors
    /// The first one that cannot be made or written; those before it are new.
    pub(super) fn renew(&mut self, places: impl IntoIterator<Item = WorkerId>) -> Result<usize, CertError> {
        let mut renewed = 0;
        self.issued = moment();
        for who in places {
            self.authority.issue_files(who)?;
            renewed += 1;
        }
        Ok(renewed)
    }
}

fn moment() -> Moment {
    Moment::new(wall::now(), std::time::Instant::now())
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
        let mut rotation = Rotation::every(period, LOOK, authority);
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

    #[tokio::test]
    async fn a_clock_that_was_set_is_a_reason_to_renew_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(RunAuthority::open_or_create(dir.path(), RunId(5)).unwrap());
        let look = Duration::from_millis(5);
        let mut rotation = Rotation::every(RENEWAL, look, authority);
        let hour = Duration::from_secs(3600);
        for then in [wall::now() + 5 * hour, wall::now() - 5 * hour] {
            // The last renewal was under a clock that went otherwise.
            rotation.issued = Moment::new(then, std::time::Instant::now());
            let begun = Instant::now();
            rotation.due().await;
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
            rotation.renew([]).unwrap();
        }
        assert!(tokio::time::timeout(20 * look, rotation.due()).await.is_err(), "a clock that goes right is none");
    }
}
