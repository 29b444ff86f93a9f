//! The parts of a block in operations that candle differentiates itself: the parity reference.
use super::form::{Form, Operations, Pass};
use super::groups::{Group, Groups};
use candle_core::{D, DType, Device, Result, Tensor};
use cohort_model::DecoderSpec;
use std::sync::Arc;

/// Tables and numbers of a model.
pub(super) struct Primitives {
    spec: DecoderSpec,
    /// Cosines and sines of every position. `[max_context, head_dim / 2]`
    cos: Tensor,
    sin: Tensor,
}

impl Primitives {
    /// Frequencies and angles are rounded to f32 where transformers rounds them.
    pub(super) fn new(spec: &DecoderSpec, device: &Device) -> Result<Self> {
        let half = spec.head_dim / 2;
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
        let frequency = |i: usize| spec.rope_theta.powf(-((2 * i) as f64) / spec.head_dim as f64) as f32;
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let angles = (0..spec.max_context).flat_map(|p| frequencies.iter().map(move |f| f64::from(p as f32 * f)));
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
        let table = |values| Tensor::from_vec(values, (spec.max_context, half), device);
        Ok(Self { spec: spec.clone(), cos: table(cos)?, sin: table(sin)? })
    }
}

impl Form for Primitives {
    fn name(&self) -> &'static str {
        "primitives"
    }

    fn pass<'a>(&'a self, pass: &Arc<Pass>) -> Result<Box<dyn Operations + 'a>> {
        let device = self.cos.device();
        let positions = Tensor::new(pass.positions(), device)?;
        let turns = |table: &Tensor| table.index_select(&positions, 0)?.unsqueeze(1); // [N] -> [N, 1, d/2]
        Ok(Box::new(Rows {
            spec: &self.spec,
            groups: Groups::of(pass, device)?,
            cos: turns(&self.cos)?,
            sin: turns(&self.sin)?,
            written: if pass.packed { None } else { Some(Tensor::new(pass.written(), device)?) },
        }))
    }

    fn score(&self, logits: &Tensor, tokens: &[u32], temperatures: &[f32]) -> Result<(Tensor, Tensor)> {
        let tokens = Tensor::new(tokens, logits.device())?.unsqueeze(1)?; // [m, 1]
        let temperatures = Tensor::new(temperatures, logits.device())?.unsqueeze(1)?;
        let logits = logits.broadcast_div(&temperatures)?; // [m, V]
        let max = logits.max_keepdim(D::Minus1)?.detach();
        let shifted = logits.broadcast_sub(&max)?;
        let exp = shifted.exp()?;
        let sum = exp.sum_keepdim(D::Minus1)?; // [m, 1]
        let log_sum = sum.log()?;
        let logp = (shifted.gather(&tokens, 1)? - &log_sum)?.squeeze(1)?;
        // H = log Z - sum(p * z)
        let mean = (exp * shifted)?.sum_keepdim(D::Minus1)?.div(&sum)?;
        let entropy = (log_sum - mean)?.squeeze(1)?;
        Ok((logp, entropy))
    }
}

/// The rows of one pass.
struct Rows<'a> {
    spec: &'a DecoderSpec,
    groups: Groups,
    /// `[N, 1, d/2]`
    cos: Tensor,
    sin: Tensor,
    /// Where a store takes this pass's keys and values. `[N]`
    written: Option<Tensor>,
}

impl Operations for Rows<'_> {
    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?; // [N, H] -> [N, 1]
        let scale = (mean + f64::from(self.spec.norm_eps))?.sqrt()?.recip()?;
        x.broadcast_mul(&scale)?.broadcast_mul(weight)
    }

    fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let half = self.spec.head_dim / 2;
        let x = x.reshape((rows, width / self.spec.head_dim, self.spec.head_dim))?; // [N, heads, d]
        let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
        let first = (a.broadcast_mul(&self.cos)? - b.broadcast_mul(&self.sin)?)?;
        let second = (b.broadcast_mul(&self.cos)? + a.broadcast_mul(&self.sin)?)?;
        Tensor::cat(&[first, second], 2)?.reshape((rows, width))
    }

    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        gate.silu()? * up
    }

    fn append(&self, store: &Tensor, key: &Tensor, value: &Tensor, turned: bool) -> Result<()> {
        let Some(written) = &self.written else { candle_core::bail!("a packed pass has no store") };
        let (_, stored, width) = store.dims3()?;
        let flat = store.reshape((2 * stored, width))?; // [2, stored, width] -> [2 * stored, width], the same memory
        let rows = written.unsqueeze(1)?.broadcast_as((written.dim(0)?, width))?.contiguous()?; // [N] -> [N, width]
        let key = if turned { self.rotate(key)? } else { key.contiguous()? };
        flat.scatter_set(&rows, &key, 0)?;
        let behind = Tensor::new(u32::try_from(stored).unwrap_or(u32::MAX), store.device())?;
        flat.scatter_set(&rows.broadcast_add(&behind)?, &value.contiguous()?, 0)
    }

    fn attend(&self, query: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        let groups = &self.groups;
        let parts =
            groups.groups.iter().map(|group| self.attend_group(query, keys, values, group)).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 0)?.index_select(&groups.back, 0)
    }
}

impl Rows<'_> {
    /// One group's attention; its rows come out padded. `[B * T, heads * d]`
    fn attend_group(&self, query: &Tensor, keys: &Tensor, values: &Tensor, group: &Group) -> Result<Tensor> {
        let Group { batch, queries, keys: seen, query_rows, key_rows, mask } = group;
        let (heads, kv_heads, dim) = (self.spec.heads, self.spec.kv_heads, self.spec.head_dim);
        let split = |source: &Tensor, rows: &Tensor, len: usize, heads: usize| {
            // [R, heads * d] -> [B * len, heads * d] -> [B, heads, len, d]
            source.index_select(rows, 0)?.reshape((*batch, len, heads, dim))?.transpose(1, 2)?.contiguous()
        };
        // Query heads of one key/value head lie side by side: no keys are repeated.
        let q = split(query, query_rows, *queries, heads)?.reshape((*batch, kv_heads, heads / kv_heads * queries, dim))?;
        let k = split(keys, key_rows, *seen, kv_heads)?;
        let v = split(values, key_rows, *seen, kv_heads)?;
        let scores = (q.matmul(&k.transpose(2, 3)?)? * (1.0 / (dim as f64).sqrt()))?;
        let scores = scores.reshape((*batch, heads, *queries, *seen))?.broadcast_add(mask)?; // [B, heads, T, L]
        let weights = softmax(&scores)?.reshape((*batch, kv_heads, heads / kv_heads * queries, *seen))?;
        let out = weights.matmul(&v)?.reshape((*batch, heads, *queries, dim))?; // [B, heads, T, d]
        out.transpose(1, 2)?.reshape((batch * queries, heads * dim))
    }
}

/// Softmax over the last dimension. The maximum is a constant to the gradient: it cancels.
fn softmax(x: &Tensor) -> Result<Tensor> {
    debug_assert_eq!(x.dtype(), DType::F32);
    let exp = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}
