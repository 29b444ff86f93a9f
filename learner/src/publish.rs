//! New weights for the rollout workers: from the engine into a slot of the host's ring.
//!
//! Invariant **P1**: a slot is announced only after it was written completely and its digest is that of the engine's
//! weights. A learner that dies in between has announced nothing; its successor publishes the version again.
use cohort_actors::crash::{PUBLISH, crash_point};
use cohort_engine::{EngineError, EngineHandle, Label, WeightRing};
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
    let label = engine.publish(ring, slot, version.0).await?;
    crash_point(PUBLISH);
    Ok(label)
}
