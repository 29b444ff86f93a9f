//! How long to wait before the next try. Pure: the same seed gives the same delays.
use std::time::Duration;

/// Exponential backoff: `base`, doubled each time, never over `max`, each delay shortened by up to `jitter` of itself so
/// that peers that failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BackoffPolicy {
    /// First delay.
    pub base: Duration,
    /// Longest delay.
    pub max: Duration,
    /// Part of a delay that is random, 0 to 1.
    pub jitter: f64,
    /// Whether the first try after a success waits not at all; the second then waits `base`.
    pub first_at_once: bool,
}

impl BackoffPolicy {
    /// Workers that lost their coordinator: 0.05 s doubling to 1 s.
    pub const RECONNECT: Self =
        Self { base: Duration::from_millis(50), max: Duration::from_secs(1), jitter: 0.5, first_at_once: false };
    /// Restarts: the first at once, then 0.1 s doubling to 2 s.
    pub const RESTART: Self =
        Self { base: Duration::from_millis(100), max: Duration::from_secs(2), jitter: 0.25, first_at_once: true };

    /// Upper end of the delay before try `failures` (from 1 after the first failure).
    #[must_use]
    pub fn ceiling(&self, failures: u32) -> Duration {
        let doublings = match (self.first_at_once, failures) {
            (_, 0) | (true, 1) => return Duration::ZERO,
            (true, n) => n - 2,
            (false, n) => n - 1,
        };
        let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
        self.base.checked_mul(factor).map_or(self.max, |delay| delay.min(self.max))
    }

    /// The delay before try `failures`: between `(1 - jitter) * ceiling` and `ceiling`.
    #[must_use]
    pub fn delay(&self, failures: u32, jitter: &mut Jitter) -> Duration {
        let ceiling = self.ceiling(failures);
        ceiling.mul_f64(self.jitter.clamp(0.0, 1.0).mul_add(-jitter.unit(), 1.0))
    }
}

/// A seeded stream of numbers for spreading delays (splitmix64). Never used for anything that training depends on.
#[derive(Debug, Clone)]
pub struct Jitter(u64);

impl Jitter {
    /// A stream of its own for each seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64")]
        let bits = ((z ^ (z >> 31)) >> 11) as f64;
        bits / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn doubles_to_the_ceiling() {
        let ms = |policy: BackoffPolicy| (1..9).map(|n| policy.ceiling(n).as_millis()).collect::<Vec<_>>();
        assert_eq!(ms(BackoffPolicy::RESTART), [0, 100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(ms(BackoffPolicy::RECONNECT), [50, 100, 200, 400, 800, 1000, 1000, 1000]);
        assert_eq!(BackoffPolicy::RESTART.ceiling(u32::MAX), Duration::from_secs(2));
    }

    proptest! {
        #[test]
        fn jitter_only_shortens(seed: u64, failures in 0u32..100, part in 0.0f64..=1.0) {
            let policy = BackoffPolicy { jitter: part, ..BackoffPolicy::RECONNECT };
            let (ceiling, delay) = (policy.ceiling(failures), policy.delay(failures, &mut Jitter::new(seed)));
            prop_assert!(delay <= ceiling);
            prop_assert!(delay.as_secs_f64() >= ceiling.as_secs_f64() * (1.0 - part) - 1e-6);
        }
    }

    #[test]
    fn seeds_differ() {
        let draw = |seed| Jitter::new(seed).unit();
        assert_ne!(draw(1), draw(2));
        assert_eq!(draw(3).to_bits(), draw(3).to_bits());
    }
}
