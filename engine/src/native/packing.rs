//! Sequences of a training batch as rows of one pass: what they share once, and nothing behind the last target.
use super::block::Batch;
use crate::PackedSequence;
use cohort_kernels::head::Target;

/// Rows of a pass and what is asked of them.
pub(super) struct Packed {
    pub(super) batch: Batch,
    /// Which tokens of which sequence the rows are, in order.
    pub(super) parts: Vec<Part>,
    /// Row of the hidden state that predicts each target.
    pub(super) rows: Vec<usize>,
    pub(super) targets: Vec<Target>,
}

/// Rows of one sequence: its tokens `start..end`.
pub(super) struct Part {
    pub(super) sequence: usize,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Packed {
    /// `keys` are those of each sequence's draws, or none.
    pub(super) fn new(sequences: &[PackedSequence], keys: &[u64]) -> Self {
        let (mut batch, mut keys) = (Batch::new(), keys.iter());
        let (mut parts, mut rows, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        // Of a family that the caller cut, the first one left is computed whole, and later ones share what it shared.
        let (mut family, mut common) = (0, 0);
        for (index, sequence) in sequences.iter().enumerate() {
            let first = batch.rows();
            let start = if sequence.shared as usize <= common { sequence.shared as usize } else { 0 };
            // The last target itself is nobody's context.
            let mut end = sequence.targets.last().map_or(0, |last| *last as usize);
            if start == 0 {
                family = first;
                common = if sequence.shared == 0 { sequence.tokens.len() } else { sequence.shared as usize };
                end = end.max(shared_of(&sequences[index + 1..], common)).max(1);
            }
            for target in &sequence.targets {
                let from = *target as usize - 1;
                rows.push(if from < start { family + from } else { first + from - start });
                targets.push(Target { token: sequence.tokens[*target as usize], temperature: sequence.temperature });
            }
            if end > start {
                batch.push(&sequence.tokens[start..end], start, (start > 0).then_some(family));
                parts.push(Part { sequence: index, start, end });
            }
            if let Some(key) = keys.next() {
                batch.key(*key);
            }
        }
        Self { batch, parts, rows, targets }
    }
}

/// Tokens that the later members of a family want of its first one, which offers `common`.
fn shared_of(later: &[PackedSequence], common: usize) -> usize {
    let members = later.iter().map(|member| member.shared as usize).take_while(|shared| *shared > 0);
    members.filter(|shared| *shared <= common).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(tokens: &[u32], targets: &[u32], shared: u32) -> PackedSequence {
        PackedSequence { tokens: tokens.to_vec(), targets: targets.to_vec(), temperature: 1.0, shared }
    }

    #[test]
    fn what_no_target_depends_on_has_no_row() {
        let packed = Packed::new(
            &[
                sequence(&[1, 2, 3, 4, 5, 6], &[2, 3], 0),
                sequence(&[1, 2, 3, 4, 7], &[4], 4),
                sequence(&[1, 2, 8, 9], &[2, 3], 2),
                sequence(&[5, 6, 7], &[1], 0),
            ],
            &[],
        );
        assert_eq!(packed.batch.tokens, [1, 2, 3, 4, 8, 5], "the second has no row of its own");
        assert_eq!(packed.rows, [1, 2, 3, 1, 4, 5]);
        assert_eq!(packed.targets.iter().map(|target| target.token).collect::<Vec<_>>(), [3, 4, 7, 8, 9, 6]);
    }

    #[test]
    fn a_pass_has_a_row_even_where_nothing_is_asked() {
        assert_eq!(Packed::new(&[sequence(&[3, 4], &[], 0)], &[]).batch.rows(), 1);
    }

    #[test]
    fn of_a_family_that_was_cut_the_first_is_whole() {
        let packed = Packed::new(&[sequence(&[1, 2, 3, 4], &[2, 3], 2), sequence(&[1, 2, 5, 6], &[2, 3], 2)], &[]);
        assert_eq!((packed.batch.tokens, packed.rows), (vec![1, 2, 3, 5], vec![1, 2, 1, 3]));
    }
}
