//! Directories in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.
use super::{Lora, LoraConfig};
use crate::hf::{Object, read_object};
use crate::safetensors_file::{SaveDtype, read_file, write_file};
use crate::{DecoderSpec, ModelError, WeightSet};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// An adapter's settings.
pub(crate) const CONFIG: &str = "adapter_config.json";
/// An adapter's values.
const WEIGHTS: &str = "adapter_model.safetensors";

/// Settings that change what adapters compute, with the only value beside "nothing" that is implemented.
const FIXED: [(&str, Value); 14] = [
    ("bias", Value::Null),
    ("use_rslora", Value::Bool(false)),
    ("use_dora", Value::Bool(false)),
    ("fan_in_fan_out", Value::Bool(false)),
    ("lora_bias", Value::Bool(false)),
    ("layers_to_transform", Value::Null),
    ("modules_to_save", Value::Null),
    ("rank_pattern", Value::Null),
    ("alpha_pattern", Value::Null),
    ("use_qalora", Value::Bool(false)),
    ("use_bdlora", Value::Bool(false)),
    ("layer_replication", Value::Null),
    ("target_parameters", Value::Null),
    ("trainable_token_indices", Value::Null),
];

/// An adapter's settings, not yet compared with a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// What it was trained beside: a path or a hub id.
    pub base: String,
    /// Its settings.
    pub config: LoraConfig,
}

/// Whether a directory is an adapter's.
#[must_use]
pub fn is_adapter(dir: &Path) -> bool {
    dir.join(CONFIG).is_file()
}

impl Adapter {
    /// Reads the `adapter_config.json` of a directory. Modules may be named by their path, as PEFT names all of them.
    ///
    /// Errors: what is missing, and variants of LoRA that are not implemented.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join(CONFIG);
        let (object, place) = (read_object(&path)?, path.display().to_string());
        refuse_variants(&object, &place)?;
        let missing = |key: &str| ModelError::Missing {
            place: place.clone(),
            what: format!("setting {key}"),
            remedy: "save the adapter again with PEFT's save_pretrained".into(),
        };
        let number = |key: &str| object.get(key).and_then(Value::as_f64).ok_or_else(|| missing(key));
        let rank = object.get("r").and_then(Value::as_u64).and_then(|r| u32::try_from(r).ok()).ok_or_else(|| missing("r"))?;
        let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
        let target_modules = match object.get("target_modules") {
            Some(Value::String(one)) => [last(one)].into(),
            Some(Value::Array(names)) => names.iter().filter_map(|name| Some(last(name.as_str()?))).collect::<BTreeSet<_>>(),
            _ => return Err(missing("target_modules")),
        };
        let base = object.get("base_model_name_or_path").and_then(Value::as_str);
        Ok(Self {
            base: base.ok_or_else(|| missing("base_model_name_or_path"))?.to_owned(),
            config: LoraConfig {
                rank,
                alpha: number("lora_alpha")?,
                dropout: object.get("lora_dropout").and_then(Value::as_f64).unwrap_or(0.0),
                target_modules: target_modules.into_iter().collect(),
                adapter: dir.display().to_string(),
            },
        })
    }

    /// Reads the values of a directory's adapters.
    ///
    /// Errors: tensors that are not those of `lora` for this architecture.
    pub fn weights(dir: &Path, lora: &Lora, spec: &DecoderSpec) -> Result<WeightSet, ModelError> {
        let path = dir.join(WEIGHTS);
        let set = read_file(&path)?;
        let shape = |source| ModelError::Shape { place: path.display().to_string(), source };
        set.fits(&lora.tensors(spec)).map_err(shape)?;
        Ok(set)
    }
}

fn refuse_variants(object: &Object, place: &str) -> Result<(), ModelError> {
    let refuse = |key: &str, value: &Value| ModelError::Value {
        place: place.to_owned(),
        key: key.to_owned(),
        value: value.to_string().chars().take(80).collect(),
        problem: "plain LoRA is implemented; train the adapter without this".into(),
    };
    if let Some(kind) = object.get("peft_type").filter(|kind| kind.as_str() != Some("LORA")) {
        return Err(refuse("peft_type", kind));
    }
    for (key, only) in FIXED {
        let Some(value) = object.get(key) else { continue };
        let empty = value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty) || value == "none";
        if !empty && *value != only {
            return Err(refuse(key, value));
        }
    }
    Ok(())
}

/// Writes the values of an adapter and gives what goes into its `adapter_config.json`. `base` names the frozen model as it was
/// opened.
pub(crate) fn save(dir: &Path, base: &str, lora: &Lora, weights: &WeightSet, dtype: SaveDtype) -> Result<Object, ModelError> {
    write_file(&dir.join(WEIGHTS), weights, dtype)?;
    let modules: Vec<&str> = lora.targets.iter().map(|t| t.name()).collect();
    let settings = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.strip_prefix("hf://").unwrap_or(base),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "use_rslora": false,
        "use_dora": false,
    });
    Ok(settings.as_object().cloned().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn settings(change: impl FnOnce(&mut Value)) -> Result<Adapter, String> {
        let dir = tempfile::tempdir().unwrap();
        let mut all = json!({
            "peft_type": "LORA", "base_model_name_or_path": "org/name", "r": 4, "lora_alpha": 16, "lora_dropout": 0.1,
            "target_modules": ["model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj", "q_proj"],
            "bias": "none", "rank_pattern": {}, "loftq_config": {}, "use_dora": false, "modules_to_save": null,
        });
        change(&mut all);
        fs::write(dir.path().join(CONFIG), all.to_string()).unwrap();
        assert!(is_adapter(dir.path()));
        Adapter::open(dir.path()).map_err(|e| e.to_string())
    }

    #[test]
    fn pefts_settings_are_read() {
        let adapter = settings(|_| ()).unwrap();
        assert_eq!((adapter.base.as_str(), adapter.config.rank, adapter.config.alpha), ("org/name", 4, 16.0));
        assert_eq!((adapter.config.dropout, &adapter.config.target_modules[..]), (0.1, &["q_proj".into(), "v_proj".into()][..]));
    }

    #[test]
    fn what_is_not_plain_lora_is_named() {
        for (key, value) in [
            ("use_dora", json!(true)),
            ("bias", json!("all")),
            ("rank_pattern", json!({"q_proj": 2})),
            ("modules_to_save", json!(["lm_head"])),
            ("peft_type", json!("IA3")),
        ] {
            let error = settings(|all| all[key] = value.clone()).unwrap_err();
            assert!(error.contains(&format!("{key} = {value}")) && error.contains("plain LoRA"), "{error}");
        }
        assert!(settings(|all| all["r"] = Value::Null).unwrap_err().contains("setting r is missing"));
    }
}
