//! Which part of an optimizer's state an engine keeps, where several ranks keep it together (ZeRO-1, arXiv 1910.02054).
//!
//! The parts are contiguous ranges of each bucket in which an engine lays out what it trains: a pure function of its length and
//! the number of ranks.
use std::ops::Range;

/// Values that are never cut apart: a cache line's are in one part.
const GRAIN: usize = 32;

/// Part `rank` of `of`, as even as whole grains allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    rank: usize,
    of: usize,
}

impl Partition {
    /// All of it.
    pub const WHOLE: Self = Self { rank: 0, of: 1 };

    /// `None` where there is no such rank.
    #[must_use]
    pub fn new(rank: usize, of: usize) -> Option<Self> {
        (rank < of).then_some(Self { rank, of })
    }

    /// All parts, in the order of the ranks.
    pub fn all(of: usize) -> impl Iterator<Item = Self> {
        (0..of).map(move |rank| Self { rank, of })
    }

    /// Whose it is.
    #[must_use]
    pub fn rank(self) -> usize {
        self.rank
    }

    /// Ranks that keep a part each.
    #[must_use]
    pub fn of(self) -> usize {
        self.of
    }

    /// Where it lies in a bucket of so many values.
    #[must_use]
    pub fn range(self, len: usize) -> Range<usize> {
        let grains = len.div_ceil(GRAIN);
        let start = |rank: usize| (grains * rank / self.of * GRAIN).min(len);
        start(self.rank)..start(self.rank + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_a_bucket_without_gap_or_overlap_and_nearly_even() {
        for len in [0, 1, 31, 32, 33, 1000, 12_345] {
            for of in 1..9 {
                let ranges: Vec<_> = Partition::all(of).map(|part| part.range(len)).collect();
                assert_eq!((ranges[0].start, ranges[of - 1].end), (0, len));
                assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].end.is_multiple_of(GRAIN)));
                assert!(ranges.iter().all(|range| range.len() <= len.div_ceil(of) + GRAIN), "{len} {of} {ranges:?}");
            }
        }
        assert_eq!((Partition::new(2, 2), Partition::new(0, 1)), (None, Some(Partition::WHOLE)));
    }
}

/// What must hold of every engine that keeps parts.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::{AdamW, Backend};
    use cohort_model::WeightSet;
    use std::ops::ControlFlow;
    use std::sync::{Barrier, Mutex};

    const OPTIMIZER: AdamW = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 };

    /// Where ranks on threads lay their parts down and take up those of the others.
    struct Table {
        all: Barrier,
        laid: Mutex<Vec<Vec<f32>>>,
    }

    impl Table {
        fn complete(&self, own: Partition, bucket: &mut [f32]) -> ControlFlow<()> {
            self.laid.lock().unwrap()[own.rank] = bucket[own.range(bucket.len())].to_vec();
            self.all.wait();
            for other in Partition::all(own.of) {
                let range = other.range(bucket.len());
                bucket[range].copy_from_slice(&self.laid.lock().unwrap()[other.rank]);
            }
            self.all.wait();
            ControlFlow::Continue(())
        }
    }

    /// `make` gives equal engines with weights; `accumulate` adds gradients that depend on the step and the weights.
    pub(crate) fn parts_are_the_whole(
        make: &(dyn Fn() -> Box<dyn Backend> + Sync),
        accumulate: &(dyn Fn(&mut dyn Backend, u64) + Sync),
    ) {
        let update = |engine: &mut dyn Backend, step: u64, table: Option<&Table>| {
            accumulate(engine, step);
            let (norm, own) = (engine.grad_norm().unwrap(), engine.partition());
            assert!(norm > 0.0);
            let scale = 1.0 / norm.max(1.0);
            match table {
                Some(table) => {
                    let mut exchange = |bucket: &mut [f32]| table.complete(own, bucket);
                    engine.update_partition(&OPTIMIZER, 1e-2, scale, &mut exchange).unwrap();
                }
                None => engine.update(&OPTIMIZER, 1e-2, scale).unwrap(),
            }
            assert_eq!(engine.grad_norm().unwrap(), 0.0, "every gradient is zero again");
            norm.to_bits()
        };
        let digests = |sets: (WeightSet, WeightSet, u64)| (sets.0.digest(), sets.1.digest(), sets.2);
        let mut lone = make();
        let norms: Vec<u64> = (0..2).map(|step| update(lone.as_mut(), step, None)).collect();
        let (weights, moments) = (lone.digest().unwrap(), lone.optimizer_export().unwrap());
        let last = update(lone.as_mut(), 2, None);
        let after = (lone.digest().unwrap(), digests(lone.optimizer_export().unwrap()));
        for of in 1..=4 {
            let table = Table { all: Barrier::new(of), laid: Mutex::new(vec![Vec::new(); of]) };
            let rank = |own: Partition| {
                let mut engine = make();
                engine.keep_partition(own).unwrap();
                let got: Vec<u64> = (0..2).map(|step| update(engine.as_mut(), step, Some(&table))).collect();
                assert_eq!((got, engine.digest().unwrap()), (norms.clone(), weights), "{own:?}");
                assert_eq!(of == 1, engine.optimizer_export().is_ok() && engine.update(&OPTIMIZER, 0.0, 1.0).is_ok());
                if of == 1 {
                    return;
                }
                let gathered = engine.optimizer_gather(&mut |bucket| table.complete(own, bucket)).unwrap();
                assert_eq!(digests(gathered.clone()), digests(moments.clone()), "{own:?}");
                assert_eq!(engine.grad_norm().unwrap(), 0.0);
                // Cut from the whole, and handed on: the same part.
                let mut cut = make();
                cut.optimizer_import(&gathered.0, &gathered.1, gathered.2).unwrap();
                cut.keep_partition(own).unwrap();
                let values = |engine: &mut dyn Backend| {
                    let mut values = Vec::new();
                    engine
                        .each_moment(own, &mut |bucket| {
                            values.push(bucket.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
                            ControlFlow::Continue(())
                        })
                        .unwrap();
                    values
                };
                let kept = values(engine.as_mut());
                assert_eq!(values(cut.as_mut()), kept);
                let mut heir = make();
                heir.import(&engine.export().unwrap()).unwrap();
                let mut rest = kept.iter();
                heir.take_partition(own, 2, &mut |bucket| {
                    bucket.iter_mut().zip(rest.next().unwrap()).for_each(|(value, bits)| *value = f32::from_bits(*bits));
                    ControlFlow::Continue(())
                })
                .unwrap();
                assert_eq!((rest.next(), heir.partition(), heir.updates()), (None, own, 2));
                assert_eq!(update(heir.as_mut(), 2, Some(&table)), last);
                let gathered = heir.optimizer_gather(&mut |bucket| table.complete(own, bucket)).unwrap();
                assert_eq!((heir.digest().unwrap(), digests(gathered.clone())), after, "{own:?}");
                // What is imported is whole.
                heir.optimizer_import(&gathered.0, &gathered.1, gathered.2).unwrap();
                assert_eq!((heir.partition(), digests(heir.optimizer_export().unwrap())), (Partition::WHOLE, after.1));
            };
            std::thread::scope(|scope| {
                let ranks: Vec<_> = Partition::all(of)
                    .map(|own| {
                        scope.spawn({
                            let rank = &rank;
                            move || rank(own)
                        })
                    })
                    .collect();
                ranks.into_iter().for_each(|rank| rank.join().unwrap());
            });
        }
    }
}
