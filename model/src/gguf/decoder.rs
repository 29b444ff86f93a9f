//! The decoder in a GGUF file: architecture and weights in the canonical layout.
use super::{Entry, Header, Value, missing};
use crate::limits::checked;
use crate::spec::TensorSpec;
use crate::weights::ShapeError;
use crate::{DecoderSpec, ModelError, Tensor, WeightSet};
use candle_core::Device;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom};

/// The architecture that a header describes.
pub(crate) fn spec(header: &Header, place: &str) -> Result<DecoderSpec, ModelError> {
    let architecture = header.text("general.architecture").ok_or_else(|| missing("general.architecture", place))?;
    if architecture != "llama" {
        return Err(crate::hf::unsupported(architecture, place));
    }
    let key = |name: &str| format!("llama.{name}");
    let size = |name: &str| header.size(&key(name), place);
    let (hidden, heads) = (size("embedding_length")?, size("attention.head_count")?);
    let head_dim = match header.optional_size(&key("attention.key_length"), place)? {
        Some(width) => width,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    let rotated = header.optional_size(&key("rope.dimension_count"), place)?.unwrap_or(head_dim);
    let refuse = |name: &str, value: String, problem: &str| {
        Err(ModelError::Value { place: place.into(), key: key(name), value, problem: problem.into() })
    };
    if rotated != head_dim {
        return refuse("rope.dimension_count", rotated.to_string(), "only rotation of whole heads is implemented");
    }
    if let Some(kind) = header.text(&key("rope.scaling.type")).filter(|kind| *kind != "none") {
        return refuse("rope.scaling.type", kind.to_owned(), "scaled rotary embeddings are not implemented");
    }
    if header.tensors.contains_key("rope_freqs.weight") {
        return refuse("rope_freqs", "present".into(), "scaled rotary embeddings are not implemented");
    }
    if let Some(experts) = header.optional_size(&key("expert_count"), place)?.filter(|n| *n > 0) {
        return refuse("expert_count", experts.to_string(), "mixtures of experts are not implemented");
    }
    let embedding = header.tensors.get("token_embd.weight").ok_or_else(|| ModelError::Missing {
        place: place.into(),
        what: "tensor token_embd.weight".into(),
        remedy: "convert the model again".into(),
    })?;
    let eps = header.optional_float(&key("attention.layer_norm_rms_epsilon"), place)?;
    let eps = eps.ok_or_else(|| missing(&key("attention.layer_norm_rms_epsilon"), place))?;
    #[expect(clippy::cast_possible_truncation, reason = "the file holds an f32")]
    let norm_eps = eps as f32;
    let spec = DecoderSpec {
        hidden,
        layers: size("block_count")?,
        heads,
        kv_heads: header.optional_size(&key("attention.head_count_kv"), place)?.unwrap_or(heads),
        head_dim,
        intermediate: size("feed_forward_length")?,
        vocab: embedding.shape.first().copied().unwrap_or(0),
        max_context: size("context_length")?,
        norm_eps,
        rope_theta: header.optional_float(&key("rope.freq_base"), place)?.unwrap_or(10_000.0),
        tied_embeddings: !header.tensors.contains_key("output.weight"),
    };
    checked(spec, place)
}

/// What is read for one tensor of the architecture.
type Planned<'a> = (TensorSpec, String, &'a Entry);

/// Checks names and shapes of every tensor against an architecture.
pub(crate) fn check(header: &Header, spec: &DecoderSpec, place: &str) -> Result<(), ModelError> {
    plan(header, spec, place).map(drop)
}

fn plan<'a>(header: &'a Header, spec: &DecoderSpec, place: &str) -> Result<Vec<Planned<'a>>, ModelError> {
    let mut known = BTreeSet::new();
    let mut out = Vec::new();
    for want in spec.tensors() {
        let name = gguf_name(&want.name);
        let shape_error = |source| ModelError::Shape { place: format!("{place} ({name})"), source };
        let Some(entry) = header.tensors.get(&name) else {
            return Err(shape_error(ShapeError::Missing { name: want.name }));
        };
        if entry.shape != want.shape {
            return Err(shape_error(ShapeError::Shape { name: want.name, got: entry.shape.clone(), want: want.shape }));
        }
        known.insert(name.clone());
        out.push((want, name, entry));
    }
    if let Some(name) = header.tensors.keys().find(|name| !known.contains(*name)) {
        return Err(ModelError::Shape { place: place.to_owned(), source: ShapeError::Unexpected { name: name.clone() } });
    }
    Ok(out)
}

/// The weights, dequantized, with Hugging Face names and the rows of query and key projections in rotate-half order.
pub(crate) fn weights<R: Read + Seek>(
    file: &mut R,
    header: &Header,
    spec: &DecoderSpec,
    place: &str,
) -> Result<WeightSet, ModelError> {
    let mut out = WeightSet::default();
    for (want, name, entry) in plan(header, spec, place)? {
        let mut data = dequantize(file, &name, entry, place)?;
        if want.name.ends_with("q_proj.weight") || want.name.ends_with("k_proj.weight") {
            data = rotate_half_rows(&data, spec.head_dim, spec.hidden);
        }
        out.0.insert(want.name, Tensor { shape: want.shape, data });
    }
    Ok(out)
}

fn dequantize<R: Read + Seek>(file: &mut R, name: &str, entry: &Entry, place: &str) -> Result<Vec<f32>, ModelError> {
    let corrupt = |e: &dyn std::fmt::Display| ModelError::corrupt(place, format!("tensor {name}: {e}"));
    let mut raw = vec![0u8; entry.len];
    file.seek(SeekFrom::Start(entry.start)).map_err(|e| corrupt(&e))?;
    file.read_exact(&mut raw).map_err(|e| corrupt(&e))?;
    let packed = qtensor_from_ggml(entry.dtype, &raw, entry.shape.clone(), &Device::Cpu).map_err(|e| corrupt(&e))?;
    drop(raw);
    packed.dequantize(&Device::Cpu).and_then(|t| t.flatten_all()?.to_vec1()).map_err(|e| corrupt(&e))
}

/// Undoes the converter's permutation: within a head, row `2 i + j` (pairs side by side, as interleaved rotary embedding
/// wants them) goes to row `j * half + i` (halves, as rotate-half wants them).
fn rotate_half_rows(data: &[f32], head_dim: usize, width: usize) -> Vec<f32> {
    let half = head_dim / 2;
    let mut out = Vec::with_capacity(data.len());
    for head in data.chunks_exact(head_dim * width) {
        for row in 0..head_dim {
            let from = 2 * (row % half) + row / half;
            out.extend_from_slice(&head[from * width..][..width]);
        }
    }
    out
}

/// `model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`.
fn gguf_name(name: &str) -> String {
    if let Some((layer, part)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
        let part = match part {
            "input_layernorm.weight" => "attn_norm.weight",
            "self_attn.q_proj.weight" => "attn_q.weight",
            "self_attn.k_proj.weight" => "attn_k.weight",
            "self_attn.v_proj.weight" => "attn_v.weight",
            "self_attn.o_proj.weight" => "attn_output.weight",
            "post_attention_layernorm.weight" => "ffn_norm.weight",
            "mlp.gate_proj.weight" => "ffn_gate.weight",
            "mlp.up_proj.weight" => "ffn_up.weight",
            "mlp.down_proj.weight" => "ffn_down.weight",
            other => other,
        };
        return format!("blk.{layer}.{part}");
    }
    match name {
        "model.embed_tokens.weight" => "token_embd.weight",
        "model.norm.weight" => "output_norm.weight",
        "lm_head.weight" => "output.weight",
        other => other,
    }
    .to_owned()
}

impl Header {
    /// An array of texts.
    pub(super) fn texts(&self, key: &str, place: &str) -> Result<&[String], ModelError> {
        match self.metadata.get(key) {
            Some(Value::Texts(texts)) => Ok(texts),
            Some(other) => Err(super::wrong(key, other, "an array of texts", place)),
            None => Err(missing(key, place)),
        }
    }
}
