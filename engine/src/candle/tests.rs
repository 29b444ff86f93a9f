//! What holds of this engine by itself; its numbers are compared with others' in the workspace's parity tests.
use super::*;
use crate::PackedSequence;
use cohort_model::Family;
use cohort_model::init::random_weights;

/// Every kind of network, tied and not.
fn specs() -> impl Iterator<Item = DecoderSpec> {
    let of = |family| [true, false].map(|tied| DecoderSpec { family, ..spec(tied) });
    [Family::Llama, Family::Qwen2, Family::Qwen3, Family::Gpt2].into_iter().flat_map(of)
}

fn spec(tied: bool) -> DecoderSpec {
    DecoderSpec {
        family: Family::Llama,
        hidden: 18,
        layers: 2,
        heads: 6,
        kv_heads: 2,
        head_dim: 6,
        intermediate: 27,
        vocab: 37,
        max_context: 64,
        norm_eps: 1e-5,
        rope_theta: 1e4,
        tied_embeddings: tied,
    }
}

/// Larger than initial weights, so that every part of the network matters.
fn weights(spec: &DecoderSpec) -> WeightSet {
    let mut weights = random_weights(spec, 5);
    for tensor in weights.0.values_mut().filter(|t| t.shape.len() == 2) {
        tensor.data.iter_mut().for_each(|x| *x *= 15.0);
    }
    weights
}

/// In both forms.
fn engines(tied: bool) -> [CandleEngine; 2] {
    engines_of(&spec(tied))
}

fn engines_of(spec: &DecoderSpec) -> [CandleEngine; 2] {
    let engine = || {
        let mut engine = CandleEngine::new(spec.clone(), DeviceKind::Cpu, 1 << 20).unwrap();
        engine.import(&weights(spec)).unwrap();
        engine
    };
    [engine(), engine().fused().unwrap()]
}

fn sequence(len: u32, seed: u32, temperature: f32) -> PackedSequence {
    PackedSequence {
        tokens: (0..len).map(|i| (i * 7 + seed * 3) % 37).collect(),
        targets: (1..len).collect(),
        temperature,
        shared: 0,
    }
}

fn batch() -> PackedBatch {
    PackedBatch { sequences: vec![sequence(9, 1, 1.0), sequence(1, 2, 1.0), sequence(5, 3, 0.7)] }
}

#[test]
fn every_parameter_gets_a_gradient() {
    for (spec, mut engine) in specs().flat_map(|spec| engines_of(&spec).map(|engine| (spec.clone(), engine))) {
        let n = engine.forward(&batch(), true).unwrap().logp.len();
        engine.backward(Upstream { d_logp: &vec![1.0; n], d_entropy: Some(&vec![0.1; n]) }).unwrap();
        let gradients = engine.gradients().unwrap();
        gradients.check(&spec).unwrap();
        for (name, tensor) in &gradients.0 {
            assert!(tensor.data.iter().any(|g| *g != 0.0), "{name} has no gradient");
        }
        // Hidden rows reach every row of every projection.
        let dense = gradients.0.iter().filter(|(name, _)| !name.contains("embed"));
        for (name, tensor) in dense {
            let zeros = tensor.data.iter().filter(|g| **g == 0.0).count();
            assert!(zeros * 10 < tensor.data.len(), "{name}: {zeros} of {} gradients are zero", tensor.data.len());
        }
    }
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    for (spec, mut engine) in specs().flat_map(|spec| engines_of(&spec).map(|engine| (spec.clone(), engine))) {
        let base = weights(&spec);
        let n = engine.forward(&batch(), true).unwrap().logp.len();
        let (d_logp, d_entropy): (Vec<f32>, Vec<f32>) = (0..n).map(|i| ((i as f32).sin(), (i as f32).cos() * 0.5)).unzip();
        engine.backward(Upstream { d_logp: &d_logp, d_entropy: Some(&d_entropy) }).unwrap();
        let gradients = engine.gradients().unwrap();
        let loss = |engine: &mut CandleEngine| {
            let f = engine.forward(&batch(), false).unwrap();
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
            dot(&f.logp, &d_logp) + dot(&f.entropy, &d_entropy)
        };
        for (name, gradient) in &gradients.0 {
            // Along the tensor's own gradient the slope is its norm.
            let norm = gradient.data.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            let step = 1e-2 / norm;
            let moved = |sign: f64| {
                let mut weights = base.clone();
                let tensor = weights.0.get_mut(name).unwrap();
                tensor.data.iter_mut().zip(&gradient.data).for_each(|(w, g)| *w += (sign * step * f64::from(*g)) as f32);
                weights
            };
            let mut at = |weights: WeightSet| {
                engine.import(&weights).unwrap();
                loss(&mut engine)
            };
            let slope = (at(moved(0.5)) - at(moved(-0.5))) / (step * norm);
            assert!((slope - norm).abs() < 0.02 * norm + 1e-3, "{name}: slope {slope}, gradient's norm {norm}");
        }
    }
}

/// What an engine computes: a training pass both ways, decoding by prompts and tokens, and the weights after an update.
#[derive(Debug, PartialEq)]
struct Pass {
    logp: Vec<f32>,
    entropy: Vec<f32>,
    gradients: WeightSet,
    logits: Vec<f32>,
    updated: WeightSet,
}

/// Learning rate of its update.
const RATE: f32 = 1e-2;

fn pass(mut engine: CandleEngine) -> Pass {
    let n = batch().targets();
    let (d_logp, d_entropy): (Vec<f32>, Vec<f32>) = (0..n).map(|i| ((i as f32).sin(), (i as f32).cos() * 0.5)).unzip();
    let Forward { logp, entropy, .. } = engine.forward(&batch(), true).unwrap();
    engine.backward(Upstream { d_logp: &d_logp, d_entropy: Some(&d_entropy) }).unwrap();
    let gradients = engine.gradients().unwrap();
    let mut logits = vec![0.0; 2 * 37];
    let (a, b) = (engine.kv_open().unwrap(), engine.kv_open().unwrap());
    let (first, second) = (sequence(40, 1, 1.0).tokens, sequence(23, 2, 1.0).tokens);
    for (x, y) in [(0..17, 0..20), (17..39, 20..22), (39..40, 22..23)] {
        let work = [Extend { kv: a, tokens: &first[x] }, Extend { kv: b, tokens: &second[y] }];
        engine.extend(&work, &mut logits).unwrap();
    }
    engine.update(&AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-3, weight_decay: 0.1 }, f64::from(RATE), 1.0).unwrap();
    Pass { logp, entropy, gradients, logits, updated: engine.export().unwrap() }
}

/// Both round in f32, in other orders: a few units in the last place a sum, which the layers pass on.
fn assert_near(spec: &DecoderSpec, a: &Pass, b: &Pass) {
    let far = |a: &[f32], b: &[f32]| {
        let scale = a.iter().fold(1e-6, |m: f32, x| m.max(x.abs()));
        a.iter().zip(b).fold(0.0, |m: f32, (a, b)| m.max((a - b).abs())) / scale
    };
    for (what, a, b) in [("logp", &a.logp, &b.logp), ("entropy", &a.entropy, &b.entropy), ("logits", &a.logits, &b.logits)] {
        assert!(far(a, b) < 1e-5, "{:?} {what}: {}", spec.family, far(a, b));
    }
    let largest = a.gradients.0.values().flat_map(|t| &t.data).fold(0.0, |m: f32, x| m.max(x.abs()));
    for ((name, a), b) in a.gradients.0.iter().zip(b.gradients.0.values()) {
        // GPT-2's bias of keys has no gradient but rounding.
        let none = a.data.iter().all(|x| x.abs() < 1e-5 * largest);
        assert!(none || far(&a.data, &b.data) < 1e-4, "{:?} {name}: {}", spec.family, far(&a.data, &b.data));
    }
    for ((name, a), b) in a.updated.0.iter().zip(b.updated.0.values()) {
        // An update moves a weight by up to the learning rate, whatever its gradient's size.
        let off = a.data.iter().zip(&b.data).fold(0.0, |m: f32, (a, b)| m.max((a - b).abs()));
        assert!(off < 1e-2 * RATE, "{:?} weight of {name}: {off}", spec.family);
    }
}

/// The custom operations against candle's primitives: results, every gradient, what decoding gives, an update.
#[test]
fn both_forms_agree() {
    for spec in specs() {
        let [primitives, fused] = engines_of(&spec).map(pass);
        assert_near(&spec, &primitives, &fused);
    }
}

/// On a GPU: the CPU's numbers, and equal bits of equal calls (C2).
#[cfg(feature = "cuda")]
#[test]
fn the_gpu_agrees_with_the_cpu_and_with_itself() {
    use std::io::Write;
    let found = gpus();
    if !found.as_ref().is_ok_and(|count| *count > 0) {
        assert!(std::env::var_os("COHORT_REQUIRE_GPU").is_none(), "COHORT_REQUIRE_GPU is set and there is no GPU: {found:?}");
        let note = format!("SKIPPED: the candle engine did not run on a GPU: {found:?}\n");
        std::io::stderr().write_all(note.as_bytes()).unwrap();
        return;
    }
    for spec in specs() {
        let on_gpu = || {
            let mut engine = CandleEngine::new(spec.clone(), DeviceKind::Cuda, 1 << 20).unwrap();
            engine.import(&weights(&spec)).unwrap();
            pass(engine)
        };
        let [primitives, _] = engines_of(&spec).map(pass);
        let first = on_gpu();
        assert_near(&spec, &primitives, &first);
        assert!(first == on_gpu(), "equal calls gave other bits");
    }
}

#[test]
fn heads_wider_than_the_kernels_stay_with_primitives() {
    let wide = DecoderSpec { head_dim: 130, ..spec(true) };
    let error = CandleEngine::new(wide, DeviceKind::Cpu, 1 << 20).unwrap().fused().err().unwrap();
    assert!(error.to_string().contains("130") && error.to_string().contains("128"), "{error}");
}

#[test]
fn a_fork_goes_on_where_it_was_cut() {
    for mut engine in engines(true) {
        let tokens = sequence(40, 1, 1.0).tokens;
        let (mut want, mut got) = (vec![0.0; 37], vec![0.0; 37]);
        let whole = engine.kv_open().unwrap();
        engine.extend(&[Extend { kv: whole, tokens: &tokens }], &mut want).unwrap();
        for cut in [0, 1, 16, 33] {
            let fork = engine.kv_fork(whole, cut).unwrap();
            assert_eq!(engine.kv_len(fork), cut);
            engine.extend(&[Extend { kv: fork, tokens: &tokens[cut..] }], &mut got).unwrap();
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5), "cut at {cut}");
            engine.kv_close(fork);
        }
        assert!(engine.kv_fork(whole, 41).is_err());
    }
}

#[test]
fn the_sampler_and_the_learner_agree_however_tokens_are_cut() {
    for mut engine in engines(true) {
        let a = sequence(40, 1, 1.0);
        let b = sequence(23, 2, 1.0);
        let want = engine.forward(&PackedBatch { sequences: vec![a.clone(), b.clone()] }, false).unwrap().logp;
        let (ka, kb) = (engine.kv_open().unwrap(), engine.kv_open().unwrap());
        let vocab = 37;
        let mut logits = vec![0.0; 2 * vocab];
        let logp = |row: &[f32], token: u32| {
            let max = row.iter().copied().fold(f32::MIN, f32::max);
            row[token as usize] - max - row.iter().map(|x| (x - max).exp()).sum::<f32>().ln()
        };
        engine
            .extend(&[Extend { kv: ka, tokens: &a.tokens[..20] }, Extend { kv: kb, tokens: &b.tokens[..3] }], &mut logits)
            .unwrap();
        for i in 0..20 {
            for (row, seq, at, offset) in [(0, &a, 20 + i, 0), (1, &b, 3 + i, 39)] {
                if at < seq.tokens.len() {
                    let got = logp(&logits[row * vocab..][..vocab], seq.tokens[at]);
                    assert!((got - want[offset + at - 1]).abs() < 1e-4, "{at}: {got} {}", want[offset + at - 1]);
                }
            }
            if i < 19 {
                let work =
                    [Extend { kv: ka, tokens: &a.tokens[20 + i..=20 + i] }, Extend { kv: kb, tokens: &b.tokens[3 + i..=3 + i] }];
                engine.extend(&work, &mut logits).unwrap();
            }
        }
        // Cut back and say something else.
        engine.kv_truncate(ka, 10);
        assert_eq!(engine.kv_len(ka), 10);
        engine.extend(&[Extend { kv: ka, tokens: &a.tokens[10..15] }], &mut logits[..vocab]).unwrap();
        assert!((logp(&logits[..vocab], a.tokens[15]) - want[14]).abs() < 1e-4);
    }
}

#[test]
fn gradients_accumulate_and_an_update_moves_the_loss_down() {
    for mut engine in engines(true) {
        let n = batch().targets();
        let up = vec![-1.0; n];
        let mut step = |times: usize| {
            for _ in 0..times {
                engine.forward(&batch(), true).unwrap();
                engine.backward(Upstream { d_logp: &up, d_entropy: None }).unwrap();
            }
            engine.grad_norm().unwrap()
        };
        let once = step(1);
        let twice = step(1);
        assert!((twice - 2.0 * once).abs() < 1e-4 * once, "{once} {twice}");
        let before: f32 = engine.forward(&batch(), false).unwrap().logp.iter().sum();
        let adamw = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        engine.update(&adamw, 1e-3, 0.5).unwrap();
        assert_eq!(engine.grad_norm().unwrap(), 0.0);
        let after: f32 = engine.forward(&batch(), false).unwrap().logp.iter().sum();
        assert!(after > before, "{before} {after}");
        let (first, second, updates) = engine.optimizer_export().unwrap();
        assert_eq!(updates, 1);
        engine.optimizer_import(&first, &second, 1).unwrap();
        assert_eq!(engine.optimizer_export().unwrap(), (first, second, 1));
    }
}

#[test]
fn ranks_that_keep_parts_of_the_optimizers_state_compute_what_one_does() {
    let accumulate = |engine: &mut dyn Backend, step: u64| {
        let n = engine.forward(&batch(), true).unwrap().logp.len();
        let up = vec![-0.1 - step as f32; n];
        engine.backward(Upstream { d_logp: &up, d_entropy: None }).unwrap();
    };
    for form in 0..2 {
        let make = || -> Box<dyn Backend> { Box::new(engines(true).into_iter().nth(form).unwrap()) };
        crate::partition::testing::parts_are_the_whole(&make, &accumulate);
    }
}

#[test]
fn equal_calls_give_equal_bits() {
    let run = |form: usize| {
        let mut engine = engines(false).into_iter().nth(form).unwrap();
        for _ in 0..2 {
            let n = engine.forward(&batch(), true).unwrap().logp.len();
            engine.backward(Upstream { d_logp: &vec![0.3; n], d_entropy: None }).unwrap();
            engine.update(&AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 }, 1e-2, 1.0).unwrap();
        }
        engine.export().unwrap()
    };
    assert_eq!(run(0), run(0));
    assert_eq!(run(1), run(1));
}

#[test]
fn what_is_wrong_is_said_and_changes_nothing() {
    for mut engine in engines(true) {
        let before = engine.export().unwrap();
        let input = |e: EngineError| matches!(e, EngineError::Input(_));
        assert!(input(engine.backward(Upstream { d_logp: &[], d_entropy: None }).unwrap_err()));
        let bad = PackedBatch {
            sequences: vec![PackedSequence { tokens: vec![1, 40], targets: vec![1], temperature: 1.0, shared: 0 }],
        };
        assert!(input(engine.forward(&bad, false).unwrap_err()));
        let n = engine.forward(&batch(), true).unwrap().logp.len();
        assert!(input(engine.backward(Upstream { d_logp: &[1.0], d_entropy: None }).unwrap_err()));
        let nan = vec![f32::NAN; n];
        assert!(matches!(engine.backward(Upstream { d_logp: &nan, d_entropy: None }), Err(EngineError::NonFinite(_))));
        // The refusals left the pass as it was.
        engine.backward(Upstream { d_logp: &vec![f32::MAX; n], d_entropy: None }).unwrap();
        let adamw = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
        assert!(matches!(engine.update(&adamw, 1e-3, 1.0), Err(EngineError::NonFinite(_))));
        assert_eq!(engine.export().unwrap(), before);
        let kv = engine.kv_open().unwrap();
        let mut logits = vec![0.0; 37];
        let long = vec![0; 65];
        assert!(matches!(engine.extend(&[Extend { kv, tokens: &long }], &mut logits), Err(EngineError::Capacity(_))));
        assert_eq!(engine.kv_len(kv), 0);
        let mut other = before.clone();
        other.0.remove("model.norm.weight");
        assert!(input(engine.import(&other).unwrap_err()));
        #[cfg(not(feature = "cuda"))]
        assert!(CandleEngine::new(spec(true), DeviceKind::Cuda, 1).err().is_some_and(|e| e.to_string().contains("no CUDA")));
    }
}
