//! New weights for the rollout workers: from the engine into a slot of the host's ring.
//!
//! Invariant **P1**: a slot is announced only after it was written completely and its digest is that of the engine's
//! weights. A learner that dies in between has announced nothing; its successor publishes the version again.
use cohort_actors::crash::{PUBLISH, crash_point};
use cohort_engine::{EngineError, EngineHandle, Label, RingError, WeightRing, WeightSource};
use cohort_model::WeightSet;
use cohort_protocol::PolicyVersion;
use std::sync::Arc;

/// Writes the engine's weights, which must be `version`, into `slot`.
///
/// Errors: [`EngineError::Input`] when the engine holds another version or there is no such slot.
pub async fn publish(
    engine: &EngineHandle,
    ring: Arc<dyn WeightRing>,
    slot: u32,
    version: PolicyVersion,
) -> Result<Label, EngineError> {
    engine.publish(Arc::new(Mortal(ring)), slot, version.0).await
}

/// A ring whose writer may die with a slot half written.
#[derive(Debug)]
struct Mortal(Arc<dyn WeightRing>);

impl WeightRing for Mortal {
    fn publish_through(
        &self,
        slot: u32,
        version: u64,
        weights: &dyn WeightSource,
        midway: &mut dyn FnMut(),
    ) -> Result<u64, RingError> {
        self.0.publish_through(slot, version, weights, &mut || {
            midway();
            crash_point(PUBLISH);
        })
    }

    fn publish_name(&self, slot: u32, version: u64, digest: u64) -> Result<bool, RingError> {
        let enough = self.0.publish_name(slot, version, digest)?;
        if enough {
            crash_point(PUBLISH);
        }
        Ok(enough)
    }

    fn fetch(&self, slot: u32, version: u64) -> Result<WeightSet, RingError> {
        self.0.fetch(slot, version)
    }

    fn slots(&self) -> u32 {
        self.0.slots()
    }
}
