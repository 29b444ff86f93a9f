//! The engine against an f64 decoder, against itself in every other arrangement of the same work, and against bad input.
mod bf16;
mod exactness;
mod gradients;
mod int8;
mod lora;
mod parts;
mod recall;
mod reference;
mod refusals;
mod training;

use super::NativeEngine;
use crate::{Backend, Extend, PackedBatch, PackedSequence, Upstream};
use cohort_kernels::{Path, logprob};
use cohort_model::{DecoderSpec, Family, Tensor, WeightSet};

/// No size is a multiple of a vector or a panel.
fn odd_spec() -> DecoderSpec {
    DecoderSpec {
        family: Family::Llama,
        hidden: 50,
        layers: 2,
        heads: 6,
        kv_heads: 2,
        head_dim: 10,
        intermediate: 70,
        vocab: 131,
        max_context: 200,
        norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tied_embeddings: true,
    }
}

/// [`odd_spec`] in every family whose network is another one.
fn odd_specs() -> impl Iterator<Item = DecoderSpec> {
    FAMILIES.into_iter().map(|family| DecoderSpec { family, ..odd_spec() })
}

/// Families by network: Mistral's is Llama's.
const FAMILIES: [Family; 4] = [Family::Llama, Family::Qwen2, Family::Qwen3, Family::Gpt2];

/// Small enough for numerical differences of every parameter.
fn tiny_spec(tied_embeddings: bool) -> DecoderSpec {
    DecoderSpec {
        hidden: 10,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        intermediate: 14,
        vocab: 23,
        max_context: 40,
        tied_embeddings,
        ..odd_spec()
    }
}

/// Numbers in -1 to 1 from a counter.
fn noise(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

fn random_weights(spec: &DecoderSpec, seed: u64) -> WeightSet {
    let mut next = noise(seed);
    let mut tensor = |shape: &[usize]| {
        let mut value = || match shape {
            [_, inner] => 2.0 * next() / (*inner as f64).sqrt(),
            _ => 1.0 + 0.3 * next(),
        };
        (0..shape.iter().product()).map(|_| value() as f32).collect::<Vec<f32>>()
    };
    WeightSet(spec.tensors().into_iter().map(|t| (t.name, Tensor { data: tensor(&t.shape), shape: t.shape })).collect())
}

fn engine(spec: &DecoderSpec, path: Path, threads: usize) -> NativeEngine {
    let mut engine = NativeEngine::with_path(spec.clone(), path, threads, 64 << 20).unwrap();
    engine.import(&random_weights(spec, 1)).unwrap();
    engine
}

/// A sequence whose every token after the first is a target.
fn sequence(spec: &DecoderSpec, len: usize, seed: u64) -> PackedSequence {
    let mut next = noise(seed + 1000);
    let tokens = (0..len).map(|_| ((next() + 1.0) / 2.0 * spec.vocab as f64) as u32).collect();
    PackedSequence { tokens, targets: (1..len as u32).collect(), temperature: 0.5 + (seed % 4) as f32 * 0.25, shared: 0 }
}

/// Sequences of the given lengths that begin with the same tokens, none of them a target of any but the first.
fn family(spec: &DecoderSpec, beginning: u32, lengths: &[usize]) -> Vec<PackedSequence> {
    let mut all: Vec<_> = lengths.iter().zip(50..).map(|(len, seed)| sequence(spec, *len, seed)).collect();
    let (first, others) = all.split_first_mut().unwrap();
    for other in others {
        let shared = beginning as usize;
        other.tokens[..shared].copy_from_slice(&first.tokens[..shared]);
        other.targets = (beginning..other.tokens.len() as u32).collect();
        other.shared = beginning;
    }
    all
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Weights as bits, in the canonical order.
fn weight_bits(engine: &NativeEngine) -> Vec<u32> {
    engine.export().unwrap().0.values().flat_map(|tensor| bits(&tensor.data)).collect()
}
