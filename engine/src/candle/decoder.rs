//! The network on packed rows, in operations that candle differentiates.
use super::groups::{Group, Groups};
use candle_core::{D, DType, Device, Result, Tensor};
use cohort_model::DecoderSpec;

/// The tensors of the network, tracked for gradients or not.
pub(super) struct Network {
    pub(super) embedding: Tensor,
    /// Learned positions, where the family has them. `[max_context, H]`
    pub(super) positions: Option<Tensor>,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Norm,
    /// The output projection: the embedding where they are tied. `[V, H]`
    pub(super) head: Tensor,
}

/// The tensors of one block.
pub(super) struct Block {
    pub(super) attention_norm: Norm,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    /// Norms of queries and keys, head by head, where the family has them.
    pub(super) query_norm: Option<Tensor>,
    pub(super) key_norm: Option<Tensor>,
    pub(super) output: Linear,
    pub(super) mlp_norm: Norm,
    /// SwiGLU's gate; without one the MLP is a GELU's.
    pub(super) gate: Option<Linear>,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// A norm of the residual stream.
pub(super) struct Norm {
    /// `[H]`
    pub(super) weight: Tensor,
    /// A layer norm's; without one it is a root-mean-square norm.
    pub(super) bias: Option<Tensor>,
}

/// A projection.
pub(super) struct Linear {
    /// `[out, in]`
    pub(super) weight: Tensor,
    /// `[out]`, where the family has one.
    pub(super) bias: Option<Tensor>,
}

impl Linear {
    /// `x W^T + b`. `[N, in] -> [N, out]`
    fn of(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// Where a pass's keys and values go, and where attention reads them.
pub(super) trait KeyValue {
    /// Takes rows `[N, kv_heads * head_dim]`, gives the sources that [`Group::key_rows`] points into.
    fn put(&mut self, layer: usize, keys: Tensor, values: Tensor) -> Result<(Tensor, Tensor)>;
}

/// Keys and values of this pass only: training.
pub(super) struct Fresh;

impl KeyValue for Fresh {
    fn put(&mut self, _: usize, keys: Tensor, values: Tensor) -> Result<(Tensor, Tensor)> {
        Ok((keys, values))
    }
}

/// Cosines and sines of every position. `[max_context, head_dim / 2]`
pub(super) struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// Frequencies and angles are rounded to f32 where transformers rounds them.
    pub(super) fn new(spec: &DecoderSpec, device: &Device) -> Result<Self> {
        let half = spec.head_dim / 2;
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
        let frequency = |i: usize| spec.rope_theta.powf(-((2 * i) as f64) / spec.head_dim as f64) as f32;
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let angles = (0..spec.max_context).flat_map(|p| frequencies.iter().map(move |f| f64::from(p as f32 * f)));
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
        let shape = (spec.max_context, half);
        Ok(Self { cos: Tensor::from_vec(cos, shape, device)?, sin: Tensor::from_vec(sin, shape, device)? })
    }
}

/// A network with what it needs to run.
pub(super) struct Decoder<'a> {
    pub(super) spec: &'a DecoderSpec,
    pub(super) rope: &'a Rope,
    pub(super) weights: Network,
}

impl Decoder<'_> {
    /// The residual stream after the last block. `[N, H]`
    pub(super) fn hidden(&self, tokens: &[u32], groups: &Groups, kv: &mut impl KeyValue) -> Result<Tensor> {
        let tokens = Tensor::new(tokens, self.weights.embedding.device())?;
        let mut x = self.weights.embedding.index_select(&tokens, 0)?; // [N] -> [N, H]
        if let Some(positions) = &self.weights.positions {
            x = (x + positions.index_select(&groups.positions, 0)?)?;
        }
        let cos = self.rope.cos.index_select(&groups.positions, 0)?.unsqueeze(1)?; // [N] -> [N, 1, d/2]
        let sin = self.rope.sin.index_select(&groups.positions, 0)?.unsqueeze(1)?;
        for (layer, block) in self.weights.blocks.iter().enumerate() {
            let h = self.stream_norm(&x, &block.attention_norm)?;
            let query = self.norm_heads(block.query.of(&h)?, block.query_norm.as_ref())?; // [N, heads * d]
            let key = self.norm_heads(block.key.of(&h)?, block.key_norm.as_ref())?; // [N, kv_heads * d]
            let (query, key) = match self.weights.positions {
                None => (self.rotate(&query, &cos, &sin)?, self.rotate(&key, &cos, &sin)?),
                Some(_) => (query, key),
            };
            let (keys, values) = kv.put(layer, key, block.value.of(&h)?)?;
            let attended = self.attend(&query, &keys, &values, groups)?; // [N, heads * d]
            x = (x + block.output.of(&attended)?)?;
            let h = self.stream_norm(&x, &block.mlp_norm)?;
            let wide = match &block.gate {
                Some(gate) => (gate.of(&h)?.silu()? * block.up.of(&h)?)?, // [N, I]
                None => gelu(&block.up.of(&h)?)?,
            };
            x = (x + block.down.of(&wide)?)?;
        }
        Ok(x)
    }

    /// The norm before the output projection.
    pub(super) fn final_norm(&self, x: &Tensor) -> Result<Tensor> {
        self.stream_norm(x, &self.weights.norm)
    }

    /// A norm of the residual stream, of its kind.
    fn stream_norm(&self, x: &Tensor, norm: &Norm) -> Result<Tensor> {
        let Some(bias) = &norm.bias else { return self.norm(x, &norm.weight) };
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        self.norm(&centred, &norm.weight)?.broadcast_add(bias)
    }

    /// `x / sqrt(mean(x^2) + eps) * weight` by row.
    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?; // [N, H] -> [N, 1]
        let scale = (mean + f64::from(self.spec.norm_eps))?.sqrt()?.recip()?;
        x.broadcast_mul(&scale)?.broadcast_mul(weight)
    }

    /// The norm of each head, where there is one. `[N, heads * d]` -> the same
    fn norm_heads(&self, x: Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
        let Some(weight) = weight else { return Ok(x) };
        let (rows, width) = x.dims2()?;
        let heads = x.reshape((rows * (width / self.spec.head_dim), self.spec.head_dim))?; // [N * heads, d]
        self.norm(&heads, weight)?.reshape((rows, width))
    }

    /// Rotary embedding: the halves of every head are turned against each other.
    fn rotate(&self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let half = self.spec.head_dim / 2;
        let x = x.reshape((rows, width / self.spec.head_dim, self.spec.head_dim))?; // [N, heads, d]
        let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
        let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
        let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
        Tensor::cat(&[first, second], 2)?.reshape((rows, width))
    }

    /// Causal attention of packed queries. `[N, heads * d]` -> the same
    fn attend(&self, query: &Tensor, keys: &Tensor, values: &Tensor, groups: &Groups) -> Result<Tensor> {
        let parts =
            groups.groups.iter().map(|group| self.attend_group(query, keys, values, group)).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 0)?.index_select(&groups.back, 0)
    }

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

/// GELU by its tanh form, as `x / (1 + e^(-2 u))`, `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
fn gelu(x: &Tensor) -> Result<Tensor> {
    let cubic = ((x.sqr()? * x)? * 0.044_715)?;
    let exponent = ((x + cubic)? * (-std::f64::consts::SQRT_2 * std::f64::consts::FRAC_2_SQRT_PI))?;
    x.div(&(exponent.exp()? + 1.0)?)
}

/// Softmax over the last dimension. The maximum is a constant to the gradient: it cancels.
fn softmax(x: &Tensor) -> Result<Tensor> {
    debug_assert_eq!(x.dtype(), DType::F32);
    let exp = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}
