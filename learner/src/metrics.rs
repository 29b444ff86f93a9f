//! Metrics of a step, gathered over micro-batches and inner epochs in a fixed order.
//!
//! Invariant **K1**: names keep the order in which they were first seen and values are added in call order, so equal
//! inputs give equal bits.

use crate::collective::{Collective, CollectiveError};
use cohort_protocol::codec;

/// How values of one name come together.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Entry {
    Sum(f64),
    Mean { sum: f64, weight: f64 },
    Min(f64),
    Max(f64),
}

/// Named values on their way to a commit. The first use of a name decides how its values come together; use it the same
/// way afterwards.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tally(Vec<(String, Entry)>);

impl Tally {
    /// Adds to a total.
    pub fn sum(&mut self, name: &str, value: f64) {
        self.add(name, Entry::Sum(value));
    }

    /// Adds `total` over `weight` things to a mean; a mean over nothing is left out.
    pub fn mean(&mut self, name: &str, total: f64, weight: f64) {
        self.add(name, Entry::Mean { sum: total, weight });
    }

    /// Keeps the least.
    pub fn min(&mut self, name: &str, value: f64) {
        self.add(name, Entry::Min(value));
    }

    /// Keeps the greatest.
    pub fn max(&mut self, name: &str, value: f64) {
        self.add(name, Entry::Max(value));
    }

    /// Takes over all entries of another tally.
    pub fn merge(&mut self, other: &Self) {
        for (name, entry) in &other.0 {
            self.add(name, *entry);
        }
    }

    /// Totals of a finished inner epoch become values of a mean over inner epochs.
    #[must_use]
    pub fn averaged(mut self) -> Self {
        for (_, entry) in &mut self.0 {
            if let Entry::Sum(sum) = *entry {
                *entry = Entry::Mean { sum, weight: 1.0 };
            }
        }
        self
    }

    /// The values by name.
    #[must_use]
    pub fn finish(self) -> Vec<(String, f64)> {
        let value = |entry| match entry {
            Entry::Mean { weight: 0.0, .. } => None,
            Entry::Mean { sum, weight } => Some(sum / weight),
            Entry::Sum(v) | Entry::Min(v) | Entry::Max(v) => Some(v),
        };
        self.0.into_iter().filter_map(|(name, entry)| Some((name, value(entry)?))).collect()
    }

    fn add(&mut self, name: &str, new: Entry) {
        let Some((_, old)) = self.0.iter_mut().find(|(n, _)| n == name) else {
            self.0.push((name.to_owned(), new));
            return;
        };
        *old = match (*old, new) {
            (Entry::Sum(a), Entry::Sum(b)) => Entry::Sum(a + b),
            (Entry::Mean { sum: a, weight: v }, Entry::Mean { sum: b, weight: w }) => Entry::Mean { sum: a + b, weight: v + w },
            (Entry::Min(a), Entry::Min(b)) => Entry::Min(a.min(b)),
            (Entry::Max(a), Entry::Max(b)) => Entry::Max(a.max(b)),
            (kept, _) => {
                debug_assert!(false, "metric {name} is used in two ways");
                kept
            }
        };
    }
}

/// A tally's bytes on their way to rank 0: name, kind, the kind's values.
type Packed = Vec<(String, u8, f64, f64)>;

impl Tally {
    fn pack(&self) -> Packed {
        let pack = |entry| match entry {
            Entry::Sum(value) => (0, value, 0.0),
            Entry::Mean { sum, weight } => (1, sum, weight),
            Entry::Min(value) => (2, value, 0.0),
            Entry::Max(value) => (3, value, 0.0),
        };
        let named = |(name, entry): &(String, Entry)| {
            let (kind, a, b) = pack(*entry);
            (name.clone(), kind, a, b)
        };
        self.0.iter().map(named).collect()
    }

    fn unpack(packed: Packed) -> Result<Self, String> {
        let entry = |(name, kind, a, b)| match kind {
            0 => Ok((name, Entry::Sum(a))),
            1 => Ok((name, Entry::Mean { sum: a, weight: b })),
            2 => Ok((name, Entry::Min(a))),
            3 => Ok((name, Entry::Max(a))),
            kind => Err(format!("metric {name} of kind {kind}")),
        };
        Ok(Self(packed.into_iter().map(entry).collect::<Result<_, _>>()?))
    }
}

/// The tallies of every rank's shards, merged at rank 0 in the order of the shards; the others keep their own.
pub(crate) fn gather(own: Vec<Tally>, ranks: &mut dyn Collective) -> Result<Tally, CollectiveError> {
    let merged = |tallies: Vec<Tally>| {
        let mut merged = Tally::default();
        tallies.iter().for_each(|tally| merged.merge(tally));
        merged
    };
    if ranks.world() == 1 {
        return Ok(merged(own));
    }
    let contradiction = |rank: usize, why: String| CollectiveError::OutOfStep {
        rank: format!("rank {rank}"),
        during: "the gathering of metrics",
        why,
    };
    let packed: Vec<Packed> = own.iter().map(Tally::pack).collect();
    let bytes = codec::encode(&packed).map_err(|e| contradiction(ranks.rank(), e.to_string()))?;
    let mut all = Vec::new();
    for (rank, bytes) in ranks.gather(bytes)?.iter().enumerate() {
        let packed = codec::decode::<Vec<Packed>>(bytes).map_err(|e| contradiction(rank, e.to_string()))?;
        for packed in packed {
            all.push(Tally::unpack(packed).map_err(|why| contradiction(rank, why))?);
        }
    }
    Ok(merged(if ranks.rank() == 0 { all } else { own }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_together_by_kind() {
        let mut a = Tally::default();
        a.sum("loss", 1.0);
        a.mean("kl", 3.0, 2.0);
        a.min("low", 0.5);
        a.max("high", 0.5);
        a.mean("nothing", 0.0, 0.0);
        let mut b = a.clone();
        b.merge(&a);
        b.min("low", 0.25);
        b.max("high", 0.75);
        let got = b.finish();
        let want = [("loss", 2.0), ("kl", 1.5), ("low", 0.25), ("high", 0.75)];
        assert_eq!(got, want.map(|(n, v)| (n.to_owned(), v)));
    }

    #[test]
    fn comes_over_the_wire_as_it_was() {
        let mut tally = Tally::default();
        tally.sum("loss", f64::MIN_POSITIVE);
        tally.mean("kl", 3.0, 2.0);
        tally.min("low", -0.0);
        tally.max("high", f64::INFINITY);
        assert_eq!(Tally::unpack(tally.pack()).unwrap(), tally);
        assert!(Tally::unpack(vec![("new".into(), 9, 0.0, 0.0)]).unwrap_err().contains("kind 9"));
    }
}
