//! The network on packed rows, in operations that candle differentiates.
use super::form::{Operations, Pass};
use candle_core::{D, Result, Tensor};
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
    /// Takes rows `[N, kv_heads * head_dim]`, keys not yet turned; gives the sources that the pass's tables point into.
    fn put(
        &mut self,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
        turned: bool,
        on: &dyn Operations,
    ) -> Result<(Tensor, Tensor)>;
}

/// Keys and values of this pass only: training.
pub(super) struct Fresh;

impl KeyValue for Fresh {
    fn put(&mut self, _: usize, keys: &Tensor, values: &Tensor, turned: bool, on: &dyn Operations) -> Result<(Tensor, Tensor)> {
        Ok((if turned { on.rotate(keys)? } else { keys.clone() }, values.clone()))
    }
}

/// A network with what it needs to run.
pub(super) struct Decoder<'a> {
    pub(super) spec: &'a DecoderSpec,
    pub(super) weights: Network,
    pub(super) operations: Box<dyn Operations + 'a>,
}

impl Decoder<'_> {
    /// The residual stream after the last block. `[N, H]`
    pub(super) fn hidden(&self, tokens: &[u32], pass: &Pass, kv: &mut impl KeyValue) -> Result<Tensor> {
        let on = &*self.operations;
        let device = self.weights.embedding.device();
        let tokens = Tensor::new(tokens, device)?;
        let mut x = self.weights.embedding.index_select(&tokens, 0)?; // [N] -> [N, H]
        if let Some(positions) = &self.weights.positions {
            x = (x + positions.index_select(&Tensor::new(pass.positions(), device)?, 0)?)?;
        }
        let turned = self.weights.positions.is_none();
        let mut delta = None; // what the block before adds to the stream
        for (layer, block) in self.weights.blocks.iter().enumerate() {
            let h;
            (x, h) = self.stream_norm(x, delta, &block.attention_norm)?;
            let query = self.norm_heads(block.query.of(&h)?, block.query_norm.as_ref())?; // [N, heads * d]
            let key = self.norm_heads(block.key.of(&h)?, block.key_norm.as_ref())?; // [N, kv_heads * d]
            let query = if turned { on.rotate(&query)? } else { query };
            let (keys, values) = kv.put(layer, &key, &block.value.of(&h)?, turned, on)?;
            let attended = on.attend(&query, &keys, &values)?; // [N, heads * d]
            let h;
            (x, h) = self.stream_norm(x, Some(block.output.of(&attended)?), &block.mlp_norm)?;
            let wide = match &block.gate {
                Some(gate) => on.swiglu(&gate.of(&h)?, &block.up.of(&h)?)?, // [N, I]
                None => gelu(&block.up.of(&h)?)?,
            };
            delta = Some(block.down.of(&wide)?);
        }
        match delta {
            Some(delta) => x + delta,
            None => Ok(x),
        }
    }

    /// The norm before the output projection.
    pub(super) fn final_norm(&self, x: Tensor) -> Result<Tensor> {
        Ok(self.stream_norm(x, None, &self.weights.norm)?.1)
    }

    /// The residual stream with what is added to it, and its norm, of its kind.
    fn stream_norm(&self, x: Tensor, delta: Option<Tensor>, norm: &Norm) -> Result<(Tensor, Tensor)> {
        let on = &*self.operations;
        let Some(bias) = &norm.bias else {
            return match delta {
                Some(delta) => on.add_norm(&x, &delta, &norm.weight),
                None => on.norm(&x, &norm.weight).map(|norm| (x, norm)),
            };
        };
        let x = match delta {
            Some(delta) => (x + delta)?,
            None => x,
        };
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let normed = on.norm(&centred, &norm.weight)?.broadcast_add(bias)?;
        Ok((x, normed))
    }

    /// The norm of each head, where there is one. `[N, heads * d]` -> the same
    fn norm_heads(&self, x: Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
        let Some(weight) = weight else { return Ok(x) };
        let (rows, width) = x.dims2()?;
        let heads = x.reshape((rows * (width / self.spec.head_dim), self.spec.head_dim))?; // [N * heads, d]
        self.operations.norm(&heads, weight)?.reshape((rows, width))
    }
}

/// GELU by its tanh form, as `x / (1 + e^(-2 u))`, `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
fn gelu(x: &Tensor) -> Result<Tensor> {
    let cubic = ((x.sqr()? * x)? * 0.044_715)?;
    let exponent = ((x + cubic)? * (-std::f64::consts::SQRT_2 * std::f64::consts::FRAC_2_SQRT_PI))?;
    x.div(&(exponent.exp()? + 1.0)?)
}
