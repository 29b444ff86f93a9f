//! Whether a fabric between ranks is tried or the lines carry the sums: decided from what failed and what worked, and nothing else.
//!
//! Invariants
//! - **E1** after [`TRIES`] failures without a step on the fabric in between it is left alone for [`REST`] steps.
//! - **E2** after a rest it has one try: a failure then is a rest again, a step on it forgives everything.

/// Steps in a row abandoned on a fabric after which the lines carry the sums: perhaps it was never a rank's fault.
pub(super) const TRIES: u32 = 2;
/// For so many steps.
pub(super) const REST: u32 = 100;

/// What is known of a fabric.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Trial {
    /// In a row.
    failures: u32,
    /// Steps until it is tried again.
    rest: u32,
}

impl Trial {
    /// Whether it may be made now.
    pub(super) fn is_due(self) -> bool {
        self.rest == 0
    }

    /// It could not be made, or a step was abandoned on it. Gives for how many steps the lines carry the sums.
    pub(super) fn failed(&mut self) -> u32 {
        self.failures += 1;
        if self.failures >= TRIES {
            self.rest = REST;
        }
        self.rest
    }

    /// A step was taken on it.
    pub(super) fn worked(&mut self) {
        self.failures = 0;
    }

    /// A step was taken on the lines. `true`: its rest is over with it.
    pub(super) fn went_without(&mut self) -> bool {
        let over = self.rest == 1;
        self.rest = self.rest.saturating_sub(1);
        if over {
            self.failures = TRIES - 1;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_failures_in_a_row_are_a_rest_and_after_it_one_is() {
        let mut trial = Trial::default();
        assert_eq!(trial.failed(), 0);
        trial.worked();
        assert_eq!((trial.failed(), trial.is_due()), (0, true), "one that worked in between is forgiven");
        assert_eq!((trial.failed(), trial.is_due()), (REST, false));
        for step in 1..=REST {
            assert_eq!(trial.went_without(), step == REST, "step {step}");
        }
        assert!(trial.is_due());
        assert_eq!(trial.failed(), REST, "its one try");
        assert_eq!((0..REST).filter(|_| trial.went_without()).count(), 1);
        trial.worked();
        assert_eq!(trial, Trial::default());
    }

    proptest! {
        /// Of any hundred steps, however they end, no more than two are abandoned on the fabric without one on it in between.
        #[test]
        fn a_fabric_that_never_works_costs_few_steps(good in prop::collection::vec(any::<bool>(), 1..600)) {
            let (mut trial, mut in_a_row) = (Trial::default(), 0);
            let mut lines = 0;
            for good in good {
                if !trial.is_due() {
                    lines += 1;
                    prop_assert!(lines <= REST, "left alone for longer than a rest");
                    if trial.went_without() {
                        (in_a_row, lines) = (0, 0);
                    }
                } else if good {
                    trial.worked();
                    in_a_row = 0;
                } else {
                    in_a_row += 1;
                    let rests = trial.failed() > 0;
                    prop_assert!(in_a_row <= TRIES && (in_a_row < TRIES || rests));
                }
            }
        }
    }
}
