//! A packed matrix as the products read it.
use super::{PANEL, packed_len};
use crate::Format;
use crate::int8::{self, GROUP, STEPS, WEIGHT_BLOCK};

/// A packed `[out, in]` matrix of any format, borrowed. The panels of f32 are described at [`super`]; those of bf16 hold
/// pairs along `in`: `(n, k)` and `(n, k + 1)` for an even `k` are the word at `(n / 48) * 48 * w + k / 2 * 48 + n % 48`, with
/// `w = in / 2` rounded up. Those of int8 hold, for each 32 values along `in`, four of them in each of 8 words a row of W, then
/// their scale in a ninth.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    format: Format,
    words: &'a [u32],
}

impl<'a> Matrix<'a> {
    /// f32 panels, see [`pack`](super::pack).
    #[must_use]
    pub fn f32(panels: &'a [f32]) -> Self {
        Self { format: Format::F32, words: bytemuck::cast_slice(panels) }
    }

    /// Panels of bf16 pairs, see [`halve`](super::halve).
    #[must_use]
    pub fn bf16(panels: &'a [u32]) -> Self {
        Self { format: Format::Bf16, words: panels }
    }

    /// Panels of int8 groups, see [`quantize`](super::quantize).
    #[must_use]
    pub fn int8(panels: &'a [u32]) -> Self {
        Self { format: Format::Int8, words: panels }
    }

    /// What the words hold.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// All panels.
    pub(crate) fn words(&self) -> &'a [u32] {
        self.words
    }

    /// One panel.
    pub(crate) fn panel(&self, index: usize, inner: usize) -> &'a [u32] {
        let len = PANEL * self.format.words(inner);
        &self.words[index * len..][..len]
    }

    /// Rows `first..first + count` (`first` a panel's) of a matrix with `inner` columns, themselves a packed matrix.
    pub(crate) fn rows(&self, first: usize, count: usize, inner: usize) -> Self {
        let start = first / PANEL * PANEL * self.format.words(inner);
        Self { words: &self.words[start..][..self.len_of(count, inner)], ..*self }
    }

    /// Whether it is an `[out, inner]` matrix.
    pub(crate) fn fits(&self, out: usize, inner: usize) -> bool {
        self.words.len() == self.len_of(out, inner)
    }

    fn len_of(&self, out: usize, inner: usize) -> usize {
        packed_len(out, self.format.words(inner))
    }

    /// Element `(row, column)`.
    #[inline(always)]
    pub(crate) fn at(&self, row: usize, column: usize, inner: usize) -> f32 {
        match self.format {
            Format::F32 => f32::from_bits(self.words[super::packed_index(row, column, inner)]),
            Format::Bf16 => {
                let word = self.words[super::packed_index(row, column / 2, inner.div_ceil(2))];
                crate::bf16::half(word, column % 2)
            }
            Format::Int8 => {
                let (group, place) = (column / GROUP * WEIGHT_BLOCK, column % GROUP);
                let word = |line| self.words[super::packed_index(row, group + line, self.format.words(inner))];
                int8::value(word(place / 4), place % 4, word(STEPS))
            }
        }
    }
}

impl<'a> From<&'a [f32]> for Matrix<'a> {
    fn from(panels: &'a [f32]) -> Self {
        Self::f32(panels)
    }
}
