//! The wall clock. Deadlines, leases, retries and breakers are of the monotonic clock; this one is for what outlives a process or
//! a host (certificates, tokens) and for what people read.
//!
//! Invariants
//! - **W1** it is read here and nowhere else (`cargo xtask tidy`), so that a test can set it.
//! - **W2** a clock that is set, by whatever time, expires or extends nothing but certificates and tokens.
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The time of day.
#[must_use]
pub fn now() -> SystemTime {
    #[cfg(test)]
    return set::shifted(SystemTime::now());
    #[cfg(not(test))]
    SystemTime::now()
}

/// Whole milliseconds since the Unix epoch; 0 before it.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The clock by which TLS judges certificates.
#[derive(Debug)]
pub(crate) struct TlsClock;

impl TimeProvider for TlsClock {
    fn current_time(&self) -> Option<UnixTime> {
        now().duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

/// Both clocks at one moment: what tells a clock that was set from time that has passed.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    wall: SystemTime,
    steady: Instant,
}

impl Moment {
    /// Of these readings.
    #[must_use]
    pub fn new(wall: SystemTime, steady: Instant) -> Self {
        Self { wall, steady }
    }

    /// By how much the wall clock has gone otherwise than time, in either direction, from here to a later moment. A host that
    /// slept looks as one whose clock was set forward.
    #[must_use]
    pub fn drift(&self, later: &Self) -> Duration {
        let passed = later.steady.saturating_duration_since(self.steady);
        let expected = self.wall + passed;
        later.wall.duration_since(expected).unwrap_or_else(|behind| behind.duration())
    }
}

/// A clock that a test sets, for its thread alone.
#[cfg(test)]
pub(crate) mod set {
    use std::cell::Cell;
    use std::time::{Duration, SystemTime};

    thread_local! {
        static SECONDS: Cell<i64> = const { Cell::new(0) };
    }

    pub(super) fn shifted(real: SystemTime) -> SystemTime {
        let seconds = SECONDS.get();
        let by = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 { real - by } else { real + by }
    }

    /// The wall clock of this thread is so far from the real one.
    pub(crate) fn set(seconds: i64) {
        SECONDS.set(seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn time_that_passes_is_no_drift_and_a_set_clock_is() {
        let (wall, steady) = (now(), Instant::now());
        let then = Moment::new(wall, steady);
        let seconds = |d: Duration| d.as_secs();
        assert_eq!(seconds(then.drift(&Moment::new(wall + 5 * HOUR, steady + 5 * HOUR))), 0);
        assert_eq!(seconds(then.drift(&Moment::new(wall + 6 * HOUR, steady + HOUR))), 5 * 3600);
        assert_eq!(seconds(then.drift(&Moment::new(wall - 4 * HOUR, steady + HOUR))), 5 * 3600);
    }

    #[test]
    fn a_test_sets_the_clock_of_its_own_thread() {
        let real = SystemTime::now();
        set::set(-7200);
        assert!(now() < real - HOUR);
        assert!(std::thread::spawn(now).join().unwrap() >= real);
        set::set(0);
    }
}
