//! Text to tokens and back.
//!
//! Invariants
//! - **T1** what a [`Detokenizer`] has put out, with its `finish`, is exactly [`Tokenizer::decode`] of all tokens.
//! - **T2** a token outside the vocabulary decodes to nothing; it is never an error and never a panic.
use crate::ModelError;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use tokenizers::DecoderWrapper;

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    json: Vec<u8>,
    place: String,
    special: BTreeSet<u32>,
    /// The bytes of every token, for byte-level vocabularies.
    bytes: Option<Vec<Box<[u8]>>>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("place", &self.place).field("vocab", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// From the bytes of a tokenizer.json. `place` names the file in errors.
    pub fn from_json(json: Vec<u8>, place: &str) -> Result<Self, ModelError> {
        let fail = |e: tokenizers::Error| ModelError::Tokenizer { place: place.to_owned(), problem: e.to_string() };
        let mut inner = tokenizers::Tokenizer::from_bytes(&json).map_err(fail)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(fail)?;
        let special = inner.get_added_tokens_decoder().iter().filter(|(_, t)| t.special).map(|(id, _)| *id).collect();
        let bytes = matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))).then(|| byte_table(&inner));
        Ok(Self { inner, json, place: place.to_owned(), special, bytes })
    }

    /// One token per byte and the three tokens of ChatML (`<|endoftext|>` 256, `<|im_start|>` 257, `<|im_end|>` 258):
    /// the tokenizer of random models.
    pub fn bytes() -> Result<Self, ModelError> {
        let mut vocab: Map<String, Value> = (0..=255u8).map(|b| (byte_char(b).to_string(), Value::from(b))).collect();
        let mut added = Vec::new();
        for (token, id) in [("<|endoftext|>", 256), ("<|im_start|>", 257), ("<|im_end|>", 258)] {
            vocab.insert(token.to_owned(), Value::from(id));
            added.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}));
        }
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": byte_level_json(true), "post_processor": null, "decoder": byte_level_json(true),
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                      "vocab": vocab, "merges": []},
        });
        Self::from_json(json.to_string().into_bytes(), "byte tokenizer")
    }

    /// The tokenizer.json that this is.
    #[must_use]
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// Highest token id plus one.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        let added = self.inner.get_added_tokens_decoder().keys().max().map_or(0, |id| *id as usize + 1);
        self.inner.get_vocab_size(true).max(added)
    }

    /// Token ids of a text. Special tokens that the text spells out become those tokens. `add_special` also adds what
    /// the model wants around every text (a begin-of-sequence token): not after a chat template, which writes its own.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, ModelError> {
        let fail = |e: tokenizers::Error| ModelError::Tokenizer { place: self.place.clone(), problem: e.to_string() };
        Ok(self.inner.encode_fast(text, add_special).map_err(fail)?.get_ids().to_vec())
    }

    /// Text of token ids; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, ModelError> {
        if let Some(table) = &self.bytes {
            let wanted = ids.iter().filter(|id| !(skip_special && self.is_special(**id)));
            let bytes: Vec<u8> = wanted.filter_map(|id| table.get(*id as usize)).flatten().copied().collect();
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
        let fail = |e: tokenizers::Error| ModelError::Tokenizer { place: self.place.clone(), problem: e.to_string() };
        self.inner.decode(ids, skip_special).map_err(fail)
    }

    /// Text of tokens as they come.
    #[must_use]
    pub fn detokenizer(&self, skip_special: bool) -> Detokenizer<'_> {
        Detokenizer { tokenizer: self, skip_special, held: Vec::new(), ids: Vec::new(), context: 0, given: 0 }
    }

    /// Whether a token is special: part of the format, not of the text.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The id of a token.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, as the vocabulary writes it.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The bytes that a token stands for, in byte-level vocabularies.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.bytes.as_ref()?.get(id as usize).map(AsRef::as_ref)
    }
}

/// Turns a stream of tokens into text: a character comes out with the token that completes it.
#[derive(Debug)]
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Byte-level: the start of an unfinished character (at most 3 bytes).
    held: Vec<u8>,
    /// Otherwise: tokens whose text may still change, after `context` tokens whose text is out and which only say how
    /// the next ones are spaced.
    ids: Vec<u32>,
    context: usize,
    given: usize,
}

impl Detokenizer<'_> {
    /// Takes a token; returns the text that is now certain.
    pub fn push(&mut self, id: u32) -> Result<String, ModelError> {
        if self.skip_special && self.tokenizer.is_special(id) {
            return Ok(String::new());
        }
        let Some(table) = &self.tokenizer.bytes else { return self.push_windowed(id) };
        self.held.extend_from_slice(table.get(id as usize).map_or(&[][..], AsRef::as_ref));
        let mut out = String::new();
        let mut chunks = self.held.utf8_chunks().peekable();
        let mut keep = 0;
        while let Some(chunk) = chunks.next() {
            out.push_str(chunk.valid());
            let rest = chunk.invalid();
            if chunks.peek().is_none() && std::str::from_utf8(rest).is_err_and(|e| e.error_len().is_none()) {
                keep = rest.len();
            } else if !rest.is_empty() {
                out.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.held.drain(..self.held.len() - keep);
        Ok(out)
    }

    /// Text of what is still held back.
    pub fn finish(self) -> Result<String, ModelError> {
        if !self.held.is_empty() {
            return Ok(char::REPLACEMENT_CHARACTER.to_string());
        }
        let whole = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok(whole.get(self.given..).unwrap_or_default().to_owned())
    }

    /// For other vocabularies: decode a short window again, and give what follows the text that is already out.
    fn push_windowed(&mut self, id: u32) -> Result<String, ModelError> {
        self.ids.push(id);
        let whole = self.tokenizer.decode(&self.ids, self.skip_special)?;
        if whole.len() <= self.given || whole.ends_with(char::REPLACEMENT_CHARACTER) || !whole.is_char_boundary(self.given) {
            return Ok(String::new());
        }
        let out = whole[self.given..].to_owned();
        // The tokens just given become the context of the next ones.
        self.ids.drain(..self.context);
        self.context = self.ids.len();
        self.given = self.tokenizer.decode(&self.ids, self.skip_special)?.len();
        Ok(out)
    }
}

/// The byte-level step of a tokenizer.json, with or without GPT-2's own splitting.
pub(crate) fn byte_level_json(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// A splitting step of a tokenizer.json.
pub(crate) fn split_json(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

/// The character that byte-level vocabularies write for a byte (GPT-2's alphabet): itself where it is printable in
/// Latin-1, otherwise one of the 68 characters from U+0100.
fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(0x100 + rank).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The bytes of every token: through the alphabet, or as they stand where a character is outside it (added tokens).
fn byte_table(inner: &tokenizers::Tokenizer) -> Vec<Box<[u8]>> {
    let alphabet: std::collections::HashMap<char, u8> = (0..=255).map(|b| (byte_char(b), b)).collect();
    let last = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
    // Ids beyond a vocabulary's size come only from damaged files; the table does not follow them.
    (0..last.min(2 * inner.get_vocab_size(true)) as u32)
        .map(|id| {
            let token = inner.id_to_token(id).unwrap_or_default();
            let bytes: Option<Vec<u8>> = token.chars().map(|c| alphabet.get(&c).copied()).collect();
            bytes.unwrap_or_else(|| token.into_bytes()).into_boxed_slice()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_round_trips_and_specials_are_found() {
        let t = Tokenizer::bytes().unwrap();
        let text = "<|im_start|>user\nhé 🙂\t12 <|im_end|>";
        let ids = t.encode(text, false).unwrap();
        assert_eq!(ids[0], 257);
        assert_eq!(*ids.last().unwrap(), 258);
        assert_eq!(t.decode(&ids, false).unwrap(), text);
        assert_eq!(t.decode(&ids, true).unwrap(), "user\nhé 🙂\t12 ");
        assert_eq!(t.vocab_size(), 259);
        assert_eq!(t.decode(&[65, 99_999, u32::MAX], false).unwrap(), "A");
    }

    #[test]
    fn a_character_comes_out_with_its_last_byte() {
        let t = Tokenizer::bytes().unwrap();
        let mut d = t.detokenizer(true);
        let out: Vec<String> = "é!".bytes().map(|b| d.push(u32::from(b)).unwrap()).collect();
        assert_eq!(out, ["", "é", "!"]);
        assert_eq!(d.push(0xf0).unwrap(), "");
        assert_eq!(d.finish().unwrap(), "\u{fffd}");
    }

    #[test]
    fn garbage_is_an_error() {
        for bytes in ["", "{}", "[1]", r#"{"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}"#] {
            let error = Tokenizer::from_json(bytes.as_bytes().to_vec(), "here.json").unwrap_err();
            assert!(error.to_string().starts_with("here.json: tokenizer:"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn streaming_equals_decoding_at_once(ids in prop::collection::vec(0u32..262, 0..60), skip in any::<bool>()) {
            let t = Tokenizer::bytes().unwrap();
            let mut d = t.detokenizer(skip);
            let mut text = String::new();
            for id in &ids {
                text += &d.push(*id).unwrap();
            }
            text += &d.finish().unwrap();
            prop_assert_eq!(text, t.decode(&ids, skip).unwrap());
            prop_assert_eq!(t.decode(&ids, skip).unwrap(), t.inner.decode(&ids, skip).unwrap());
        }
    }
}
