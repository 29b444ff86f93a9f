//! Writes a model as the directory that transformers' `AutoModelForCausalLM` and `AutoTokenizer` load.
use crate::hf::{Object, stored};
use crate::load::{Adapters, ModelFiles};
use crate::lora;
use crate::safetensors_file::{SaveDtype, write_file};
use crate::{DecoderSpec, Family, ModelError, WeightSet};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::Path;

impl ModelFiles {
    /// Writes `config.json`, `model.safetensors`, `tokenizer.json`, `tokenizer_config.json` (with the chat template),
    /// `generation_config.json` and `special_tokens_map.json` into `dir`, which is made if need be. Every file is synced;
    /// names appear one by one, so write into a temporary directory and rename it for an atomic result. With adapters the
    /// first two are PEFT's `adapter_config.json` and `adapter_model.safetensors`.
    pub fn save(&self, dir: &Path, weights: &WeightSet, dtype: SaveDtype) -> Result<(), ModelError> {
        let place = dir.display().to_string();
        weights.fits(&self.trained()).map_err(|source| ModelError::Shape { place: place.clone(), source })?;
        std::fs::create_dir_all(dir).map_err(ModelError::io("make", dir))?;
        if let Some(Adapters { lora, base, .. }) = &self.adapters {
            let settings = lora::save(dir, base, lora, weights, dtype)?;
            write_json(&dir.join(lora::CONFIG), settings)?;
        } else {
            let stored = stored(&self.spec, weights).map_err(|source| ModelError::Shape { place, source })?;
            write_file(&dir.join("model.safetensors"), &stored, dtype)?;
            write_json(&dir.join("config.json"), self.config_json(dtype))?;
        }
        write_bytes(&dir.join("tokenizer.json"), self.tokenizer.json())?;
        write_json(&dir.join("tokenizer_config.json"), self.tokenizer_config_json())?;
        write_json(&dir.join("generation_config.json"), self.generation_config_json())?;
        write_json(&dir.join("special_tokens_map.json"), self.special_tokens_json())
    }

    /// Writes a directory that stands by itself: the whole model with these weights, without adapters.
    ///
    /// Errors: as [`ModelFiles::save`].
    pub fn save_whole(&self, dir: &Path, weights: &WeightSet, dtype: SaveDtype) -> Result<(), ModelError> {
        let mut whole = self.clone();
        whole.adapters = None;
        whole.save(dir, weights, dtype)
    }

    /// The source's config.json with the numbers of the spec; unknown keys pass through.
    fn config_json(&self, dtype: SaveDtype) -> Object {
        let dtype = match dtype {
            SaveDtype::F32 => "float32",
            SaveDtype::Bf16 => "bfloat16",
        };
        let spec = &self.spec;
        let mut out = self.settings.config.clone();
        let defaults = [("architectures", json!([spec.family.class()])), ("model_type", json!(spec.family.model_type()))];
        for (key, value) in defaults.into_iter().chain(choices(spec)) {
            out.entry(key).or_insert(value);
        }
        let exact = [
            ("vocab_size", json!(spec.vocab)),
            ("tie_word_embeddings", json!(spec.tied_embeddings)),
            ("bos_token_id", json!(self.bos)),
            ("eos_token_id", json!(self.main_eos())),
            ("dtype", json!(dtype)),
            ("torch_dtype", json!(dtype)),
        ];
        for (key, value) in exact.into_iter().chain(numbers(spec)) {
            out.insert(key.to_owned(), value);
        }
        out
    }

    fn tokenizer_config_json(&self) -> Object {
        let mut out = self.settings.tokenizer_config.clone();
        out.entry("tokenizer_class").or_insert_with(|| json!("PreTrainedTokenizerFast"));
        out.entry("model_max_length").or_insert_with(|| json!(self.spec.max_context));
        out.entry("clean_up_tokenization_spaces").or_insert_with(|| json!(false));
        for (key, value) in self.special_tokens_json() {
            out.entry(key).or_insert(value);
        }
        if let Some(chat) = &self.chat {
            out.insert("chat_template".into(), json!(chat.source()));
        }
        out
    }

    fn generation_config_json(&self) -> Object {
        let mut out = self.settings.generation_config.clone();
        out.entry("_from_model_config").or_insert_with(|| json!(true));
        out.insert("eos_token_id".into(), if let [one] = self.eos[..] { json!(one) } else { json!(self.eos) });
        if let Some(bos) = self.bos {
            out.insert("bos_token_id".into(), json!(bos));
        }
        if let Some(pad) = self.pad {
            out.insert("pad_token_id".into(), json!(pad));
        }
        out
    }

    fn special_tokens_json(&self) -> Object {
        let ids = [("bos_token", self.bos), ("eos_token", self.main_eos()), ("pad_token", self.pad)];
        let named = ids.into_iter().filter_map(|(key, id)| Some((key.to_owned(), Value::from(self.tokenizer.token(id?)?))));
        named.collect()
    }
}

/// Settings that a source's config.json may have in another way that is read as the same.
fn choices(spec: &DecoderSpec) -> Vec<(&'static str, Value)> {
    match spec.family {
        Family::Gpt2 => vec![("activation_function", json!("gelu_new"))],
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => {
            let mut out = vec![("hidden_act", json!("silu")), ("max_position_embeddings", json!(spec.max_context))];
            if spec.family == Family::Mistral {
                // Left out, it would be 4096.
                out.push(("sliding_window", Value::Null));
            }
            out
        }
    }
}

/// The numbers of the spec under the family's names.
fn numbers(spec: &DecoderSpec) -> Vec<(&'static str, Value)> {
    let eps = json!(shortest(spec.norm_eps));
    if spec.family == Family::Gpt2 {
        return vec![
            ("n_embd", json!(spec.hidden)),
            ("n_layer", json!(spec.layers)),
            ("n_head", json!(spec.heads)),
            ("n_inner", json!(spec.intermediate)),
            ("n_positions", json!(spec.max_context)),
            ("layer_norm_epsilon", eps),
        ];
    }
    vec![
        ("hidden_size", json!(spec.hidden)),
        ("num_hidden_layers", json!(spec.layers)),
        ("num_attention_heads", json!(spec.heads)),
        ("num_key_value_heads", json!(spec.kv_heads)),
        ("head_dim", json!(spec.head_dim)),
        ("intermediate_size", json!(spec.intermediate)),
        ("rms_norm_eps", eps),
        ("rope_theta", json!(spec.rope_theta)),
    ]
}

/// The f64 that an f32 is written as: 1e-5, not 9.999999747378752e-6.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| f64::from(x))
}

fn write_json(path: &Path, object: Object) -> Result<(), ModelError> {
    let text = serde_json::to_string_pretty(&Value::Object(object));
    let text = text.map_err(|e| ModelError::corrupt(path.display().to_string(), e.to_string()))?;
    write_bytes(path, (text + "\n").as_bytes())
}

fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(ModelError::io("write", path))
}
