//! A GGUF file's own vocabulary, written as the tokenizer.json that Hugging Face's tokenizers would ship.
use super::{Header, Value};
use crate::ModelError;
use crate::tokenizer::{byte_level_json, split_json};
use serde_json::{Map, Value as Json, json};

/// `token_type` of control tokens, which text never produces unless it spells them out.
const CONTROL: i64 = 3;
/// `token_type` of tokens that a user added.
const USER_DEFINED: i64 = 4;

/// What Llama 3 splits text by.
const LLAMA3: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What Qwen 2 splits text by.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The vocabulary as tokenizer.json.
pub(crate) fn vocabulary(header: &Header, place: &str) -> Result<Vec<u8>, ModelError> {
    let fail = |problem: String| ModelError::Tokenizer { place: place.to_owned(), problem };
    let kind = header.text("tokenizer.ggml.model").unwrap_or("none");
    if kind != "gpt2" {
        return Err(fail(format!(
            "vocabulary of kind {kind:?} is not read (byte-level BPE, \"gpt2\", is); use the model's Hugging Face directory"
        )));
    }
    let tokens = header.texts("tokenizer.ggml.tokens", place)?;
    let mut vocab = Map::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocab.insert(token.clone(), Json::from(id)).is_some() {
            return Err(fail(format!("token {token:?} is in the vocabulary twice")));
        }
    }
    let mut merges = Vec::new();
    for merge in header.texts("tokenizer.ggml.merges", place)? {
        let Some((left, right)) = merge.split_once(' ') else {
            return Err(fail(format!("merge {merge:?} does not name two tokens")));
        };
        merges.push(json!([left, right]));
    }
    let added = added_tokens(header, tokens);
    let pre = header.text("tokenizer.ggml.pre").unwrap_or("default");
    let (pre_tokenizer, ignore_merges) = pre_tokenizer(pre).ok_or_else(|| {
        fail(format!("pre-tokenizer {pre:?} is not known; use the model's Hugging Face directory, which carries tokenizer.json"))
    })?;
    let post_processor = match bos(header, tokens) {
        Some((id, token)) => json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
        }),
        None => Json::Null,
    };
    // Qwen composes characters first.
    let normalizer = if pre == "qwen2" { json!({"type": "NFC"}) } else { Json::Null };
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": byte_level_json(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges,
        },
    });
    Ok(json.to_string().into_bytes())
}

/// Control and user-defined tokens.
fn added_tokens(header: &Header, tokens: &[String]) -> Vec<Json> {
    let Some(Value::Ints(types)) = header.metadata.get("tokenizer.ggml.token_type") else { return Vec::new() };
    let added = tokens.iter().zip(types).enumerate().filter(|(_, (_, kind))| matches!(**kind, CONTROL | USER_DEFINED));
    added
        .map(|(id, (token, kind))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": *kind == CONTROL})
        })
        .collect()
}

/// The token put before every text, if there is one.
fn bos<'a>(header: &Header, tokens: &'a [String]) -> Option<(u32, &'a str)> {
    if header.metadata.get("tokenizer.ggml.add_bos_token") != Some(&Value::Bool(true)) {
        return None;
    }
    let id = header.token("tokenizer.ggml.bos_token_id")?;
    Some((id, tokens.get(id as usize)?))
}

/// How a named pre-tokenizer cuts text, and whether whole words in the vocabulary skip the merges.
fn pre_tokenizer(name: &str) -> Option<(Json, bool)> {
    let sequence = |first: Json, regex: bool| json!({"type": "Sequence", "pretokenizers": [first, byte_level_json(regex)]});
    Some(match name {
        "smollm" | "starcoder" | "refact" | "codeshell" | "exaone" => {
            (sequence(json!({"type": "Digits", "individual_digits": true}), true), false)
        }
        "gpt-2" | "default" | "phi-2" | "mpt" | "olmo" | "jais" => (byte_level_json(true), false),
        "llama-bpe" | "llama3" | "llama-v3" => (sequence(split_json(LLAMA3), false), true),
        "qwen2" => (sequence(split_json(QWEN2), false), false),
        _ => return None,
    })
}
