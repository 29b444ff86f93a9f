//! How far SmolLM2 sampled in int8 is from SmolLM2 in f32: the figures of docs/sampling.md.
//!
//! `cargo test -p cohort-tests --test quantization -- --nocapture` prints them.
use anyhow::Result;
use cohort_engine::native::NativeEngine;
use cohort_engine::{Backend, EngineError, Extend, KvId};
use cohort_kernels::{Path, logprob, sampling};
use cohort_model::Quantization;
use cohort_tests::golden::{smollm2, smollm2_prompts};

/// Tokens drawn after each prompt.
const NEW: u32 = 48;

/// One engine and what it has read.
struct Policy {
    engine: NativeEngine,
    memories: Vec<KvId>,
    /// After each sequence's last token. `[sequences, vocab]`
    logits: Vec<f32>,
}

impl Policy {
    fn new(mut engine: NativeEngine, prompts: &[Vec<u32>]) -> Result<Self> {
        let memories = prompts.iter().map(|_| engine.kv_open()).collect::<Result<Vec<_>, _>>()?;
        let logits = vec![0.0; prompts.len() * engine.spec().vocab];
        let mut policy = Self { engine, memories, logits };
        policy.read(prompts)?;
        Ok(policy)
    }

    fn read(&mut self, tokens: &[Vec<u32>]) -> Result<(), EngineError> {
        let work: Vec<_> = self.memories.iter().zip(tokens).map(|(kv, tokens)| Extend { kv: *kv, tokens }).collect();
        self.engine.extend(&work, &mut self.logits)
    }

    /// log-softmax of one sequence's next token, and the most likely one.
    fn next(&self, sequence: usize) -> (Vec<f64>, usize) {
        let vocab = self.engine.spec().vocab;
        let row = &self.logits[sequence * vocab..][..vocab];
        let stats = logprob::row(Path::detect(), row, 1.0);
        let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(token, _)| token);
        (row.iter().map(|logit| f64::from(stats.logp(*logit))).collect(), best)
    }

    fn draw(&self, sequence: usize, position: u32) -> u32 {
        let vocab = self.engine.spec().vocab;
        let row = &self.logits[sequence * vocab..][..vocab];
        let key = sampling::Draw { group: 0, sample: sequence as u16, position, purpose: 0 };
        sampling::categorical(Path::detect(), row, &logprob::row(Path::detect(), row, 1.0), sampling::uniform(1, key))
    }
}

#[test]
fn smollm2_in_int8_stays_near_f32() -> Result<()> {
    let Some(model) = smollm2("smollm2_in_int8_stays_near_f32")? else { return Ok(()) };
    let prompts: Vec<_> = smollm2_prompts()?.into_iter().map(|prompt| prompt.ids).collect();
    let weights = model.weights()?;
    let policy = |quantization| -> Result<Policy> {
        let engine = NativeEngine::new(model.spec.clone(), 2, 64 << 20)?;
        let mut engine = engine.sampling(quantization).for_sampling();
        engine.import(&weights)?;
        Policy::new(engine, &prompts)
    };
    let (mut exact, mut int8) = (policy(Quantization::None)?, policy(Quantization::Int8)?);
    let (mut tokens, mut agree, mut sum, mut largest, mut kl, mut ratios) = (0.0, 0.0, 0.0, 0.0f64, 0.0, 0.0);
    for position in 0..NEW {
        let mut drawn = Vec::new();
        for sequence in 0..prompts.len() {
            let ((want, best), (got, own)) = (exact.next(sequence), int8.next(sequence));
            let token = int8.draw(sequence, position);
            let difference = want[token as usize] - got[token as usize];
            tokens += 1.0;
            agree += f64::from(u8::from(best == own));
            sum += difference.abs();
            largest = largest.max(difference.abs());
            ratios += difference.exp();
            kl += got.iter().zip(&want).map(|(got, want)| got.exp() * (got - want)).sum::<f64>();
            drawn.push(vec![token]);
        }
        exact.read(&drawn)?;
        int8.read(&drawn)?;
    }
    let [agree, mean, kl, ratio] = [agree, sum, kl, ratios].map(|total| total / tokens);
    println!(
        "SmolLM2-135M in int8, {tokens} tokens drawn: |logp difference| mean {mean:.4}, largest {largest:.3}; KL {kl:.5} nats a token; \
         importance ratio {ratio:.4}; the most likely token is f32's at {:.1} %",
        100.0 * agree
    );
    assert!(mean < 0.12 && largest < 1.5 && kl < 0.012 && (ratio - 1.0).abs() < 0.03 && agree > 0.93);
    assert!(mean > 1e-3, "that is not int8");
    Ok(())
}
