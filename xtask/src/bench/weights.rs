//! New weights on their way to the rollout workers of one host: named, written into the shared ring once, taken in.
use super::{Subject, median, since};
use anyhow::Result;
use cohort_engine::{EngineError, SharedRing};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

/// Workers that take a version in at the same time.
const WORKERS: [usize; 2] = [1, 8];

/// Seconds from the optimizer step's end: until the weights are named by their digest, until every process of the host can
/// read them, and for reading and checking them by one worker and by eight at once.
pub(crate) async fn on_one_host(subject: &Subject) -> Result<Value> {
    let engine = subject.engine()?;
    let ring = Arc::new(SharedRing::create(2)?);
    let (mut named, mut visible) = (Vec::new(), Vec::new());
    let mut fetched = WORKERS.map(|_| Vec::new());
    for run in 0..=subject.runs as u64 {
        let start = Instant::now();
        engine.advance(run, |_| Ok::<_, EngineError>(())).await??;
        let to_name = since(start);
        engine.publish(ring.clone(), (run % 2) as u32, run).await?;
        let to_all = since(start);
        let mut seconds = Vec::new();
        for workers in WORKERS {
            let start = Instant::now();
            let reader = |_| {
                let ring = SharedRing::inherit(ring.fd())?;
                Ok(std::thread::spawn(move || cohort_engine::WeightRing::fetch(&ring, (run % 2) as u32, run).map(drop)))
            };
            let readers = (0..workers).map(reader).collect::<Result<Vec<_>>>()?;
            for reader in readers {
                reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))??;
            }
            seconds.push(since(start));
        }
        // The first round touches the memory for the first time.
        if run > 1 {
            named.push(to_name);
            visible.push(to_all);
            fetched.iter_mut().zip(seconds).for_each(|(all, one)| all.push(one));
        }
    }
    let bytes = 4 * subject.spec.parameters();
    let [one, eight] = fetched.map(median);
    Ok(json!({
        "bytes": bytes, "named_s": median(named), "visible_s": median(visible), "read_by_1_s": one, "read_by_8_s": eight,
    }))
}
