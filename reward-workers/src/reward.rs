//! The trait every grader has, and what a grader sees.
//!
//! Invariants
//! - **G1** a grader answers exactly one outcome a sample, in sample order.
//! - **G2** what cannot be graded is [`ScoreOutcome::Failed`], never a score of 0.
use crate::RewardError;
use async_trait::async_trait;
use cohort_protocol::{GroupId, LeasePurpose, SampleIx, Score, ScoreOutcome, Turn, TurnRole, messages::reward::ScoreRequest};
use serde_json::{Map, Value};
use std::time::Duration;

/// One sample as a grader sees it: the dialogue, never token ids.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleInput {
    /// Its place in the group.
    pub sample: SampleIx,
    /// Its turns, in order.
    pub turns: Vec<Turn>,
    /// What the environment says about the episode.
    pub context: Map<String, Value>,
}

impl SampleInput {
    /// The text of the last assistant turn; empty where the policy never spoke.
    #[must_use]
    pub fn last_turn(&self) -> &str {
        self.assistant().last().unwrap_or_default()
    }

    /// The texts of all assistant turns, in order.
    pub fn assistant(&self) -> impl Iterator<Item = &str> {
        self.turns.iter().filter(|turn| turn.role == TurnRole::Assistant).map(|turn| turn.content.as_str())
    }
}

/// A whole group, so that relative graders can rank it.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreInput {
    /// Training or evaluation.
    pub purpose: LeasePurpose,
    /// The group.
    pub group: GroupId,
    /// Random key for graders that draw (the run's seed).
    pub seed: u64,
    /// The data row: `answer` and whatever further columns it has.
    pub item: Map<String, Value>,
    /// Samples in order.
    pub samples: Vec<SampleInput>,
}

impl ScoreInput {
    /// Reads the JSON columns of a request.
    ///
    /// Errors: [`RewardError::Request`] where the item or a context is not a JSON object.
    pub fn from_request(request: &ScoreRequest) -> Result<Self, RewardError> {
        let object = |what: String, text: &str| -> Result<Map<String, Value>, RewardError> {
            if text.is_empty() {
                return Ok(Map::new());
            }
            serde_json::from_str(text).map_err(|e| RewardError::Request { what, why: e.to_string() })
        };
        let mut samples = Vec::with_capacity(request.samples.len());
        for sample in &request.samples {
            let what = format!("context of group {} sample {}", request.group, sample.sample);
            samples.push(SampleInput {
                sample: sample.sample,
                turns: sample.turns.clone(),
                context: object(what, &sample.context_json)?,
            });
        }
        Ok(Self {
            purpose: request.purpose,
            group: request.group,
            seed: request.seed,
            item: object(format!("item of group {}", request.group), &request.item_json)?,
            samples,
        })
    }

    /// A column of the data row, or an explanation that names the columns there are.
    pub fn column(&self, name: &str) -> Result<&Value, String> {
        self.item.get(name).filter(|value| !value.is_null()).ok_or_else(|| {
            let have: Vec<&str> = self.item.keys().map(String::as_str).collect();
            format!("the data row has no column {name:?} (it has {}): add it or name another column", have.join(", "))
        })
    }
}

/// Grades groups. Implementations answer within their own deadlines and never panic on what a policy or a row says.
#[async_trait]
pub trait Reward: Send + Sync {
    /// Its name in the config, the breakdown and every error.
    fn name(&self) -> &str;

    /// One outcome a sample, in sample order (G1).
    async fn score(&self, input: &ScoreInput) -> Vec<ScoreOutcome>;

    /// Longest time that it takes for a group, tries and waits included, once no other group is before it. A worker whose
    /// graders have not finished one for longer is taken for hung. Default: 60 s, plenty for a rule.
    fn longest(&self) -> Duration {
        Duration::from_secs(60)
    }

    /// State of each circuit breaker behind it, `(name, state)`.
    fn breakers(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// A score and its named parts, before a grader's name is put to it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Grade {
    /// The reward.
    pub score: f64,
    /// Its parts.
    pub breakdown: Vec<(String, f64)>,
}

impl Grade {
    /// 1 or 0.
    #[must_use]
    pub fn pass(passed: bool) -> Self {
        Self { score: f64::from(u8::from(passed)), breakdown: Vec::new() }
    }

    /// A score without parts.
    #[must_use]
    pub fn of(score: f64) -> Self {
        Self { score, breakdown: Vec::new() }
    }

    /// Adds a part.
    #[must_use]
    pub fn with(mut self, name: &str, value: f64) -> Self {
        self.breakdown.push((name.to_owned(), value));
        self
    }
}

/// A pure rule over one sample. `Err` is the reason why it cannot be graded (a row without the column, say).
pub trait Rule: Send + Sync {
    /// Grades one sample.
    fn grade(&self, input: &ScoreInput, sample: &SampleInput) -> Result<Grade, String>;
}

/// A [`Rule`] as a [`Reward`].
pub struct RuleReward<R> {
    name: String,
    rule: R,
}

impl<R> RuleReward<R> {
    /// Names a rule.
    pub fn new(name: impl Into<String>, rule: R) -> Self {
        Self { name: name.into(), rule }
    }
}

#[async_trait]
impl<R: Rule> Reward for RuleReward<R> {
    fn name(&self) -> &str {
        &self.name
    }

    async fn score(&self, input: &ScoreInput) -> Vec<ScoreOutcome> {
        input
            .samples
            .iter()
            .map(|sample| match self.rule.grade(input, sample) {
                Ok(grade) => outcome(&self.name, grade),
                Err(why) => failed(&self.name, &why, false),
            })
            .collect()
    }
}

/// A grade as an outcome; a non-finite number becomes an error that names the grader.
#[must_use]
pub fn outcome(name: &str, grade: Grade) -> ScoreOutcome {
    if !grade.score.is_finite() {
        return failed(name, &format!("the score is {}: a score must be a finite number", grade.score), false);
    }
    if let Some((part, value)) = grade.breakdown.iter().find(|(_, value)| !value.is_finite()) {
        return failed(name, &format!("part {part:?} of the breakdown is {value}: it must be a finite number"), false);
    }
    ScoreOutcome::Scored(Score { score: grade.score, breakdown: grade.breakdown, metadata_json: "{}".to_owned() })
}

/// A failure that names its grader.
#[must_use]
pub fn failed(name: &str, why: &str, retryable: bool) -> ScoreOutcome {
    ScoreOutcome::Failed { error: format!("reward {name:?}: {why}"), retryable }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A group whose samples each say one thing.
    pub(crate) fn group(item: Value, texts: &[&str]) -> ScoreInput {
        let samples = texts
            .iter()
            .enumerate()
            .map(|(i, text)| SampleInput {
                sample: SampleIx(i as u16),
                turns: vec![Turn::text(TurnRole::User, "question"), Turn::text(TurnRole::Assistant, *text)],
                context: Map::new(),
            })
            .collect();
        let item = item.as_object().cloned().unwrap_or_default();
        ScoreInput { purpose: LeasePurpose::Train, group: GroupId(3), seed: 7, item, samples }
    }

    /// Scores, where all samples were graded.
    pub(crate) fn scores(outcomes: &[ScoreOutcome]) -> Vec<f64> {
        outcomes
            .iter()
            .map(|o| match o {
                ScoreOutcome::Scored(s) => s.score,
                ScoreOutcome::Failed { error, .. } => panic!("{error}"),
            })
            .collect()
    }

    /// The error of a sample that must have failed.
    pub(crate) fn error(outcome: &ScoreOutcome) -> &str {
        match outcome {
            ScoreOutcome::Failed { error, .. } => error,
            ScoreOutcome::Scored(s) => panic!("scored {}", s.score),
        }
    }

    /// Grades with a rule.
    pub(crate) fn grade<R: Rule>(rule: &R, item: Value, text: &str) -> Result<f64, String> {
        let input = group(item, &[text]);
        rule.grade(&input, &input.samples[0]).map(|g| g.score)
    }

    struct Says(f64);
    impl Rule for Says {
        fn grade(&self, _: &ScoreInput, _: &SampleInput) -> Result<Grade, String> {
            Ok(Grade::of(self.0).with("part", 1.0))
        }
    }

    #[tokio::test]
    async fn a_score_that_is_not_finite_is_an_error_naming_the_grader() {
        let input = group(Value::Null, &["a"]);
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let got = RuleReward::new("mine", Says(bad)).score(&input).await;
            assert!(error(&got[0]).starts_with("reward \"mine\": the score is"), "{got:?}");
        }
        assert_eq!(scores(&RuleReward::new("mine", Says(0.25)).score(&input).await), [0.25]);
    }

    #[test]
    fn a_context_that_is_not_an_object_is_refused() {
        let request = ScoreRequest {
            epoch: cohort_protocol::Epoch(1),
            purpose: LeasePurpose::Train,
            group: GroupId(9),
            attempt: cohort_protocol::AttemptId(1),
            item_json: "[1]".into(),
            seed: 0,
            samples: vec![],
        };
        let error = ScoreInput::from_request(&request).unwrap_err().to_string();
        assert!(error.contains("item of group 9"), "{error}");
    }
}
