//! The safetensors files of a directory, and which tensors they hold.
use super::{names, read_object};
use crate::safetensors_file::{Entry, Header, read_header, read_tensor};
use crate::stored::Stored;
use crate::weights::ShapeError;
use crate::{DecoderSpec, ModelError, WeightSet};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

/// Buffers that some exporters write beside the weights; they are computed, not read. The last two are GPT-2's masks.
const COMPUTED: [&str; 3] = [".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"];

/// The safetensors files of a directory, their headers checked against an architecture.
#[derive(Debug, Clone)]
pub(crate) struct Shards {
    files: Vec<(PathBuf, Header)>,
    /// Which file holds each tensor.
    place_of: BTreeMap<String, usize>,
    /// What is read.
    tensors: Vec<Stored>,
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
        let tensors = check_names(found, spec);
        let tensors = tensors.map_err(|source| ModelError::Shape { place: dir.display().to_string(), source })?;
        Ok(Self { files, place_of, tensors })
    }

    /// Reads the values.
    pub(crate) fn weights(&self, spec: &DecoderSpec) -> Result<WeightSet, ModelError> {
        let mut open: Vec<Option<File>> = self.files.iter().map(|_| None).collect();
        let mut out = WeightSet::default();
        for want in &self.tensors {
            let missing = || ShapeError::Missing { name: want.name.clone() };
            let i = *self.place_of.get(&want.name).ok_or_else(|| self.shape(missing()))?;
            let (path, header) = &self.files[i];
            let file = match &mut open[i] {
                Some(file) => file,
                slot => slot.insert(File::open(path).map_err(ModelError::io("open", path))?),
            };
            let tensor = read_tensor(file, &want.name, &header[&want.name], &path.display().to_string())?;
            out.0.extend(want.split(tensor.data));
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
    let mut out = WeightSet::default();
    for want in check_names(header.iter().map(|(n, e)| (n.as_str(), e)), spec).map_err(shape)? {
        let tensor = read_tensor(file, &want.name, &header[&want.name], place)?;
        out.0.extend(want.split(tensor.data));
    }
    out.check(spec).map_err(shape)?;
    Ok(out)
}

/// Checks names and shapes of headers, and gives what is to be read. A tied model's file may repeat its output projection,
/// and carry buffers that are computed; both are left out.
fn check_names<'a>(found: impl Iterator<Item = (&'a str, &'a Entry)>, spec: &DecoderSpec) -> Result<Vec<Stored>, ShapeError> {
    let mut found: BTreeMap<&str, &Entry> = found.collect();
    let wanted = names::tensors(spec, found.contains_key("wte.weight"));
    for want in &wanted {
        let Some(entry) = found.remove(want.name.as_str()) else {
            return Err(ShapeError::Missing { name: want.name.clone() });
        };
        if entry.shape != want.shape {
            return Err(ShapeError::Shape { name: want.name.clone(), got: entry.shape.clone(), want: want.shape.clone() });
        }
    }
    let repeated = |name: &str| spec.tied_embeddings && name == "lm_head.weight";
    match found.keys().find(|name| !repeated(name) && !COMPUTED.iter().any(|end| name.ends_with(end))) {
        Some(name) => Err(ShapeError::Unexpected { name: (*name).to_owned() }),
        None => Ok(wanted),
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
