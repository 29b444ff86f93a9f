//! Checks a plug-in command against the protocol, for people who write one.
use crate::reward::{Reward, SampleInput, ScoreInput};
use crate::rewards::process::{ProcessConfig, ProcessReward};
use cohort_actors::confine::Confiner;
use cohort_protocol::{GroupId, LeasePurpose, SampleIx, ScoreOutcome, Turn, TurnRole};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::time::Instant;

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// Whether it went well.
    pub passed: bool,
    /// What was seen.
    pub detail: String,
}

/// What came of all checks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Conformance {
    /// In order.
    pub checks: Vec<Check>,
}

impl Conformance {
    /// Whether every check passed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.passed)
    }
}

/// Runs a plug-in through the protocol: one sample, a group, unusual texts, a large group, and that equal questions get
/// equal answers. It is confined by `confiner`. `item` is a row like those of the data set. A failed first check ends the list: the rest would repeat it.
pub async fn conformance(config: ProcessConfig, confiner: &Confiner, item: Map<String, Value>) -> Conformance {
    let mut checks = Vec::new();
    let reward = match ProcessReward::new("conformance", config, confiner) {
        Ok(reward) => reward,
        Err(why) => {
            checks.push(Check { name: "config", passed: false, detail: why });
            return Conformance { checks };
        }
    };
    let long = "word ".repeat(40_000);
    let trials: [(&'static str, Vec<&str>); 5] = [
        ("hello and one sample", vec!["an answer"]),
        ("a group of four", vec!["a", "b", "c", "d"]),
        ("unusual texts", vec!["", "\u{0}\n\r\t\u{2028}", "zwölf € 🦀", "\"quoted\" \\ {\"score\": 1}"]),
        ("a group of 2 MB", vec![long.as_str(); 10]),
        ("the first sample again", vec!["an answer"]),
    ];
    let mut answers = Vec::new();
    for (name, texts) in trials {
        let begun = Instant::now();
        let outcomes = reward.score(&group(&item, &texts)).await;
        let error = outcomes.iter().find_map(|outcome| match outcome {
            ScoreOutcome::Failed { error, .. } => Some(error.clone()),
            ScoreOutcome::Scored(_) => None,
        });
        let passed = error.is_none();
        let detail = error.unwrap_or_else(|| format!("{} scores in {:?}", outcomes.len(), begun.elapsed()));
        checks.push(Check { name, passed, detail });
        if answers.is_empty() && !passed {
            return Conformance { checks };
        }
        answers.push(outcomes);
    }
    let same = answers.first() == answers.last();
    let detail = if same { "same answer" } else { "two answers to one question: a run is then not reproducible" };
    checks.push(Check { name: "deterministic", passed: same, detail: detail.to_owned() });
    Conformance { checks }
}

fn group(item: &Map<String, Value>, texts: &[&str]) -> ScoreInput {
    let samples = (0u16..)
        .zip(texts)
        .map(|(i, text)| SampleInput {
            sample: SampleIx(i),
            turns: vec![Turn::text(TurnRole::User, "a question"), Turn::text(TurnRole::Assistant, *text)],
            context: json!({ "correct": 0, "format": 0 }).as_object().cloned().unwrap_or_default(),
        })
        .collect();
    ScoreInput { purpose: LeasePurpose::Train, group: GroupId(0), seed: 0, item: item.clone(), samples }
}
