//! config.json: the architecture that it describes, or why not.
use super::{Object, gpt2};
use crate::family::Family;
use crate::limits::checked;
use crate::{DecoderSpec, ModelError};
use serde_json::Value;

/// The error for a decoder of another family.
pub(crate) fn unsupported(found: &str, place: &str) -> ModelError {
    let plain = found.to_lowercase().replace(['-', '_'], "");
    let experts = ["moe", "mixtral", "deepseek", "llama4"].iter().any(|kind| plain.contains(kind));
    let remedy = if plain.contains("gptoss") {
        "gpt-oss is out of reach here (a mixture of experts of 20B parameters and more, in MXFP4); \
         take a Llama-family model such as HuggingFaceTB/SmolLM2-135M-Instruct"
    } else if experts {
        "mixtures of experts are not implemented; take a dense model such as Qwen/Qwen2.5-0.5B-Instruct"
    } else {
        "LlamaForCausalLM (Llama, SmolLM2), MistralForCausalLM, Qwen2ForCausalLM (Qwen2, Qwen2.5), Qwen3ForCausalLM and \
         GPT2LMHeadModel are read; others need layers that are not implemented"
    };
    ModelError::Architecture { place: place.to_owned(), found: found.to_owned(), remedy: remedy.to_owned() }
}

/// The architecture that a config.json describes. `place` names the file in errors.
pub fn spec_from_config(config: &Object, place: &str) -> Result<DecoderSpec, ModelError> {
    let family = family(config, place)?;
    let read = Reader { config, place };
    if family == Family::Gpt2 {
        return gpt2::spec(&read);
    }
    read.refuse_variants()?;
    let (hidden, heads) = (read.needed("hidden_size")?, read.needed("num_attention_heads")?);
    let context = read.needed("max_position_embeddings")?;
    #[expect(clippy::cast_possible_truncation, reason = "an epsilon; the model computes in f32")]
    let norm_eps = read.float("rms_norm_eps", 1e-6)? as f32;
    let in_rope = config.get("rope_parameters").and_then(|r| r.get("rope_theta")).and_then(Value::as_f64);
    let spec = DecoderSpec {
        family,
        hidden,
        layers: read.needed("num_hidden_layers")?,
        heads,
        kv_heads: read.number("num_key_value_heads")?.unwrap_or(heads),
        head_dim: read.head_dim(family, hidden, heads)?,
        intermediate: read.needed("intermediate_size")?,
        vocab: read.needed("vocab_size")?,
        // Within the window, windowed attention is full attention.
        max_context: read.window(family)?.map_or(context, |w| w.min(context)),
        norm_eps,
        rope_theta: match in_rope {
            Some(theta) => theta,
            None => read.float("rope_theta", 10_000.0)?,
        },
        tied_embeddings: read.is("tie_word_embeddings"),
    };
    checked(spec, place)
}

/// The family by its class, or by its type where no class is named.
fn family(config: &Object, place: &str) -> Result<Family, ModelError> {
    let class = config.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
    let kind = config.get("model_type").and_then(Value::as_str);
    let found = |name: &str, of: fn(Family) -> &'static str| {
        Family::ALL.into_iter().find(|family| of(*family) == name).ok_or_else(|| unsupported(name, place))
    };
    match (class, kind) {
        (Some(class), _) => found(class, Family::class),
        (None, Some(kind)) => found(kind, Family::model_type),
        (None, None) => Err(unsupported("(none named)", place)),
    }
}

/// Typed access with errors that name place and value.
pub(super) struct Reader<'a> {
    pub(super) config: &'a Object,
    pub(super) place: &'a str,
}

impl Reader<'_> {
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn is(&self, key: &str) -> bool {
        self.get(key) == Some(&Value::Bool(true))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) => Ok(Some(n)),
            None => Err(self.bad(key, value, "must be a whole number")),
        }
    }

    pub(super) fn needed(&self, key: &str) -> Result<usize, ModelError> {
        self.number(key)?.ok_or_else(|| ModelError::Missing {
            place: self.place.into(),
            what: format!("setting {key}"),
            remedy: "export the model again".into(),
        })
    }

    pub(super) fn float(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_f64().ok_or_else(|| self.bad(key, value, "must be a number"))
    }

    /// Width of a head, with transformers' defaults.
    fn head_dim(&self, family: Family, hidden: usize, heads: usize) -> Result<usize, ModelError> {
        match self.number("head_dim")? {
            Some(width) => Ok(width),
            None if family == Family::Qwen3 => Ok(128),
            None if heads > 0 && hidden.is_multiple_of(heads) => Ok(hidden / heads),
            None => {
                let problem = "must divide hidden_size where head_dim is not given";
                Err(self.bad("num_attention_heads", &Value::from(heads), problem))
            }
        }
    }

    /// Positions that a token sees, where they are fewer than all. Mistral's window is on unless it is null, those of the
    /// others only where they say so.
    fn window(&self, family: Family) -> Result<Option<usize>, ModelError> {
        let default = match family {
            Family::Mistral if !self.config.contains_key("sliding_window") => Some(4096),
            Family::Qwen2 | Family::Qwen3 if !self.is("use_sliding_window") => return Ok(None),
            Family::Qwen2 | Family::Qwen3 => Some(4096),
            Family::Llama | Family::Mistral | Family::Gpt2 => None,
        };
        let off = self.config.get("use_sliding_window") == Some(&Value::Bool(false));
        Ok(self.number("sliding_window")?.or(default).filter(|_| !off))
    }

    /// Refuses settings that change the computation in ways that are not implemented.
    fn refuse_variants(&self) -> Result<(), ModelError> {
        for key in ["attention_bias", "mlp_bias"] {
            if self.is(key) {
                let problem = "biases beside Qwen2's are not implemented; take a model of this family without them";
                return Err(self.bad(key, &Value::Bool(true), problem));
            }
        }
        if let Some(act) = self.config.get("hidden_act").filter(|act| !matches!(act.as_str(), Some("silu" | "swish"))) {
            return Err(self.bad("hidden_act", act, "only silu is implemented; take a model that uses it"));
        }
        if let Some(quantization) = self.get("quantization_config") {
            return Err(self.bad("quantization_config", quantization, "take the model's unquantized or GGUF form"));
        }
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(rope) = self.get(key) else { continue };
            let kind = rope.get("rope_type").or_else(|| rope.get("type"));
            if kind.is_some_and(|kind| kind != "default") || (kind.is_none() && key == "rope_scaling") {
                let problem = "scaled rotary embeddings are not implemented; take a model without, such as Qwen2.5 or SmolLM2";
                return Err(self.bad(key, rope, problem));
            }
            if rope.get("partial_rotary_factor").and_then(Value::as_f64).is_some_and(|f| f != 1.0) {
                return Err(self.bad(key, rope, "only rotation of whole heads is implemented; take a model that rotates them"));
            }
        }
        Ok(())
    }

    pub(super) fn bad(&self, key: &str, value: &Value, problem: &str) -> ModelError {
        let value: String = value.to_string().chars().take(80).collect();
        ModelError::Value { place: self.place.into(), key: key.into(), value, problem: problem.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(extra: Value) -> Object {
        let mut base = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 128, "rms_norm_eps": 1e-5});
        let (Value::Object(base), Value::Object(extra)) = (&mut base, extra) else { unreachable!() };
        base.extend(extra);
        std::mem::take(base)
    }

    #[test]
    fn both_generations_of_config_are_read() {
        let old = spec_from_config(&config(json!({"rope_theta": 5e5, "tie_word_embeddings": true})), "c").unwrap();
        assert_eq!((old.head_dim, old.rope_theta, old.tied_embeddings), (16, 5e5, true));
        let new = config(json!({"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}, "head_dim": 32}));
        let new = spec_from_config(&new, "c").unwrap();
        assert_eq!((new.head_dim, new.rope_theta, new.tied_embeddings), (32, 1e5, false));
    }

    #[test]
    fn families_have_transformers_defaults() {
        let of = |class: &str, extra: Value| {
            let mut all = config(extra);
            all.insert("architectures".into(), json!([class]));
            spec_from_config(&all, "c").unwrap()
        };
        let context = |class: &str, extra: Value| of(class, extra).max_context;
        assert_eq!(context("MistralForCausalLM", json!({"sliding_window": 50})), 50);
        assert_eq!(context("MistralForCausalLM", json!({"max_position_embeddings": 9000})), 4096);
        assert_eq!(context("MistralForCausalLM", json!({"max_position_embeddings": 9000, "sliding_window": null})), 9000);
        for class in ["Qwen2ForCausalLM", "Qwen3ForCausalLM"] {
            assert_eq!(context(class, json!({"sliding_window": 50})), 128);
            assert_eq!(context(class, json!({"sliding_window": 50, "use_sliding_window": true})), 50);
        }
        assert_eq!(of("Qwen2ForCausalLM", json!({})).head_dim, 16);
        assert_eq!(of("Qwen3ForCausalLM", json!({})).head_dim, 128);
        assert_eq!(of("Qwen3ForCausalLM", json!({"head_dim": 24})).head_dim, 24);
        let by_type = config(json!({"architectures": null, "model_type": "qwen2"}));
        assert_eq!(spec_from_config(&by_type, "c").unwrap().family, Family::Qwen2);
    }

    #[test]
    fn what_is_not_implemented_is_named() {
        let cases = [
            (json!({"architectures": ["FalconForCausalLM"]}), "FalconForCausalLM is not supported"),
            (json!({"architectures": ["Qwen3MoeForCausalLM"]}), "take a dense model"),
            (json!({"architectures": ["GptOssForCausalLM"]}), "gpt-oss is out of reach"),
            (json!({"attention_bias": true}), "attention_bias = true"),
            (json!({"hidden_act": "gelu"}), "hidden_act = \"gelu\""),
            (json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}), "rope_scaling"),
            (json!({"quantization_config": {"bits": 4}}), "quantization_config"),
            (json!({"hidden_size": -3}), "hidden_size = -3"),
            (json!({"num_hidden_layers": 1e18 as u64}), "num_hidden_layers = 1000000000000000000"),
            (json!({"num_key_value_heads": 3}), "must divide num_attention_heads = 4"),
            (json!({"head_dim": 7}), "even"),
            (json!({"vocab_size": null}), "vocab_size is missing"),
            (json!({"rope_theta": 0}), "rope_theta = 0"),
        ];
        for (extra, want) in cases {
            let error = spec_from_config(&config(extra), "dir/config.json").unwrap_err().to_string();
            assert!(error.starts_with("dir/config.json") && error.contains(want), "{error}");
        }
    }
}
