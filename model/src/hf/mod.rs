//! A Hugging Face directory: config.json, safetensors files, tokenizer.json and their companions.
mod config;
mod gpt2;
mod names;
mod shards;

pub use config::spec_from_config;
pub(crate) use config::unsupported;
pub(crate) use names::fused;
pub use names::{canonical, stored};
pub(crate) use shards::{Shards, weights_from};

use crate::ModelError;
use serde_json::{Map, Value};
use std::path::Path;

/// A JSON file's object.
pub(crate) type Object = Map<String, Value>;

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
