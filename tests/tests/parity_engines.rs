//! The native engine against the candle engine: log-probs, every parameter's gradient, and training steps.
use anyhow::Result;
use cohort_engine::candle::CandleEngine;
use cohort_engine::native::NativeEngine;
use cohort_engine::{AdamW, Backend, EngineError, PackedBatch, PackedSequence, Upstream};
use cohort_model::init::random_weights;
use cohort_model::{DecoderSpec, DeviceKind, Family, WeightSet, hf};
use cohort_tests::golden::{smollm2, smollm2_prompts, worst_tensor, worst_value};

const KV: usize = 1 << 20;

/// The candle engine's two forms: candle's primitives, and the operations of our CUDA kernels by their CPU twins.
type Form = fn(CandleEngine) -> Result<CandleEngine, EngineError>;
const FORMS: [(&str, Form); 2] = [("primitives", Ok), ("fused", CandleEngine::fused)];

/// Log-prob and gradient distances of one training pass, native against candle with `candle`'s form of the operations.
fn compare(
    spec: &DecoderSpec,
    weights: &WeightSet,
    batch: &PackedBatch,
    candle: impl Fn(CandleEngine) -> Result<CandleEngine, EngineError>,
) -> Result<(f32, String, f64)> {
    let n = batch.targets();
    let (d_logp, d_entropy): (Vec<f32>, Vec<f32>) =
        (0..n).map(|i| ((i as f32 * 0.7).sin(), (i as f32 * 0.3).cos() * 0.1)).unzip();
    let upstream = Upstream { d_logp: &d_logp, d_entropy: Some(&d_entropy) };
    let run = |engine: &mut dyn Backend| -> Result<_> {
        engine.import(weights)?;
        let forward = engine.forward(batch, true)?;
        engine.backward(upstream)?;
        Ok((forward, engine.gradients()?))
    };
    // One after the other: the real model's graph is large.
    let (native, native_gradients) = run(&mut NativeEngine::new(spec.clone(), 2, KV)?)?;
    let (candle, candle_gradients) = run(&mut candle(CandleEngine::new(spec.clone(), DeviceKind::Cpu, KV)?)?)?;
    let logp = worst_value(&native.logp, &candle.logp).max(worst_value(&native.entropy, &candle.entropy));
    // As in files: GPT-2's bias of keys, whose gradient is nothing but rounding, beside those of queries and values.
    let (ours, theirs) = (hf::stored(spec, &native_gradients)?, hf::stored(spec, &candle_gradients)?);
    let (name, gradient) = worst_tensor(&ours, &theirs)?;
    Ok((logp, name, gradient))
}

fn sequence(len: u32, step: u32, vocab: u32, temperature: f32) -> PackedSequence {
    let tokens = (0..len).map(|i| (i * i * 31 + i * step) % vocab).collect();
    // Every third target is left out, as tool outputs are.
    PackedSequence { tokens, targets: (1..len).filter(|t| t % 3 != 0).collect(), temperature, shared: 0 }
}

#[test]
fn random_models_agree_to_every_gradient() -> Result<()> {
    let base = DecoderSpec {
        family: Family::Llama,
        hidden: 72,
        layers: 3,
        heads: 9,
        kv_heads: 3,
        head_dim: 16,
        intermediate: 130,
        vocab: 531,
        max_context: 256,
        norm_eps: 1e-5,
        rope_theta: 1e5,
        tied_embeddings: true,
    };
    let wide = DecoderSpec { heads: 4, kv_heads: 4, head_dim: 24, tied_embeddings: false, ..base.clone() };
    let others = [Family::Qwen2, Family::Qwen3, Family::Gpt2].map(|family| DecoderSpec { family, layers: 2, ..wide.clone() });
    for spec in [base, wide].into_iter().chain(others) {
        let mut weights = random_weights(&spec, 11);
        // Larger than initial weights, so that attention is far from uniform.
        weights.0.values_mut().filter(|t| t.shape.len() == 2).for_each(|t| t.data.iter_mut().for_each(|x| *x *= 6.0));
        let vocab = spec.vocab as u32;
        let batch = PackedBatch {
            sequences: vec![
                sequence(70, 5, vocab, 1.0),
                sequence(1, 3, vocab, 1.0),
                sequence(33, 9, vocab, 0.8),
                sequence(2, 1, vocab, 1.5),
            ],
        };
        for (form, candle) in FORMS {
            let (logp, name, gradient) = compare(&spec, &weights, &batch, candle)?;
            let (family, tied) = (spec.family, spec.tied_embeddings);
            eprintln!("random {family:?}, tied {tied}, {form}: logp {logp:e}, gradient {gradient:e} ({name})");
            assert!(logp < 1e-4, "{form} {logp:e}");
            assert!(gradient < 1e-3, "{form} {name}: {gradient:e}");
        }
    }
    Ok(())
}

#[test]
fn training_steps_end_in_the_same_weights() -> Result<()> {
    let spec = DecoderSpec {
        family: Family::Llama,
        hidden: 40,
        layers: 2,
        heads: 5,
        kv_heads: 1,
        head_dim: 8,
        intermediate: 56,
        vocab: 97,
        max_context: 64,
        norm_eps: 1e-6,
        rope_theta: 1e4,
        tied_embeddings: true,
    };
    let weights = random_weights(&spec, 3);
    let adamw = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-6, weight_decay: 0.1 };
    let run = |engine: &mut dyn Backend| -> Result<_> {
        engine.import(&weights)?;
        for step in 0..3 {
            for micro in 0..2 {
                let batch = PackedBatch { sequences: vec![sequence(30, 5 + step, 97, 1.0), sequence(12, 3 + micro, 97, 1.0)] };
                engine.forward(&batch, true)?;
                engine.backward(Upstream { d_logp: &vec![-0.02; batch.targets()], d_entropy: None })?;
            }
            engine.update(&adamw, 1e-3, 0.5)?;
        }
        let (first, second, updates) = engine.optimizer_export()?;
        assert_eq!(updates, 3);
        Ok([engine.export()?, first, second])
    };
    let native = run(&mut NativeEngine::new(spec.clone(), 2, KV)?)?;
    let candle = run(&mut CandleEngine::new(spec, DeviceKind::Cpu, KV)?)?;
    for (what, (a, b)) in ["weights", "first moments", "second moments"].iter().zip(native.iter().zip(&candle)) {
        let (name, off) = worst_tensor(a, b)?;
        eprintln!("after 3 steps, {what}: {off:e} ({name})");
        assert!(off < 1e-3, "{what} {name}: {off:e}");
    }
    let (name, moved) = worst_tensor(&native[0], &weights)?;
    assert!(moved > 1e-2, "{name} moved by {moved:e} only: the comparison above says nothing");
    Ok(())
}

#[test]
fn smollm2_agrees_to_every_gradient() -> Result<()> {
    let Some(model) = smollm2("smollm2_agrees_to_every_gradient")? else { return Ok(()) };
    let sequence = |ids: &[u32]| PackedSequence {
        tokens: ids.to_vec(),
        targets: (1..ids.len() as u32).collect(),
        temperature: 1.0,
        shared: 0,
    };
    let prompts = smollm2_prompts()?;
    let batch = PackedBatch { sequences: prompts[1..4].iter().map(|p| sequence(&p.ids)).collect() };
    let (logp, name, gradient) = compare(&model.spec, &model.weights()?, &batch, Ok)?;
    eprintln!("SmolLM2, {} tokens: logp {logp:e}, gradient {gradient:e} ({name})", batch.tokens());
    assert!(logp < 1e-3, "{logp:e}");
    assert!(gradient < 1e-3, "{name}: {gradient:e}");
    Ok(())
}
