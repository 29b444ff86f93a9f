//! Names and shapes in Hugging Face files: the canonical ones, but for GPT-2's.
use crate::family::Family;
use crate::spec::TensorSpec;
use crate::stored::Stored;
use crate::weights::ShapeError;
use crate::{DecoderSpec, WeightSet};
use std::borrow::Cow;

/// What goes before GPT-2's names in files of its causal model; those of its bare model lack it.
const PREFIX: &str = "transformer.";

/// Every tensor of a file. `bare`: GPT-2's without their prefix.
pub(super) fn tensors(spec: &DecoderSpec, bare: bool) -> Vec<Stored> {
    let canonical = spec.tensors();
    if spec.family != Family::Gpt2 {
        return canonical.into_iter().map(|t| Stored::new(t.name.clone(), vec![t], false)).collect();
    }
    let prefix = if bare { "" } else { PREFIX };
    fused(&canonical).into_iter().map(|parts| gpt2(prefix, parts)).collect()
}

/// Canonical tensors with queries, keys and values of a block together.
pub(crate) fn fused(canonical: &[TensorSpec]) -> Vec<Vec<TensorSpec>> {
    let named = |name: &str| canonical.iter().find(|t| t.name == name).cloned();
    let group = |t: &TensorSpec| {
        if t.name.contains(".k_proj.") || t.name.contains(".v_proj.") {
            return None;
        }
        if !t.name.contains(".q_proj.") {
            return Some(vec![t.clone()]);
        }
        Some(["q", "k", "v"].iter().filter_map(|part| named(&t.name.replace(".q_proj.", &format!(".{part}_proj.")))).collect())
    };
    canonical.iter().filter_map(group).collect()
}

/// GPT-2's name of some canonical tensors. Its projections are `Conv1D`: `[in, out]`.
fn gpt2(prefix: &str, parts: Vec<TensorSpec>) -> Stored {
    let name = parts.first().map(|part| part.name.clone()).unwrap_or_default();
    let (stem, kind) = name.rsplit_once('.').unwrap_or((&name, ""));
    let block = stem.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let place = match (stem, block) {
        ("model.embed_tokens", _) => "wte".to_owned(),
        ("model.embed_positions", _) => "wpe".to_owned(),
        ("model.norm", _) => "ln_f".to_owned(),
        (_, Some((layer, part))) => {
            let part = match part {
                "input_layernorm" => "ln_1",
                "self_attn.q_proj" => "attn.c_attn",
                "self_attn.o_proj" => "attn.c_proj",
                "post_attention_layernorm" => "ln_2",
                "mlp.up_proj" => "mlp.c_fc",
                "mlp.down_proj" => "mlp.c_proj",
                other => other,
            };
            format!("h.{layer}.{part}")
        }
        // The output projection stands beside the transformer.
        (other, None) => return Stored::new(format!("{other}.{kind}"), parts, false),
    };
    Stored::new(format!("{prefix}{place}.{kind}"), parts, block.is_some())
}

/// A set as Hugging Face files hold it. `weights` must fit the architecture.
///
/// Errors: a tensor that is missing.
pub fn stored<'a>(spec: &DecoderSpec, weights: &'a WeightSet) -> Result<Cow<'a, WeightSet>, ShapeError> {
    if spec.family != Family::Gpt2 {
        return Ok(Cow::Borrowed(weights));
    }
    let joined = tensors(spec, false).into_iter().map(|t| Ok((t.name.clone(), t.join(weights)?)));
    Ok(Cow::Owned(WeightSet(joined.collect::<Result<_, _>>()?)))
}

/// The inverse of [`stored`].
///
/// Errors: a tensor that is missing, unexpected or of another shape.
pub fn canonical(spec: &DecoderSpec, mut stored: WeightSet) -> Result<WeightSet, ShapeError> {
    if spec.family != Family::Gpt2 {
        stored.check(spec)?;
        return Ok(stored);
    }
    let mut out = WeightSet::default();
    for want in tensors(spec, false) {
        let Some(tensor) = stored.0.remove(&want.name) else { return Err(ShapeError::Missing { name: want.name }) };
        if tensor.shape != want.shape || tensor.data.len() != want.shape.iter().product::<usize>() {
            return Err(ShapeError::Shape { name: want.name, got: tensor.shape, want: want.shape });
        }
        out.0.extend(want.split(tensor.data));
    }
    match stored.0.into_keys().next() {
        Some(name) => Err(ShapeError::Unexpected { name }),
        None => Ok(out),
    }
}
