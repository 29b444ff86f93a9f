//! The decoder in a GGUF file: architecture and weights in the canonical layout.
use super::{Entry, Header, Value, missing};
use crate::family::Norm;
use crate::limits::checked;
use crate::spec::TensorSpec;
use crate::stored::Stored;
use crate::weights::ShapeError;
use crate::{DecoderSpec, Family, ModelError, WeightSet};
use candle_core::Device;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom};

/// The architecture that a header describes.
pub(crate) fn spec(header: &Header, place: &str) -> Result<DecoderSpec, ModelError> {
    let architecture = header.text("general.architecture").ok_or_else(|| missing("general.architecture", place))?;
    // A Mistral is converted as a llama.
    let known = [Family::Llama, Family::Qwen2, Family::Qwen3, Family::Gpt2]
        .into_iter()
        .find(|family| family.model_type() == architecture);
    let family = known.ok_or_else(|| crate::hf::unsupported(architecture, place))?;
    let key = |name: &str| format!("{architecture}.{name}");
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
        return refuse(
            "rope.scaling.type",
            kind.to_owned(),
            "scaled rotary embeddings are not implemented; take a model without",
        );
    }
    if header.tensors.contains_key("rope_freqs.weight") {
        return refuse("rope_freqs", "present".into(), "scaled rotary embeddings are not implemented; take a model without");
    }
    if let Some(experts) = header.optional_size(&key("expert_count"), place)?.filter(|n| *n > 0) {
        return refuse("expert_count", experts.to_string(), "mixtures of experts are not implemented; take a dense model");
    }
    let embedding = header.tensors.get("token_embd.weight").ok_or_else(|| ModelError::Missing {
        place: place.into(),
        what: "tensor token_embd.weight".into(),
        remedy: "convert the model again".into(),
    })?;
    let epsilon = match family.traits().norm {
        Norm::Rms => key("attention.layer_norm_rms_epsilon"),
        Norm::Layer => key("attention.layer_norm_epsilon"),
    };
    let eps = header.optional_float(&epsilon, place)?.ok_or_else(|| missing(&epsilon, place))?;
    #[expect(clippy::cast_possible_truncation, reason = "the file holds an f32")]
    let norm_eps = eps as f32;
    let spec = DecoderSpec {
        family,
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

/// What is read, and where it lies.
type Planned<'a> = (Stored, &'a Entry);

/// Checks names and shapes of every tensor against an architecture.
pub(crate) fn check(header: &Header, spec: &DecoderSpec, place: &str) -> Result<(), ModelError> {
    plan(header, spec, place).map(drop)
}

fn plan<'a>(header: &'a Header, spec: &DecoderSpec, place: &str) -> Result<Vec<Planned<'a>>, ModelError> {
    let mut known = BTreeSet::new();
    let mut out = Vec::new();
    for parts in tensors(spec) {
        let canonical = parts.first().map(|part| part.name.clone()).unwrap_or_default();
        let want = Stored::new(gguf_name(&canonical, spec.family), parts, false);
        let shape_error = |source| ModelError::Shape { place: format!("{place} ({})", want.name), source };
        let Some(entry) = header.tensors.get(&want.name) else {
            return Err(shape_error(ShapeError::Missing { name: canonical }));
        };
        if entry.shape != want.shape {
            let (got, want) = (entry.shape.clone(), want.shape.clone());
            return Err(shape_error(ShapeError::Shape { name: canonical, got, want }));
        }
        known.insert(want.name.clone());
        out.push((want, entry));
    }
    if let Some(name) = header.tensors.keys().find(|name| !known.contains(*name)) {
        return Err(ModelError::Shape { place: place.to_owned(), source: ShapeError::Unexpected { name: name.clone() } });
    }
    Ok(out)
}

/// Canonical tensors as converters put them together: GPT-2's queries, keys and values stay one matrix.
fn tensors(spec: &DecoderSpec) -> Vec<Vec<TensorSpec>> {
    let canonical = spec.tensors();
    if spec.family == Family::Gpt2 { crate::hf::fused(&canonical) } else { canonical.into_iter().map(|t| vec![t]).collect() }
}

/// The weights, dequantized, with canonical names and the rows of query and key projections in rotate-half order.
pub(crate) fn weights<R: Read + Seek>(
    file: &mut R,
    header: &Header,
    spec: &DecoderSpec,
    place: &str,
) -> Result<WeightSet, ModelError> {
    let mut out = WeightSet::default();
    for (stored, entry) in plan(header, spec, place)? {
        for (name, mut tensor) in stored.split(dequantize(file, &stored.name, entry, place)?) {
            // Only a llama's converter reorders them.
            let turned = name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight");
            if turned && spec.family == Family::Llama {
                tensor.data = rotate_half_rows(&tensor.data, spec.head_dim, spec.hidden);
            }
            out.0.insert(name, tensor);
        }
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
fn gguf_name(name: &str, family: Family) -> String {
    let (stem, kind) = name.rsplit_once('.').unwrap_or((name, ""));
    if let Some((layer, part)) = stem.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
        let part = match part {
            "input_layernorm" => "attn_norm",
            "self_attn.q_proj" if family == Family::Gpt2 => "attn_qkv",
            "self_attn.q_proj" => "attn_q",
            "self_attn.k_proj" => "attn_k",
            "self_attn.v_proj" => "attn_v",
            "self_attn.q_norm" => "attn_q_norm",
            "self_attn.k_norm" => "attn_k_norm",
            "self_attn.o_proj" => "attn_output",
            "post_attention_layernorm" => "ffn_norm",
            "mlp.gate_proj" => "ffn_gate",
            "mlp.up_proj" => "ffn_up",
            "mlp.down_proj" => "ffn_down",
            other => other,
        };
        return format!("blk.{layer}.{part}.{kind}");
    }
    let stem = match stem {
        "model.embed_tokens" => "token_embd",
        "model.embed_positions" => "position_embd",
        "model.norm" => "output_norm",
        "lm_head" => "output",
        other => other,
    };
    format!("{stem}.{kind}")
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
