//! What changed in a model's weights after an optimizer step, on its way to another host that has the version before.
use super::bare_stream::{Datagrams, bare};
use super::spread::Route;
use super::{Subject, median};
use anyhow::Result;
use cohort_actors::certs::RunAuthority;
use cohort_cluster::agent::weights::delta;
use cohort_cluster::agent::weights::manifest::CHUNK;
use cohort_engine::{AdamW, EngineError, PackedBatch, PackedSequence, Upstream};
use cohort_kernels::bf16;
use cohort_model::WeightSet;
use cohort_protocol::PolicyVersion;
use serde_json::{Map, Value, json};
use std::time::Instant;

/// Learning rates of the steps.
const RATES: [f64; 2] = [1e-6, 1e-5];
/// Steps before the one that is looked at, so that moments are not those of a first step.
const BEFORE: usize = 3;

/// Bytes and seconds of a step's delta to one host, by learning rate; beside it what the same step changes in matrices rounded to
/// bf16, and the threads' rate of making and applying a delta.
pub(crate) async fn to_one_host(subject: &Subject, authority: &RunAuthority) -> Result<Value> {
    let mut report = Map::new();
    for rate in RATES {
        let (before, after) = step(subject, rate).await?;
        let full = 4 * subject.spec.parameters();
        let (apart, [made, applied]) = apart(&before, &after);
        let (rounded, _) = self::apart(&halved(&before), &halved(&after));
        let mut route = Route::new(authority, 1, 2)?;
        let (mut seconds, mut bare_seconds, mut bytes) = (Vec::new(), Vec::new(), 0);
        // There and back again: every version but the first two finds memory that was touched, and one before it.
        for version in 0..2 + 2 * subject.runs as u64 {
            let weights = if version % 2 == 0 { &before } else { &after };
            let (took, left) = route.carry(PolicyVersion(version), (version % 2) as u32, weights).await?;
            if version >= 2 && version % 2 == 1 {
                seconds.push(took);
                bytes = left.whole_bytes + left.delta_bytes;
                bare_seconds.push(bare(full, Datagrams::Default).await?);
            }
        }
        let (took, alone) = (median(seconds), median(bare_seconds));
        report.insert(
            format!("{rate:e}"),
            json!({
                "bytes": bytes, "of_full": bytes as f64 / full as f64, "to_1_s": took, "bare_quic_full_s": alone,
                "full_bare_over_delta": alone / took, "chunks_apart_of_full": apart, "bf16_of_full": rounded,
                "made_gb_per_s": made, "applied_gb_per_s": applied,
            }),
        );
    }
    Ok(Value::Object(report))
}

/// Weights before and after a step of AdamW on log-probs of pseudo-random tokens, some steps from the model as it is.
async fn step(subject: &Subject, rate: f64) -> Result<(WeightSet, WeightSet)> {
    let engine = subject.engine()?;
    let sequences = subject.prompts(2 * (BEFORE + 1), 64);
    let optimizer = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    let mut last = Vec::new();
    for (number, pair) in sequences.chunks(2).enumerate() {
        let sequence = |tokens: &Vec<u32>| PackedSequence {
            targets: (1..tokens.len() as u32).collect(),
            tokens: tokens.clone(),
            temperature: 1.0,
            shared: 0,
        };
        let batch = PackedBatch { sequences: pair.iter().map(sequence).collect() };
        let targets = batch.targets();
        engine
            .with_backend(move |backend| -> Result<(), EngineError> {
                backend.forward(&batch, true)?;
                backend.backward(Upstream { d_logp: &vec![-1.0 / targets as f32; targets], d_entropy: None })?;
                let norm = backend.grad_norm()?;
                backend.update(&optimizer, rate, 1.0 / norm.max(1.0))
            })
            .await??;
        if number + 1 >= BEFORE {
            last.push(engine.snapshot(number as u64).await?.0);
        }
    }
    let after = last.pop().unwrap_or_default();
    Ok((last.pop().unwrap_or_default(), after))
}

/// The part of the bytes that deltas of each tensor's chunks take, and GB/s of one thread for making and for applying them.
fn apart(before: &WeightSet, after: &WeightSet) -> (f64, [f64; 2]) {
    let (mut full, mut deltas, mut seconds) = (0, 0, [0.0; 2]);
    for (name, tensor) in &after.0 {
        let old: &[u8] = before.0.get(name).map_or(&[], |old| bytemuck::cast_slice(&old.data));
        let new: &[u8] = bytemuck::cast_slice(&tensor.data);
        for (old, new) in old.chunks(CHUNK as usize).zip(new.chunks(CHUNK as usize)) {
            let begun = Instant::now();
            let delta = delta::between(old, new, 0);
            seconds[0] += begun.elapsed().as_secs_f64();
            full += new.len();
            deltas += delta.as_ref().map_or(new.len(), Vec::len);
            let mut bytes = old.to_vec();
            let begun = Instant::now();
            let applied = delta.is_none_or(|delta| delta::apply(&mut bytes, 0, &delta).is_ok());
            seconds[1] += if applied { begun.elapsed().as_secs_f64() } else { f64::NAN };
        }
    }
    (deltas as f64 / full as f64, seconds.map(|s| full as f64 / 1e9 / s))
}

/// What products in bf16 read: matrices rounded, vectors as they are.
fn halved(set: &WeightSet) -> WeightSet {
    let mut set = set.clone();
    for tensor in set.0.values_mut().filter(|tensor| tensor.shape.len() == 2) {
        tensor.data.iter_mut().for_each(|value| *value = bf16::widen(bf16::round(*value)));
    }
    set
}
