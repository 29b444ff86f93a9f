//! Both engines against transformers: tiny random models of every family to every number, SmolLM2 to its logits.
use anyhow::Result;
use cohort_engine::candle::CandleEngine;
use cohort_engine::native::NativeEngine;
use cohort_engine::{Backend, Extend, PackedBatch, PackedSequence, Upstream};
use cohort_model::{DecoderSpec, DeviceKind, hf};
use cohort_tests::golden::{TinyLora, TinyModel, smollm2, smollm2_prompts, worst_tensor, worst_value};

const KV: usize = 64 << 20;

fn engines(spec: &DecoderSpec) -> Result<[(&'static str, Box<dyn Backend>); 2]> {
    Ok([
        ("native", Box::new(NativeEngine::new(spec.clone(), 2, KV)?)),
        ("candle", Box::new(CandleEngine::new(spec.clone(), DeviceKind::Cpu, KV)?)),
    ])
}

#[test]
fn tiny_models_give_transformers_numbers() -> Result<()> {
    for name in TinyModel::NAMES {
        let golden = TinyModel::open(name)?;
        for (engine_name, mut engine) in engines(&golden.spec)? {
            engine.import(&golden.weights)?;
            let logits = logits_of(engine.as_mut(), &golden)?;
            let logits = worst_value(&logits, &golden.all(|s| &s.logits));
            let got = engine.forward(&golden.batch(), true)?;
            let logp = worst_value(&got.logp, &golden.all(|s| &s.logp));
            let entropy = worst_value(&got.entropy, &golden.all(|s| &s.entropy));
            let (weight, weight_h) = (golden.all(|s| &s.weight), golden.all(|s| &s.weight_entropy));
            engine.backward(Upstream { d_logp: &weight, d_entropy: Some(&weight_h) })?;
            let gradients = engine.gradients()?;
            let stored = hf::stored(&golden.spec, &gradients)?;
            let (tensor, gradient) = worst_tensor(&stored, &golden.gradients)?;
            eprintln!(
                "{name} {engine_name}: logits {logits:e}, logp {logp:e}, entropy {entropy:e}, gradient {gradient:e} ({tensor})"
            );
            assert!(logits < 1e-4 && logp < 1e-4 && entropy < 1e-4, "{name} {engine_name}");
            assert!(gradient < 1e-3, "{name} {engine_name}: {tensor} {gradient:e}");
        }
    }
    Ok(())
}

#[test]
fn adapters_give_pefts_numbers() -> Result<()> {
    for name in TinyLora::NAMES {
        let golden = TinyLora::open(name)?;
        let engine = NativeEngine::new(golden.model.spec.clone(), 2, KV)?;
        let mut engine = engine.adapted(&golden.lora, &golden.model.weights)?;
        engine.import(&golden.adapters)?;
        let logits = worst_value(&logits_of(&mut engine, &golden.model)?, &golden.logits);
        let logp = worst_value(&engine.forward(&golden.model.batch(), true)?.logp, &golden.logp);
        let weight = golden.model.all(|s| &s.weight);
        engine.backward(Upstream { d_logp: &weight, d_entropy: None })?;
        let (tensor, gradient) = worst_tensor(&engine.gradients()?, &golden.gradients)?;
        eprintln!("{name} with adapters: logits {logits:e}, logp {logp:e}, gradient {gradient:e} ({tensor})");
        assert!(logits < 1e-4 && logp < 1e-4, "{name}");
        assert!(gradient < 1e-3, "{name}: {tensor} {gradient:e}");
        // The learner's name of the adapters is that of what it exports.
        assert_eq!(engine.export()?, golden.adapters);
    }
    Ok(())
}

/// Logits at every position, by appending one token of every sequence at a time.
fn logits_of(engine: &mut dyn Backend, golden: &TinyModel) -> Result<Vec<f32>> {
    let vocab = golden.spec.vocab;
    let memories = golden.sequences.iter().map(|_| engine.kv_open()).collect::<Result<Vec<_>, _>>()?;
    let mut out: Vec<Vec<f32>> = golden.sequences.iter().map(|_| Vec::new()).collect();
    let longest = golden.sequences.iter().map(|s| s.tokens.len()).max().unwrap_or(0);
    for at in 0..longest {
        let alive: Vec<usize> = (0..memories.len()).filter(|i| golden.sequences[*i].tokens.len() > at).collect();
        let work: Vec<_> =
            alive.iter().map(|i| Extend { kv: memories[*i], tokens: &golden.sequences[*i].tokens[at..=at] }).collect();
        let mut logits = vec![0.0; work.len() * vocab];
        engine.extend(&work, &mut logits)?;
        for (i, row) in alive.iter().zip(logits.chunks_exact(vocab)) {
            out[*i].extend_from_slice(row);
        }
    }
    memories.into_iter().for_each(|kv| engine.kv_close(kv));
    Ok(out.concat())
}

#[test]
fn smollm2_gives_transformers_logits() -> Result<()> {
    let Some(model) = smollm2("smollm2_gives_transformers_logits")? else { return Ok(()) };
    let prompts = smollm2_prompts()?;
    let weights = model.weights()?;
    let batch = PackedBatch {
        sequences: prompts
            .iter()
            .map(|p| PackedSequence {
                tokens: p.ids.clone(),
                targets: (1..p.ids.len() as u32).collect(),
                temperature: 1.0,
                shared: 0,
            })
            .collect(),
    };
    let want: Vec<f32> = prompts.iter().flat_map(|p| p.logp.clone()).collect();
    for (name, mut engine) in engines(&model.spec)? {
        engine.import(&weights)?;
        let logp = worst_value(&engine.forward(&batch, false)?.logp, &want);
        let vocab = model.spec.vocab;
        let memories = prompts.iter().map(|_| engine.kv_open()).collect::<Result<Vec<_>, _>>()?;
        let work: Vec<_> = prompts.iter().zip(&memories).map(|(p, kv)| Extend { kv: *kv, tokens: &p.ids }).collect();
        let mut logits = vec![0.0; work.len() * vocab];
        engine.extend(&work, &mut logits)?;
        let mut worst = 0f32;
        for (prompt, row) in prompts.iter().zip(logits.chunks_exact(vocab)) {
            let top = prompt.top.iter().map(|(id, value)| (row[*id as usize] - value).abs());
            worst = top.fold(worst, f32::max);
            let above = row.iter().filter(|x| **x > prompt.top[0].1 + 1e-3).count();
            assert_eq!(above, 0, "{name}: {:?} has another best token", prompt.text);
        }
        eprintln!("SmolLM2 {name}: log-prob {logp:e}, top logits {worst:e}");
        assert!(logp < 1e-3 && worst < 1e-3, "{name}: {logp:e} {worst:e}");
        greedy(engine.as_mut(), &prompts[0].ids, &prompts[0].greedy)?;
    }
    Ok(())
}

/// The engine's own greedy completion equals transformers'.
fn greedy(engine: &mut dyn Backend, prompt: &[u32], want: &[u32]) -> Result<()> {
    let kv = engine.kv_open()?;
    let mut logits = vec![0.0; engine.spec().vocab];
    let mut next = prompt.to_vec();
    let mut got = Vec::new();
    while got.len() < want.len() {
        engine.extend(&[Extend { kv, tokens: &next }], &mut logits)?;
        let best = (0u32..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id);
        got.push(best);
        next = vec![best];
    }
    engine.kv_close(kv);
    assert_eq!(got, want);
    Ok(())
}
