//! Log-probs and entropies of targets from hidden rows, and the way back, a chunk of targets at a time.
use super::form::Form;
use crate::{Forward, PackedBatch, Upstream};
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

/// Targets whose logits are in memory together.
const CHUNK: usize = 256;

/// What is wanted of a batch, one entry per target.
pub(super) struct Targets {
    /// Packed row whose logits predict the target.
    pub(super) rows: Vec<u32>,
    tokens: Vec<u32>,
    temperatures: Vec<f32>,
}

impl Targets {
    pub(super) fn of(batch: &PackedBatch) -> Self {
        let mut out = Self { rows: Vec::new(), tokens: Vec::new(), temperatures: Vec::new() };
        let mut start = 0;
        for sequence in &batch.sequences {
            for target in &sequence.targets {
                out.rows.push(start + target - 1);
                out.tokens.push(sequence.tokens[*target as usize]);
                out.temperatures.push(sequence.temperature);
            }
            start += sequence.tokens.len() as u32;
        }
        out
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> {
        let len = self.len();
        (0..len).step_by(CHUNK).map(move |start| (start, CHUNK.min(len - start)))
    }

    /// Log-probs and entropies of one chunk. `[m, H] -> [m], [m]`
    fn score(&self, form: &dyn Form, rows: &Tensor, head: &Tensor, start: usize) -> Result<(Tensor, Tensor)> {
        let chunk = start..start + rows.dim(0)?;
        form.score(&rows.matmul(&head.t()?)?, &self.tokens[chunk.clone()], &self.temperatures[chunk]) // [m, V]
    }
}

/// Scores of all targets, without a graph. `rows` is `[M, H]`.
pub(super) fn forward(form: &dyn Form, rows: &Tensor, head: &Tensor, targets: &Targets) -> Result<Forward> {
    let mut out = Forward::default();
    for (start, len) in targets.chunks() {
        let (logp, entropy) = targets.score(form, &rows.narrow(0, start, len)?, head, start)?;
        out.logp.extend(logp.to_vec1::<f32>()?);
        out.entropy.extend(entropy.to_vec1::<f32>()?);
    }
    Ok(out)
}

/// Gradient of the loss by the rows `[M, H]`; the gradients by the output projection go to `take`, chunk by chunk.
pub(super) fn backward(
    form: &dyn Form,
    rows: &Tensor,
    head: &Tensor,
    targets: &Targets,
    upstream: Upstream<'_>,
    mut take: impl FnMut(&GradStore) -> Result<()>,
) -> Result<Tensor> {
    let mut parts = Vec::new();
    for (start, len) in targets.chunks() {
        let leaf = Var::from_tensor(&rows.narrow(0, start, len)?.contiguous()?)?;
        let (logp, entropy) = targets.score(form, leaf.as_tensor(), head, start)?;
        let d_logp = Tensor::new(&upstream.d_logp[start..start + len], rows.device())?;
        let mut loss = (logp * d_logp)?.sum_all()?;
        if let Some(d_entropy) = upstream.d_entropy {
            let d_entropy = Tensor::new(&d_entropy[start..start + len], rows.device())?;
            loss = (loss + (entropy * d_entropy)?.sum_all()?)?;
        }
        let grads = loss.backward()?;
        take(&grads)?;
        let Some(part) = grads.get(leaf.as_tensor()) else { candle_core::bail!("no gradient of the hidden rows") };
        // The gradient is a product with the output projection: attached, it would pass that way a second time.
        parts.push(part.detach());
    }
    Tensor::cat(&parts, 0)
}
