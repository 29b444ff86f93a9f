//! How long a job may show no progress before the learner no longer calls itself alive: sized for the model, so that a
//! slow machine is waited for and a hung one is found.
//!
//! The rates are a tenth and less of what the slowest supported machine does; they decide when to give up, nothing else.

/// Every job has this much.
const BASE_S: u64 = 120;
/// Files of a checkpoint, in bytes a second.
const DISK: u64 = 20_000_000;
/// Weights in memory (publishing, hashing), in bytes a second.
const MEMORY: u64 = 200_000_000;
/// Forward and backward of one micro-batch, in floating-point operations a second.
const COMPUTE: u64 = 2_000_000_000;
/// Weights and two moments, f32.
const STATE_BYTES: u64 = 12;
/// Operations of forward and backward for one parameter and token.
const OPERATIONS: u64 = 6;

/// Beats, one a second, that a job may take from one sign of progress to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Loading a state, or saving it and reading it back.
    pub state: u64,
    /// One micro-batch, or what stands between the last one and the answer.
    pub micro_batch: u64,
    /// Writing a slot.
    pub publish: u64,
}

impl Patience {
    /// For a model of so many parameters and micro-batches of so many tokens.
    #[must_use]
    pub fn new(parameters: u64, micro_batch_tokens: u64) -> Self {
        let operations = OPERATIONS.saturating_mul(parameters).saturating_mul(micro_batch_tokens.max(1));
        let weights = 4u64.saturating_mul(parameters) / MEMORY;
        Self {
            state: BASE_S + 2 * (STATE_BYTES.saturating_mul(parameters) / DISK) + weights,
            micro_batch: BASE_S + operations / COMPUTE + weights,
            publish: BASE_S + weights,
        }
    }
}

/// Whether a worker that has something to do still moves, seen once a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stillness {
    limit: u64,
    still: u64,
    last: u64,
    progress: u64,
}

impl Stillness {
    /// Of a worker that may stand still for so many beats.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { limit, still: 0, last: 0, progress: 0 }
    }

    /// A second has passed, and `work` was done since the start. Gives a counter that moves unless the worker is hung.
    pub fn beat(&mut self, busy: bool, work: u64) -> u64 {
        self.still = if busy && work == self.last { self.still + 1 } else { 0 };
        self.last = work;
        if self.still <= self.limit {
            self.progress += 1;
        }
        self.progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_with_the_model_and_never_falls_below_the_base() {
        let tiny = Patience::new(800_000, 4096);
        assert_eq!(tiny, Patience { state: 120, micro_batch: 129, publish: 120 });
        let small = Patience::new(134_515_008, 4096);
        assert!(small.state > 250 && small.micro_batch > 1000 && small.publish > tiny.publish, "{small:?}");
        assert!(Patience::new(u64::MAX, u64::MAX).micro_batch > small.micro_batch, "no overflow");
    }

    #[test]
    fn only_a_busy_worker_that_does_nothing_stands_still() {
        let mut stillness = Stillness::new(2);
        assert_eq!([0, 0, 0, 0].map(|work| stillness.beat(false, work)), [1, 2, 3, 4]);
        assert_eq!([0, 0, 0, 0].map(|work| stillness.beat(true, work)), [5, 6, 6, 6]);
        assert_eq!([1, 1].map(|work| stillness.beat(true, work)), [7, 8]);
    }
}
