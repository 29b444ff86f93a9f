//! Blocks of rows, chunks of the vocabulary.
use crate::linear::{self, Matrix, Output, PANEL, Projection, RowPacked, packed_len};
use crate::logprob::{CHUNK, ChunkStats, RowStats, chunk, combine};
use crate::math::exp;
use crate::path::kernel;
use crate::{Buffer, Cpu, Path};

/// Rows whose logits of one chunk stand in memory together: 6 MiB.
const ROWS: usize = 1024;

/// The token asked for at one row of hidden states.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// Below the size of the vocabulary.
    pub token: u32,
    /// Logits are divided by it.
    pub temperature: f32,
}

/// Working memory, kept from call to call.
#[derive(Debug, Default)]
pub struct Head {
    logits: Buffer,
    packed: RowPacked,
}

/// Statistics and log-prob of each target. `hidden [rows, inner]`, `weight` packed `[vocab, inner]`.
///
/// # Panics
/// When a token is not below `vocab` or a length does not fit.
pub fn forward(
    cpu: &Cpu,
    head: &mut Head,
    (hidden, inner): (&[f32], usize),
    (weight, vocab): (Matrix<'_>, usize),
    targets: &[Target],
) -> Vec<(RowStats, f32)> {
    check(hidden.len(), inner, weight.fits(vocab, inner), vocab, targets);
    let mut results = Vec::with_capacity(targets.len());
    for (hidden, targets) in hidden.chunks(ROWS * inner).zip(targets.chunks(ROWS)) {
        let mut rows: Vec<_> = targets.iter().map(|target| (*target, 0.0, Vec::with_capacity(vocab.div_ceil(CHUNK)))).collect();
        for first in (0..vocab).step_by(CHUNK) {
            let width = CHUNK.min(vocab - first);
            let logits = chunk_logits(cpu, &mut head.logits, hidden, inner, weight, first, width);
            cpu.pool().each(&mut rows, |index, (target, logit, chunks)| {
                let row = &logits[index * width..][..width];
                chunks.push(chunk(cpu.path(), row, target.temperature));
                if let Some(value) = (target.token as usize).checked_sub(first).and_then(|at| row.get(at)) {
                    *logit = *value;
                }
            });
        }
        results.extend(rows.iter().map(|(target, logit, chunks): &(Target, f32, Vec<ChunkStats>)| {
            let stats = combine(chunks.iter().copied(), target.temperature);
            (stats, stats.logp(*logit))
        }));
    }
    results
}

fn check(hidden: usize, inner: usize, weight_fits: bool, vocab: usize, targets: &[Target]) {
    assert!(weight_fits && hidden == targets.len() * inner, "head {vocab} x {inner}");
    assert!(targets.iter().all(|t| (t.token as usize) < vocab), "token outside the vocabulary of {vocab}");
}

/// Logits of tokens `first..first + width`. `[rows, width]`
fn chunk_logits<'a>(
    cpu: &Cpu,
    buffer: &'a mut Buffer,
    hidden: &[f32],
    inner: usize,
    weight: Matrix<'_>,
    first: usize,
    width: usize,
) -> &'a mut [f32] {
    let rows = hidden.len() / inner;
    buffer.reserve(rows * CHUNK);
    let y = &mut buffer[..rows * width];
    let weight = weight.rows(first, width, inner);
    linear::forward(cpu, hidden, inner, Output::Set, &mut [Projection { weight, out: width, y: &mut *y }]);
    y
}

/// dL/dlogp and dL/dentropy of one target, with the statistics that [`forward`] gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Upstream {
    /// The same target.
    pub target: Target,
    /// Its row's statistics.
    pub stats: RowStats,
    /// dL/dlogp.
    pub d_logp: f32,
    /// dL/dentropy.
    pub d_entropy: f32,
}

/// Writes dL/dhidden and adds to the packed gradient of `weight`, which may be empty where it is not wanted.
///
/// # Panics
/// When a length does not fit.
pub fn backward(
    cpu: &Cpu,
    head: &mut Head,
    (hidden, inner): (&[f32], usize),
    (weight, vocab): (Matrix<'_>, usize),
    upstream: &[Upstream],
    d_hidden: &mut [f32],
    d_weight: &mut [f32],
) {
    assert_eq!((hidden.len(), d_hidden.len()), (upstream.len() * inner, upstream.len() * inner), "head of width {inner}");
    let wanted = !d_weight.is_empty();
    assert!(weight.fits(vocab, inner) && (!wanted || d_weight.len() == packed_len(vocab, inner)), "head {vocab} x {inner}");
    let blocks = hidden.chunks(ROWS * inner).zip(d_hidden.chunks_mut(ROWS * inner)).zip(upstream.chunks(ROWS));
    for ((hidden, d_hidden), upstream) in blocks {
        if wanted {
            head.packed.pack(cpu, weight.format(), hidden, inner);
        }
        let mut output = Output::Set;
        for first in (0..vocab).step_by(CHUNK) {
            let width = CHUNK.min(vocab - first);
            let dz = chunk_logits(cpu, &mut head.logits, hidden, inner, weight, first, width);
            cpu.pool().parts(dz, width, |row, dz| {
                gradient(cpu.path(), upstream[row], first, dz);
            });
            if wanted {
                let gradient = &mut d_weight[first / PANEL * PANEL * inner..][..packed_len(width, inner)];
                linear::backward_weight(cpu, &head.packed, dz, width, gradient);
            }
            linear::backward_input(cpu, dz, width, weight.rows(first, width, inner), inner, output, d_hidden);
            output = Output::Continue;
        }
    }
}

/// Replaces the logits of tokens `first ..` of a row by dL/dlogit.
pub fn gradient(path: Path, up: Upstream, first: usize, logits: &mut [f32]) {
    differentiate(path, up, logits);
    if let Some(value) = (up.target.token as usize).checked_sub(first).and_then(|at| logits.get_mut(at)) {
        *value += up.d_logp / up.target.temperature;
    }
}

kernel! {
    /// Logits to their gradients, but for the target's own term:
    /// `d logp_t / d z_v = [v = t] - p_v`, `d H / d z_v = -p_v (ln p_v + H)`, and `d z / d logit = 1 / T`.
    fn differentiate(up: Upstream, row: &mut [f32]) {
        let stats = up.stats;
        for value in row {
            let logp = (*value / stats.temperature - stats.max) - stats.log_sum;
            let p = exp(logp);
            let surprise = if p == 0.0 { 0.0 } else { logp + stats.entropy };
            *value = -(p * up.d_entropy.mul_add(surprise, up.d_logp)) / stats.temperature;
        }
    }
}
