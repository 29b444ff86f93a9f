//! What a decoder looks like: the numbers that name every tensor's shape.
use serde::{Deserialize, Serialize};

/// A Llama-family decoder: RMSNorm, RoPE (rotate-half), grouped-query attention, SwiGLU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecoderSpec {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Longest context.
    pub max_context: usize,
    /// RMSNorm epsilon.
    pub norm_eps: f32,
    /// RoPE base.
    pub rope_theta: f64,
    /// The output projection is the embedding.
    pub tied_embeddings: bool,
}

/// One tensor of the canonical layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Hugging Face name.
    pub name: String,
    /// `[out, in]` of a matrix, `[n]` of a vector.
    pub shape: Vec<usize>,
}

impl DecoderSpec {
    /// Every tensor of the model in forward order: `model.embed_tokens.weight`, then each block's
    /// `input_layernorm`, `self_attn.{q,k,v,o}_proj`, `post_attention_layernorm`, `mlp.{gate,up,down}_proj`,
    /// then `model.norm.weight` and, if untied, `lm_head.weight`.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let t = |name: String, shape: &[usize]| TensorSpec { name, shape: shape.to_vec() };
        let (h, q, kv, i) = (self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim, self.intermediate);
        let mut out = vec![t("model.embed_tokens.weight".into(), &[self.vocab, h])];
        for l in 0..self.layers {
            let n = |s: &str| format!("model.layers.{l}.{s}.weight");
            out.push(t(n("input_layernorm"), &[h]));
            out.push(t(n("self_attn.q_proj"), &[q, h]));
            out.push(t(n("self_attn.k_proj"), &[kv, h]));
            out.push(t(n("self_attn.v_proj"), &[kv, h]));
            out.push(t(n("self_attn.o_proj"), &[h, q]));
            out.push(t(n("post_attention_layernorm"), &[h]));
            out.push(t(n("mlp.gate_proj"), &[i, h]));
            out.push(t(n("mlp.up_proj"), &[i, h]));
            out.push(t(n("mlp.down_proj"), &[h, i]));
        }
        out.push(t("model.norm.weight".into(), &[h]));
        if !self.tied_embeddings {
            out.push(t("lm_head.weight".into(), &[self.vocab, h]));
        }
        out
    }

    /// Number of parameters.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum()
    }
}
