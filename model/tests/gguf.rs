//! GGUF files: a small one written here by candle's writer, whole and damaged, and SmolLM2 where it is at hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor as Candle};
use cohort_model::{ChatMessage, Family, ModelFiles, Tokenizer, WeightSet, gguf};
use proptest::prelude::*;
use std::io::Cursor;
use std::sync::OnceLock;

/// Rows of a projection in the order that converters write: pairs side by side.
fn interleave(data: &[f32], head_dim: usize, width: usize) -> Vec<f32> {
    let mut out = data.to_vec();
    for head in 0..data.len() / (head_dim * width) {
        for row in 0..head_dim {
            let to = (head * head_dim + 2 * (row % (head_dim / 2)) + row / (head_dim / 2)) * width;
            out[to..][..width].copy_from_slice(&data[(head * head_dim + row) * width..][..width]);
        }
    }
    out
}

fn gguf_name(name: &str) -> String {
    let pairs = [
        ("model.layers.", "blk."),
        ("model.embed_tokens", "token_embd"),
        ("model.embed_positions", "position_embd"),
        ("model.norm", "output_norm"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    pairs.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// The tiny random model as a GGUF file.
fn file() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| converted(&ModelFiles::open("random://tiny?seed=3").unwrap(), "smollm"))
}

/// What a converter would write for a model.
fn converted(model: &ModelFiles, pre: &str) -> Vec<u8> {
    let spec = &model.spec;
    let kind = spec.family.model_type();
    let key = |name: &str| format!("{kind}.{name}");
    let text = |s: &str| Value::String(s.to_owned());
    let mut tokens: Vec<String> = (0..259).map(|id| model.tokenizer.token(id).unwrap()).collect();
    tokens.push("Ġ!".into());
    let settings: Vec<(String, Value)> = vec![
        ("general.architecture".into(), text(kind)),
        (key("embedding_length"), Value::U32(spec.hidden as u32)),
        (key("block_count"), Value::U32(spec.layers as u32)),
        (key("attention.head_count"), Value::U32(spec.heads as u32)),
        (key("attention.head_count_kv"), Value::U32(spec.kv_heads as u32)),
        (key("feed_forward_length"), Value::U32(spec.intermediate as u32)),
        (key("context_length"), Value::U32(spec.max_context as u32)),
        (
            key(if kind == "gpt2" { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" }),
            Value::F32(spec.norm_eps),
        ),
        ("tokenizer.ggml.model".into(), text("gpt2")),
        (key("attention.key_length"), Value::U32(spec.head_dim as u32)),
        ("tokenizer.ggml.pre".into(), text(pre)),
        ("tokenizer.ggml.tokens".into(), Value::Array(tokens.into_iter().map(Value::String).collect())),
        (
            "tokenizer.ggml.token_type".into(),
            Value::Array((0..260).map(|id| Value::I32(if (256..259).contains(&id) { 3 } else { 1 })).collect()),
        ),
        ("tokenizer.ggml.merges".into(), Value::Array(vec![text("Ġ !")])),
        ("tokenizer.ggml.bos_token_id".into(), Value::U32(256)),
        ("tokenizer.ggml.eos_token_id".into(), Value::U32(258)),
        ("tokenizer.chat_template".into(), text("{{ messages[0].content }}<|im_end|>")),
    ];
    let weights = model.weights().unwrap().0;
    let mut tensors = Vec::new();
    for (name, tensor) in &weights {
        let turned = name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight");
        let permuted = turned && spec.family == Family::Llama;
        let mut data = if permuted { interleave(&tensor.data, spec.head_dim, spec.hidden) } else { tensor.data.clone() };
        let (mut shape, mut to) = (tensor.shape.clone(), gguf_name(name));
        if spec.family == Family::Gpt2 && (name.contains("k_proj") || name.contains("v_proj")) {
            continue;
        }
        if spec.family == Family::Gpt2 && name.contains("q_proj") {
            for other in ["k_proj", "v_proj"] {
                data.extend(&weights[&name.replace("q_proj", other)].data);
            }
            (shape[0], to) = (3 * shape[0], to.replace("attn_q", "attn_qkv"));
        }
        let tensor = Candle::from_vec(data, shape, &Device::Cpu).unwrap();
        tensors.push((to, QTensor::quantize(&tensor, GgmlDType::F32).unwrap()));
    }
    let settings: Vec<_> = settings.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let mut out = Cursor::new(Vec::new());
    gguf_file::write(&mut out, &settings, &tensors).unwrap();
    out.into_inner()
}

fn open(bytes: &[u8]) -> Result<(ModelFiles, WeightSet), String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    let model = ModelFiles::open(path.to_str().unwrap()).map_err(|e| e.to_string())?;
    let weights = model.weights().map_err(|e| e.to_string())?;
    Ok((model, weights))
}

#[test]
fn a_gguf_file_gives_the_canonical_model() {
    let want = ModelFiles::open("random://tiny?seed=3").unwrap();
    let (model, weights) = open(file()).unwrap();
    assert_eq!(model.spec, want.spec);
    assert_eq!(weights, want.weights().unwrap());
    assert_eq!((model.eos.clone(), model.bos), (vec![258], Some(256)));
    assert_eq!(model.tokenizer.encode(" !", false).unwrap(), [259]);
    let text = "hé 12<|im_end|>";
    assert_eq!(model.tokenizer.encode(text, true).unwrap(), Tokenizer::bytes().unwrap().encode(text, true).unwrap());
    assert_eq!(model.chat.unwrap().render(&[ChatMessage::new("user", "x")], true).unwrap(), "x<|im_end|>");
}

#[test]
fn other_families_keep_their_order_of_rows() {
    for family in [Family::Qwen2, Family::Qwen3, Family::Gpt2] {
        let want = ModelFiles::open(&format!("random://tiny-{}?seed=3", family.model_type())).unwrap();
        let (model, weights) = open(&converted(&want, "qwen2")).unwrap();
        assert_eq!(model.spec, want.spec);
        assert_eq!(weights, want.weights().unwrap());
        // Qwen composes characters before it cuts them.
        let (apart, composed) = ("he\u{301}", "h\u{e9}");
        assert_eq!(model.tokenizer.encode(apart, false).unwrap(), model.tokenizer.encode(composed, false).unwrap());
    }
}

fn data_start(bytes: &[u8]) -> usize {
    let header = gguf::read_header(&mut Cursor::new(bytes), "test").unwrap();
    header.tensors.values().map(|t| t.start as usize).min().unwrap()
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
    let mut out = bytes.to_vec();
    out.splice(at..at + from.len(), to.iter().copied());
    out
}

#[test]
fn what_is_not_read_is_named() {
    let base = file();
    let cases: [(&[u8], &[u8], &str); 5] = [
        (b"llama\x16", b"gemma\x16", "architecture gemma is not supported"),
        (b"GGUF", b"GGML", "does not start with GGUF"),
        (b"GGUF\x02", b"GGUF\x01", "GGUF version = 1"),
        (b"smollm", b"smollX", "pre-tokenizer \"smollX\" is not known"),
        (b"blk.1.ffn_up.weight", b"blk.1.ffn_uq.weight", "model.layers.1.mlp.up_proj.weight is missing"),
    ];
    for (from, to, want) in cases {
        let error = open(&replace(base, from, to)).unwrap_err();
        assert!(error.contains(want), "{error}");
    }
    let error = open(&base[..base.len() - 4]).unwrap_err();
    assert!(error.contains("ends at byte"), "{error}");
}

#[test]
fn every_cut_through_the_header_is_an_error() {
    let bytes = file();
    for len in (0..data_start(bytes)).step_by(3) {
        assert!(gguf::read_header(&mut Cursor::new(&bytes[..len]), "test").is_err(), "{len}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_damage_makes_it_panic(flips in prop::collection::vec((0usize..12_000, any::<u8>()), 1..6)) {
        let mut bytes = file().to_vec();
        for (at, byte) in flips {
            if at < bytes.len() {
                bytes[at] = byte;
            }
        }
        // Damaged values give other values, damaged headers errors; neither a panic nor a huge allocation.
        let _ = open(&bytes);
    }

    #[test]
    fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let magic = b"GGUF\x03\x00\x00\x00";
        let n = bytes.len().min(magic.len());
        bytes[..n].copy_from_slice(&magic[..n]);
        let _ = gguf::read_header(&mut Cursor::new(&bytes), "test");
    }
}
