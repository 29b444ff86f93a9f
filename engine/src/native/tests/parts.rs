//! An optimizer's state in parts: the bits of the whole, and only the memory of the part.
use super::*;
use crate::Partition;
use crate::partition::testing::parts_are_the_whole;
use cohort_model::DtypeKind;
use std::ops::ControlFlow;

fn accumulate(engine: &mut dyn Backend, seed: u64) {
    let spec = engine.spec().clone();
    let batch = PackedBatch { sequences: (0..3).map(|i| sequence(&spec, 5 + 20 * i as usize, seed * 10 + i)).collect() };
    let targets = engine.forward(&batch, true).unwrap().logp.len();
    engine.backward(Upstream { d_logp: &vec![-1.0 / targets as f32; targets], d_entropy: None }).unwrap();
}

#[test]
fn ranks_that_keep_parts_compute_what_one_does() {
    for spec in odd_specs() {
        for dtype in [DtypeKind::F32, DtypeKind::Bf16] {
            let make = || -> Box<dyn Backend> {
                let mut engine = NativeEngine::with_path(spec.clone(), Path::detect(), 1, 64 << 20).unwrap().of(dtype);
                engine.import(&random_weights(&spec, 1)).unwrap();
                Box::new(engine)
            };
            parts_are_the_whole(&make, &accumulate);
        }
    }
}

#[test]
fn parts_of_adapters_are_parts_too() {
    let spec = odd_spec();
    let lora = lora::lora(&spec, &["q_proj", "down_proj"]);
    let make = || -> Box<dyn Backend> {
        let engine = NativeEngine::with_path(spec.clone(), Path::detect(), 1, 64 << 20).unwrap();
        let mut engine = engine.adapted(&lora, &random_weights(&spec, 1)).unwrap();
        engine.import(&lora::values(&spec, &lora)).unwrap();
        Box::new(engine)
    };
    parts_are_the_whole(&make, &accumulate);
}

#[test]
fn moments_that_are_not_kept_have_no_memory() {
    let spec = odd_spec();
    let mut whole = engine(&spec, Path::detect(), 1);
    let len = whole.layout.len();
    accumulate(&mut whole, 1);
    whole.update(&training::OPTIMIZER, 1e-2, 1.0).unwrap();
    assert_eq!(whole.training.moments().unwrap().0.len(), len);
    for part in Partition::all(3) {
        let kept = |engine: &NativeEngine| engine.training.moments().map(|(first, second)| (first.len(), second.len()));
        let size = (part.range(len).len(), part.range(len).len());
        assert!(size.0 < len / 2);
        let mut fresh = engine(&spec, Path::detect(), 1);
        fresh.keep_partition(part).unwrap();
        assert_eq!(kept(&fresh), None);
        accumulate(&mut fresh, 1);
        fresh.update_partition(&training::OPTIMIZER, 1e-2, 1.0, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(kept(&fresh), Some(size));
        let mut cut = engine(&spec, Path::detect(), 1);
        let (first, second, updates) = whole.optimizer_export().unwrap();
        cut.optimizer_import(&first, &second, updates).unwrap();
        cut.keep_partition(part).unwrap();
        assert_eq!(kept(&cut), Some(size));
    }
}
