//! A Hugging Face directory: config.json, safetensors files, tokenizer.json and their companions.
use crate::limits::checked;
use crate::safetensors_file::{Entry, Header, read_header, read_tensor};
use crate::weights::ShapeError;
use crate::{DecoderSpec, ModelError, WeightSet};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

/// A JSON file's object.
pub(crate) type Object = Map<String, Value>;

/// Buffers that some exporters write beside the weights; they are computed, not read.
const COMPUTED: &str = ".rotary_emb.inv_freq";

/// The error for a decoder of another family.
pub(crate) fn unsupported(found: &str, place: &str) -> ModelError {
    let plain = found.to_lowercase().replace(['-', '_'], "");
    let remedy = if plain.contains("gptoss") {
        "gpt-oss is out of reach here (a mixture of experts of 20B parameters and more, in MXFP4); \
         take a Llama-family model such as HuggingFaceTB/SmolLM2-135M-Instruct"
    } else {
        "LlamaForCausalLM (Llama, SmolLM2) and MistralForCausalLM are read; others need layers that are not implemented"
    };
    ModelError::Architecture { place: place.to_owned(), found: found.to_owned(), remedy: remedy.to_owned() }
}

/// The architecture that a config.json describes. `place` names the file in errors.
pub fn spec_from_config(config: &Object, place: &str) -> Result<DecoderSpec, ModelError> {
    let architecture = config.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
    let model_type = config.get("model_type").and_then(Value::as_str);
    match (architecture, model_type) {
        (Some("LlamaForCausalLM" | "MistralForCausalLM"), _) | (None, Some("llama" | "mistral")) => {}
        (Some(other), _) | (None, Some(other)) => return Err(unsupported(other, place)),
        (None, None) => return Err(unsupported("(none named)", place)),
    }
    refuse_variants(config, place)?;
    let number = |key: &str| match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) => Ok(Some(n)),
            None => Err(bad(place, key, value, "must be a whole number")),
        },
    };
    let needed = |key: &str| number(key)?.ok_or_else(|| missing(place, key));
    let (hidden, heads) = (needed("hidden_size")?, needed("num_attention_heads")?);
    let head_dim = match number("head_dim")? {
        Some(width) => width,
        None if heads > 0 && hidden % heads == 0 => hidden / heads,
        None => {
            let heads = Value::from(heads);
            return Err(bad(place, "num_attention_heads", &heads, "must divide hidden_size where head_dim is not given"));
        }
    };
    let float = |key: &str, default: f64| match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_f64().ok_or_else(|| bad(place, key, value, "must be a number")),
    };
    let rope = config.get("rope_parameters").and_then(|r| r.get("rope_theta")).and_then(Value::as_f64);
    let context = needed("max_position_embeddings")?;
    // Within the window, windowed attention is full attention.
    let window = number("sliding_window")?.filter(|_| config.get("use_sliding_window") != Some(&Value::Bool(false)));
    #[expect(clippy::cast_possible_truncation, reason = "an epsilon; the model computes in f32")]
    let norm_eps = float("rms_norm_eps", 1e-6)? as f32;
    let spec = DecoderSpec {
        hidden,
        layers: needed("num_hidden_layers")?,
        heads,
        kv_heads: number("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        intermediate: needed("intermediate_size")?,
        vocab: needed("vocab_size")?,
        max_context: window.map_or(context, |w| w.min(context)),
        norm_eps,
        rope_theta: match rope {
            Some(theta) => theta,
            None => float("rope_theta", 10_000.0)?,
        },
        tied_embeddings: config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
    };
    checked(spec, place)
}

/// Refuses settings that change the computation in ways that are not implemented.
fn refuse_variants(config: &Object, place: &str) -> Result<(), ModelError> {
    for key in ["attention_bias", "mlp_bias"] {
        if config.get(key) == Some(&Value::Bool(true)) {
            return Err(bad(place, key, &Value::Bool(true), "biases are not implemented"));
        }
    }
    if let Some(act) = config.get("hidden_act").filter(|act| !matches!(act.as_str(), Some("silu" | "swish"))) {
        return Err(bad(place, "hidden_act", act, "only silu is implemented"));
    }
    if let Some(quantization) = config.get("quantization_config").filter(|q| !q.is_null()) {
        return Err(bad(place, "quantization_config", quantization, "take the model's unquantized or GGUF form"));
    }
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = config.get(key).filter(|r| !r.is_null()) else { continue };
        let kind = rope.get("rope_type").or_else(|| rope.get("type"));
        if kind.is_some_and(|kind| kind != "default") || (kind.is_none() && key == "rope_scaling") {
            return Err(bad(place, key, rope, "scaled rotary embeddings are not implemented"));
        }
        if rope.get("partial_rotary_factor").and_then(Value::as_f64).is_some_and(|f| f != 1.0) {
            return Err(bad(place, key, rope, "only rotation of whole heads is implemented"));
        }
    }
    Ok(())
}

fn bad(place: &str, key: &str, value: &Value, problem: &str) -> ModelError {
    let value: String = value.to_string().chars().take(80).collect();
    ModelError::Value { place: place.into(), key: key.into(), value, problem: problem.into() }
}

fn missing(place: &str, key: &str) -> ModelError {
    ModelError::Missing { place: place.into(), what: format!("setting {key}"), remedy: "export the model again".into() }
}

/// Reads a JSON object.
pub(crate) fn read_object(path: &Path) -> Result<Object, ModelError> {
    let bytes = std::fs::read(path).map_err(ModelError::io("read", path))?;
    parse_object(&bytes, &path.display().to_string())
}

/// Reads a JSON object where the file exists; an empty one where it does not.
pub(crate) fn read_object_if_there(path: &Path) -> Result<Object, ModelError> {
    if path.is_file() { read_object(path) } else { Ok(Object::new()) }
}

/// A JSON object from bytes.
pub(crate) fn parse_object(bytes: &[u8], place: &str) -> Result<Object, ModelError> {
    serde_json::from_slice(bytes).map_err(|e| ModelError::corrupt(place, format!("not a JSON object: {e}")))
}

/// The safetensors files of a directory, their headers checked against an architecture.
#[derive(Debug, Clone)]
pub(crate) struct Shards {
    files: Vec<(PathBuf, Header)>,
    /// Which file holds each tensor of the architecture.
    place_of: BTreeMap<String, usize>,
}

impl Shards {
    /// Reads the headers of `model.safetensors` or of the files that `model.safetensors.index.json` names.
    pub(crate) fn open(dir: &Path, spec: &DecoderSpec) -> Result<Self, ModelError> {
        let mut files = Vec::new();
        for path in shard_paths(dir)? {
            let mut file = File::open(&path).map_err(ModelError::io("open", &path))?;
            let header = read_header(&mut file, &path.display().to_string())?;
            files.push((path, header));
        }
        let mut place_of = BTreeMap::new();
        for (i, (path, header)) in files.iter().enumerate() {
            for name in header.keys() {
                if let Some(other) = place_of.insert(name.clone(), i) {
                    let (first, _): &(PathBuf, Header) = &files[other];
                    let problem = format!("tensor {name} is also in {}", first.display());
                    return Err(ModelError::corrupt(path.display().to_string(), problem));
                }
            }
        }
        let found = place_of.iter().map(|(name, i)| (name.as_str(), &files[*i].1[name]));
        check_names(found, spec).map_err(|source| ModelError::Shape { place: dir.display().to_string(), source })?;
        Ok(Self { files, place_of })
    }

    /// Reads the values.
    pub(crate) fn weights(&self, spec: &DecoderSpec) -> Result<WeightSet, ModelError> {
        let mut open: Vec<Option<File>> = self.files.iter().map(|_| None).collect();
        let mut out = WeightSet::default();
        for want in spec.tensors() {
            let missing = || ShapeError::Missing { name: want.name.clone() };
            let i = *self.place_of.get(&want.name).ok_or_else(|| self.shape(missing()))?;
            let (path, header) = &self.files[i];
            let file = match &mut open[i] {
                Some(file) => file,
                slot => slot.insert(File::open(path).map_err(ModelError::io("open", path))?),
            };
            let tensor = read_tensor(file, &want.name, &header[&want.name], &path.display().to_string())?;
            out.0.insert(want.name, tensor);
        }
        out.check(spec).map_err(|source| self.shape(source))?;
        Ok(out)
    }

    fn shape(&self, source: ShapeError) -> ModelError {
        let place = self.files.first().map(|(path, _)| path.display().to_string()).unwrap_or_default();
        ModelError::Shape { place, source }
    }
}

/// The weights of one safetensors file in memory.
pub(crate) fn weights_from<R: Read + Seek>(file: &mut R, spec: &DecoderSpec, place: &str) -> Result<WeightSet, ModelError> {
    let header = read_header(file, place)?;
    let shape = |source| ModelError::Shape { place: place.to_owned(), source };
    check_names(header.iter().map(|(n, e)| (n.as_str(), e)), spec).map_err(shape)?;
    let mut out = WeightSet::default();
    for want in spec.tensors() {
        let tensor = read_tensor(file, &want.name, &header[&want.name], place)?;
        out.0.insert(want.name, tensor);
    }
    out.check(spec).map_err(shape)?;
    Ok(out)
}

/// Checks names and shapes of headers. A tied model's file may repeat its output projection, and carry buffers that are
/// computed; both are left out.
fn check_names<'a>(found: impl Iterator<Item = (&'a str, &'a Entry)>, spec: &DecoderSpec) -> Result<(), ShapeError> {
    let mut found: BTreeMap<&str, &Entry> = found.collect();
    for want in spec.tensors() {
        let Some(entry) = found.remove(want.name.as_str()) else { return Err(ShapeError::Missing { name: want.name }) };
        if entry.shape != want.shape {
            return Err(ShapeError::Shape { name: want.name, got: entry.shape.clone(), want: want.shape });
        }
    }
    let ignored = |name: &str| name.ends_with(COMPUTED) || (spec.tied_embeddings && name == "lm_head.weight");
    match found.keys().find(|name| !ignored(name)) {
        Some(name) => Err(ShapeError::Unexpected { name: (*name).to_owned() }),
        None => Ok(()),
    }
}

fn shard_paths(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let single = dir.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = dir.join("model.safetensors.index.json");
    if !index.is_file() {
        let pickled = dir.join("pytorch_model.bin").is_file() || dir.join("pytorch_model.bin.index.json").is_file();
        let remedy = if pickled {
            "pickled weights (pytorch_model.bin) are never read, since loading them runs code; save the model with safetensors"
        } else {
            "give a directory written by save_pretrained, or a .gguf file"
        };
        let what = "model.safetensors".to_owned();
        return Err(ModelError::Missing { place: dir.display().to_string(), what, remedy: remedy.to_owned() });
    }
    let place = index.display().to_string();
    let object = read_object(&index)?;
    let map = object.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| ModelError::corrupt(place.as_str(), "it has no weight_map"))?;
    let mut names = BTreeSet::new();
    for file in map.values() {
        match file.as_str() {
            Some(name) if !name.is_empty() && Path::new(name).file_name().is_some_and(|plain| plain == name) => {
                names.insert(name)
            }
            _ => {
                return Err(ModelError::corrupt(
                    place,
                    format!("weight_map names {file}, which is not a file of this directory"),
                ));
            }
        };
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
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
        let window = config(json!({"architectures": ["MistralForCausalLM"], "sliding_window": 50}));
        assert_eq!(spec_from_config(&window, "c").unwrap().max_context, 50);
    }

    #[test]
    fn what_is_not_implemented_is_named() {
        let cases = [
            (json!({"architectures": ["Qwen2ForCausalLM"]}), "Qwen2ForCausalLM is not supported"),
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
