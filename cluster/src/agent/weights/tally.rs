//! What of a version travelled, and how.
use cohort_protocol::PolicyVersion;

/// Chunks and bytes, whole and as what changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Chunks that travelled whole.
    pub whole_chunks: u64,
    /// Their bytes.
    pub whole_bytes: u64,
    /// Chunks that travelled as what changed.
    pub delta_chunks: u64,
    /// The bytes that that took.
    pub delta_bytes: u64,
}

impl Tally {
    /// One more chunk of so many bytes, whole.
    pub(super) fn whole(&mut self, bytes: usize) {
        self.whole_chunks += 1;
        self.whole_bytes += bytes as u64;
    }

    /// One more chunk as so many bytes of changes.
    pub(super) fn delta(&mut self, bytes: usize) {
        self.delta_chunks += 1;
        self.delta_bytes += bytes as u64;
    }

    /// Whether nothing travelled.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// A line of the log.
    pub(super) fn log(&self, version: PolicyVersion, what: &'static str) {
        let Self { whole_chunks, whole_bytes, delta_chunks, delta_bytes } = *self;
        tracing::info!(target: "cohort::weights", version = version.0, whole_chunks, whole_bytes, delta_chunks, delta_bytes, "{what}");
    }
}
