//! What a decoder looks like: its family and the numbers that name every tensor's shape.
use crate::family::{Biases, Family, Mlp, Norm, Positions, Traits};
use serde::{Deserialize, Serialize};

/// A decoder: its [`Family`] says what a block is made of, the numbers how large each part is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecoderSpec {
    /// Whose network it is.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; `heads * head_dim` need not be `hidden`.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Longest context; with learned positions, how many there are.
    pub max_context: usize,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// RoPE base; nothing where positions are learned.
    pub rope_theta: f64,
    /// The output projection is the embedding.
    pub tied_embeddings: bool,
}

/// One tensor of the canonical layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Canonical name.
    pub name: String,
    /// `[out, in]` of a matrix, `[n]` of a vector.
    pub shape: Vec<usize>,
}

impl DecoderSpec {
    /// Every tensor of the model in forward order: `model.embed_tokens.weight`, learned positions
    /// (`model.embed_positions.weight`), each block's, `model.norm` and, if untied, `lm_head.weight`. Projections are
    /// `[out, in]` with Llama's names in every family.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut out = vec![TensorSpec::new("model.embed_tokens.weight", &[self.vocab, self.hidden])];
        if self.family.traits().positions == Positions::Learned {
            out.push(TensorSpec::new("model.embed_positions.weight", &[self.max_context, self.hidden]));
        }
        let block = self.block();
        for layer in 0..self.layers {
            out.extend(block.iter().map(|t| TensorSpec::new(&format!("model.layers.{layer}.{}", t.name), &t.shape)));
        }
        out.extend(self.norm("model.norm"));
        if !self.tied_embeddings {
            out.push(TensorSpec::new("lm_head.weight", &[self.vocab, self.hidden]));
        }
        out
    }

    /// The tensors of one block, without the block's part of the name.
    fn block(&self) -> Vec<TensorSpec> {
        let (h, i, d) = (self.hidden, self.intermediate, self.head_dim);
        let (q, kv) = (self.heads * d, self.kv_heads * d);
        let Traits { biases, head_norms, mlp, .. } = self.family.traits();
        let mut out = self.norm("input_layernorm");
        let project = |out: &mut Vec<TensorSpec>, name: &str, width: usize, inner: usize, bias: bool| {
            out.push(TensorSpec::new(&format!("{name}.weight"), &[width, inner]));
            if bias {
                out.push(TensorSpec::new(&format!("{name}.bias"), &[width]));
            }
        };
        for (name, width) in [("q", q), ("k", kv), ("v", kv)] {
            project(&mut out, &format!("self_attn.{name}_proj"), width, h, biases != Biases::None);
        }
        if head_norms {
            out.extend(["self_attn.q_norm.weight", "self_attn.k_norm.weight"].map(|name| TensorSpec::new(name, &[d])));
        }
        project(&mut out, "self_attn.o_proj", h, q, biases == Biases::All);
        out.extend(self.norm("post_attention_layernorm"));
        if mlp == Mlp::SwiGlu {
            project(&mut out, "mlp.gate_proj", i, h, false);
        }
        project(&mut out, "mlp.up_proj", i, h, biases == Biases::All);
        project(&mut out, "mlp.down_proj", h, i, biases == Biases::All);
        out
    }

    /// The tensors of one norm of the residual stream.
    fn norm(&self, name: &str) -> Vec<TensorSpec> {
        let weight = TensorSpec::new(&format!("{name}.weight"), &[self.hidden]);
        match self.family.traits().norm {
            Norm::Rms => vec![weight],
            Norm::Layer => vec![weight, TensorSpec::new(&format!("{name}.bias"), &[self.hidden])],
        }
    }

    /// Number of parameters.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum()
    }
}

impl TensorSpec {
    fn new(name: &str, shape: &[usize]) -> Self {
        Self { name: name.to_owned(), shape: shape.to_vec() }
    }
}
