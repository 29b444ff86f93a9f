//! What an architecture's numbers may be, checked before they size anything.
use crate::family::Positions;
use crate::{DecoderSpec, ModelError};

/// More blocks than any model has.
const MAX_LAYERS: usize = 1024;
/// Wider than any model is, in any direction but the vocabulary's.
const MAX_WIDTH: usize = 1 << 20;
/// More tokens than any vocabulary has.
const MAX_VOCAB: usize = 1 << 24;
/// Longer than any context.
const MAX_CONTEXT: usize = 1 << 26;

/// The spec itself when every number is usable and the products cannot overflow.
pub(crate) fn checked(spec: DecoderSpec, place: &str) -> Result<DecoderSpec, ModelError> {
    let bad = |key: &str, value: String, problem: String| ModelError::Value {
        place: place.to_owned(),
        key: key.to_owned(),
        value,
        problem,
    };
    let sizes = [
        ("hidden_size", spec.hidden, MAX_WIDTH),
        ("num_hidden_layers", spec.layers, MAX_LAYERS),
        ("num_attention_heads", spec.heads, MAX_WIDTH),
        ("num_key_value_heads", spec.kv_heads, MAX_WIDTH),
        ("head_dim", spec.head_dim, MAX_WIDTH),
        ("intermediate_size", spec.intermediate, MAX_WIDTH),
        ("vocab_size", spec.vocab, MAX_VOCAB),
        ("max_position_embeddings", spec.max_context, MAX_CONTEXT),
    ];
    for (key, value, max) in sizes {
        if value == 0 || value > max {
            return Err(bad(key, value.to_string(), format!("must be 1 to {max}")));
        }
    }
    if !spec.heads.is_multiple_of(spec.kv_heads) {
        let problem = format!("must divide num_attention_heads = {}", spec.heads);
        return Err(bad("num_key_value_heads", spec.kv_heads.to_string(), problem));
    }
    if spec.family.traits().positions == Positions::Rotary && !spec.head_dim.is_multiple_of(2) {
        return Err(bad("head_dim", spec.head_dim.to_string(), "rotary embedding needs an even number".into()));
    }
    if spec.heads * spec.head_dim > MAX_WIDTH {
        let problem = format!("num_attention_heads * head_dim must be at most {MAX_WIDTH}");
        return Err(bad("head_dim", spec.head_dim.to_string(), problem));
    }
    if !(spec.norm_eps.is_finite() && spec.norm_eps >= 0.0) {
        return Err(bad("rms_norm_eps", spec.norm_eps.to_string(), "must be a small number >= 0".into()));
    }
    if !(spec.rope_theta.is_finite() && spec.rope_theta > 0.0) {
        return Err(bad("rope_theta", spec.rope_theta.to_string(), "must be a number > 0".into()));
    }
    Ok(spec)
}
