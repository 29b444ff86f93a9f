//! What was generated, token by token, exactly.
//!
//! Invariants
//! - **E1** masked-in tokens are the sampled ids in the order they were sampled, with the sampler's own log-probs.
//! - **E2** every other token comes from the chat template and is masked out.
use crate::RolloutError;
use cohort_engine::Completion;
use cohort_protocol::{FinishReason, GroupId, PolicyVersion, SampleIx, Trajectory, Turn, VersionSpan};

/// Columns of a trajectory while it grows.
#[derive(Debug, Clone, Default)]
pub struct Transcript {
    tokens: Vec<u32>,
    mask: Vec<u8>,
    logp: Vec<f32>,
    logp_sampled: Vec<f32>,
    spans: Vec<VersionSpan>,
    /// The dialogue so far.
    pub turns: Vec<Turn>,
}

impl Transcript {
    /// No tokens yet, these turns.
    #[must_use]
    pub fn new(turns: Vec<Turn>) -> Self {
        Self { turns, ..Self::default() }
    }

    /// Tokens so far.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Text of the template: prompt, tool output, turn marks.
    pub fn push_template(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
        let len = self.tokens.len();
        self.mask.resize(len, 0);
        self.logp.resize(len, 0.0);
        self.logp_sampled.resize(len, 0.0);
    }

    /// Sampled tokens, with the range they have now.
    pub fn push_sampled(&mut self, completion: &Completion) -> (u32, u32) {
        let start = self.tokens.len() as u32;
        self.tokens.extend_from_slice(&completion.tokens);
        self.mask.resize(self.tokens.len(), 1);
        self.logp.extend_from_slice(&completion.logp);
        self.logp_sampled.extend_from_slice(&completion.logp_sampled);
        let mut at = start;
        for span in &completion.spans {
            self.spans.push(VersionSpan { start: at, len: span.tokens, version: PolicyVersion(span.version), exact: span.exact });
            at += span.tokens;
        }
        (start, at - start)
    }

    /// The finished trajectory, checked.
    pub fn finish(self, end: Ending) -> Result<Trajectory, RolloutError> {
        let trajectory = Trajectory {
            group: end.group,
            sample: end.sample,
            token_ids: self.tokens.into(),
            mask: self.mask,
            logp: self.logp.into(),
            logp_sampled: self.logp_sampled.into(),
            spans: self.spans,
            temperature: end.temperature,
            turns: self.turns,
            finish: end.finish,
            generate_us: end.generate_us,
            context_json: end.context_json,
        };
        trajectory.validate().map_err(|e| RolloutError::Episode(e.to_string()))?;
        Ok(trajectory)
    }
}

/// What a trajectory has besides its columns.
#[derive(Debug, Clone)]
pub struct Ending {
    /// Its group.
    pub group: GroupId,
    /// Its place in the group.
    pub sample: SampleIx,
    /// Temperature of the log-probs.
    pub temperature: f32,
    /// Why it ended.
    pub finish: FinishReason,
    /// Microseconds spent generating.
    pub generate_us: u64,
    /// The environment's context, a JSON object.
    pub context_json: String,
}
