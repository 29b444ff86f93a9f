//! GPT-2's config.json, whose settings have names of their own.
use super::config::Reader;
use crate::family::Family;
use crate::limits::checked;
use crate::{DecoderSpec, ModelError};
use serde_json::Value;

/// The architecture that a config.json describes.
pub(super) fn spec(read: &Reader<'_>) -> Result<DecoderSpec, ModelError> {
    refuse_variants(read)?;
    let (hidden, heads) = (read.needed("n_embd")?, read.needed("n_head")?);
    if heads == 0 || !hidden.is_multiple_of(heads) {
        return Err(read.bad("n_head", &Value::from(heads), &format!("must divide n_embd = {hidden}")));
    }
    #[expect(clippy::cast_possible_truncation, reason = "an epsilon; the model computes in f32")]
    let norm_eps = read.float("layer_norm_epsilon", 1e-5)? as f32;
    let spec = DecoderSpec {
        family: Family::Gpt2,
        hidden,
        layers: read.needed("n_layer")?,
        heads,
        kv_heads: heads,
        head_dim: hidden / heads,
        intermediate: read.number("n_inner")?.unwrap_or(4 * hidden),
        vocab: read.needed("vocab_size")?,
        max_context: read.needed("n_positions")?,
        norm_eps,
        rope_theta: 10_000.0,
        tied_embeddings: read.config.get("tie_word_embeddings") != Some(&Value::Bool(false)),
    };
    checked(spec, read.place)
}

/// Refuses settings that change the computation in ways that are not implemented.
fn refuse_variants(read: &Reader<'_>) -> Result<(), ModelError> {
    let tanh = |act: &&Value| matches!(act.as_str(), Some("gelu_new" | "gelu_pytorch_tanh"));
    if let Some(act) = read.get("activation_function").filter(|act| !tanh(act)) {
        return Err(read.bad("activation_function", act, "only gelu_new is implemented; take a model that uses it"));
    }
    for (key, only) in [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false), ("add_cross_attention", false)]
    {
        if let Some(value) = read.get(key).filter(|value| **value != Value::Bool(only)) {
            return Err(read.bad(key, value, &format!("only {only} is implemented; take a model trained so")));
        }
    }
    if let Some(quantization) = read.get("quantization_config") {
        return Err(read.bad("quantization_config", quantization, "take the model's unquantized or GGUF form"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::hf::spec_from_config;
    use serde_json::{Value, json};

    fn read(extra: Value) -> Result<crate::DecoderSpec, String> {
        let mut config =
            json!({"model_type": "gpt2", "n_embd": 12, "n_head": 3, "n_layer": 2, "vocab_size": 50, "n_positions": 32});
        let (Value::Object(all), Value::Object(extra)) = (&mut config, extra) else { unreachable!() };
        all.extend(extra);
        spec_from_config(all, "c").map_err(|e| e.to_string())
    }

    #[test]
    fn settings_have_their_own_names_and_defaults() {
        let spec = read(json!({"activation_function": "gelu_new"})).unwrap();
        assert_eq!((spec.hidden, spec.kv_heads, spec.head_dim, spec.intermediate, spec.max_context), (12, 3, 4, 48, 32));
        assert_eq!((spec.norm_eps, spec.tied_embeddings), (1e-5, true));
        let spec = read(json!({"n_inner": 20, "tie_word_embeddings": false})).unwrap();
        assert_eq!((spec.intermediate, spec.tied_embeddings), (20, false));
    }

    #[test]
    fn what_is_not_implemented_is_named() {
        for (extra, want) in [
            (json!({"activation_function": "relu"}), "activation_function = \"relu\""),
            (json!({"scale_attn_weights": false}), "scale_attn_weights = false"),
            (json!({"scale_attn_by_inverse_layer_idx": true}), "scale_attn_by_inverse_layer_idx = true"),
            (json!({"add_cross_attention": true}), "add_cross_attention = true"),
            (json!({"n_head": 5}), "n_head = 5: must divide n_embd = 12"),
            (json!({"n_positions": null}), "n_positions is missing"),
        ] {
            let error = read(extra).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
