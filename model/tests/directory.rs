//! A model saved and opened again, whole, in shards and damaged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
use cohort_model::init::random_weights;
use cohort_model::safetensors_file::{SaveDtype, write_file};
use cohort_model::{ChatMessage, Family, ModelFiles, WeightSet};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn tiny() -> ModelFiles {
    ModelFiles::open("random://tiny?seed=7").unwrap()
}

fn saved(dtype: SaveDtype) -> (tempfile::TempDir, ModelFiles) {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    model.save(dir.path(), &model.weights().unwrap(), dtype).unwrap();
    (dir, model)
}

fn open(dir: &Path) -> Result<ModelFiles, String> {
    ModelFiles::open(dir.to_str().unwrap()).map_err(|e| e.to_string())
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn a_saved_model_opens_as_the_same_model() {
    for family in Family::ALL {
        let suffix = if family == Family::Llama { String::new() } else { format!("-{}", family.model_type()) };
        let model = ModelFiles::open(&format!("random://tiny{suffix}?seed=7")).unwrap();
        assert_eq!(model.spec.family, family);
        same_again(&model);
    }
}

fn same_again(model: &ModelFiles) {
    let dir = tempfile::tempdir().unwrap();
    model.save(dir.path(), &model.weights().unwrap(), SaveDtype::F32).unwrap();
    let again = open(dir.path()).unwrap();
    assert_eq!(again.spec, model.spec);
    assert_eq!((&again.eos, again.bos, again.pad), (&vec![258], Some(256), Some(256)));
    assert_eq!(again.weights().unwrap(), model.weights().unwrap());
    assert_eq!(again.weights().unwrap().sha256(), model.weights().unwrap().sha256());
    let messages = [ChatMessage::new("user", "hi")];
    let render = |m: &ModelFiles| m.chat.as_ref().unwrap().render(&messages, true).unwrap();
    assert_eq!(render(&again), render(model));
    let text = "a <|im_end|> ü";
    assert_eq!(again.tokenizer.encode(text, false).unwrap(), model.tokenizer.encode(text, false).unwrap());
    // What is saved from a directory opens again, too, and says the same.
    let second = tempfile::tempdir().unwrap();
    again.save(second.path(), &again.weights().unwrap(), SaveDtype::F32).unwrap();
    for file in fs::read_dir(dir.path()).unwrap() {
        let name = file.unwrap().file_name();
        assert_eq!(fs::read(dir.path().join(&name)).unwrap(), fs::read(second.path().join(&name)).unwrap(), "{name:?}");
    }
}

#[test]
fn bf16_is_read_as_the_rounded_values() {
    let (dir, model) = saved(SaveDtype::Bf16);
    let (exact, rounded) = (model.weights().unwrap(), open(dir.path()).unwrap().weights().unwrap());
    assert_ne!(exact, rounded);
    for (name, tensor) in &exact.0 {
        for (a, b) in tensor.data.iter().zip(&rounded.0[name].data) {
            assert!((a - b).abs() <= a.abs() / 256.0, "{name}: {a} {b}");
        }
    }
}

#[test]
fn shards_are_read_through_their_index() {
    let (dir, model) = saved(SaveDtype::F32);
    let weights = model.weights().unwrap();
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for (i, part) in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"].iter().enumerate() {
        let mine: WeightSet =
            WeightSet(weights.0.clone().into_iter().enumerate().filter(|(n, _)| n % 2 == i).map(|(_, e)| e).collect());
        map.extend(mine.0.keys().map(|name| (name.clone(), json!(part))));
        write_file(&dir.path().join(part), &mine, SaveDtype::F32).unwrap();
    }
    let index = dir.path().join("model.safetensors.index.json");
    fs::write(&index, json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    assert_eq!(open(dir.path()).unwrap().weights().unwrap(), weights);
    edit(&index, |index| index["weight_map"]["model.norm.weight"] = json!("../elsewhere.safetensors"));
    assert!(open(dir.path()).unwrap_err().contains("not a file of this directory"));
}

#[test]
fn damage_is_named() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage); 8] = [
        ("config.json is missing", |d| fs::remove_file(d.join("config.json")).unwrap()),
        ("tokenizer.json is missing; save the tokenizer in the fast format", |d| {
            fs::remove_file(d.join("tokenizer.json")).unwrap()
        }),
        ("model.safetensors is missing", |d| fs::remove_file(d.join("model.safetensors")).unwrap()),
        ("pickled weights", |d| fs::rename(d.join("model.safetensors"), d.join("pytorch_model.bin")).unwrap()),
        ("not a JSON object", |d| fs::write(d.join("config.json"), "{\"a\":").unwrap()),
        ("model.embed_tokens.weight has shape [272, 32], the architecture needs [300, 32]", |d| {
            edit(&d.join("config.json"), |c| c["vocab_size"] = json!(300));
        }),
        ("tensor model.layers.2.input_layernorm.weight is missing", |d| {
            edit(&d.join("config.json"), |c| c["num_hidden_layers"] = json!(3));
        }),
        ("tensor model.layers.1.input_layernorm.weight is not part", |d| {
            edit(&d.join("config.json"), |c| c["num_hidden_layers"] = json!(1));
        }),
    ];
    for (want, damage) in cases {
        let (dir, _) = saved(SaveDtype::F32);
        damage(dir.path());
        let error = open(dir.path()).unwrap_err();
        assert!(error.contains(want) && error.contains(dir.path().to_str().unwrap()), "{error}");
    }
}

#[test]
fn half_a_weights_file_is_refused_at_once() {
    let (dir, _) = saved(SaveDtype::F32);
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(error.contains("model.safetensors") && error.contains("outside"), "{error}");
}

#[test]
fn weights_of_another_shape_are_not_saved() {
    let (dir, model) = saved(SaveDtype::F32);
    let mut weights = model.weights().unwrap();
    weights.0.remove("model.norm.weight");
    assert!(model.save(dir.path(), &weights, SaveDtype::F32).unwrap_err().to_string().contains("model.norm.weight is missing"));
}

#[test]
fn paths_that_name_nothing_say_what_would() {
    let cases = [
        ("/no/such/model", "no such file or directory"),
        ("s3://bucket/model", "a source for s3://"),
        ("builtin://nothing", "builtin://order-desk is the only one"),
        ("random://huge", "random://tiny?seed=N"),
        ("random://tiny?seed=x", "random://tiny?seed=N"),
        ("hf://openai/gpt-oss-20b", "gpt-oss is out of reach"),
        ("hf://noslash", "org/name"),
        ("hf://a/../b", "org/name"),
        (concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "a single file is read when it is a .gguf"),
    ];
    for (path, want) in cases {
        let error = ModelFiles::open(path).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    assert_eq!(ModelFiles::open("stub://echo").unwrap().source, "stub://echo");
}

#[test]
fn random_models_differ_by_seed() {
    let other = ModelFiles::open("random://tiny?seed=8").unwrap();
    assert_ne!(tiny().weights().unwrap().digest(), other.weights().unwrap().digest());
    assert_eq!(tiny().weights().unwrap(), random_weights(&tiny().spec, 7));
}
