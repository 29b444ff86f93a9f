//! The JSON that graders outside this process read and answer: the same for HTTP endpoints and plug-in processes.
//!
//! A question holds `purpose`, `group`, `seed`, `item` (the data row) and `samples`, each with `sample`, `turns` and
//! `context`. An answer holds `scores`: one entry a sample, in order, each a number, `{"score": x, "breakdown": {..}}`
//! with an optional object `metadata`, or `{"error": ".."}` for a sample that cannot be graded.
use crate::reward::{SampleInput, ScoreInput, failed};
use cohort_protocol::{LeasePurpose, Score, ScoreOutcome, Turn};
use serde_json::{Map, Value, json};

/// The fields of a question about one group.
pub(crate) fn question(input: &ScoreInput) -> Map<String, Value> {
    let purpose = match input.purpose {
        LeasePurpose::Train => "train",
        LeasePurpose::Eval { .. } => "eval",
    };
    let samples: Vec<Value> = input.samples.iter().map(sample).collect();
    let fields = [
        ("purpose", Value::from(purpose)),
        ("group", input.group.0.into()),
        ("seed", input.seed.into()),
        ("item", input.item.clone().into()),
        ("samples", samples.into()),
    ];
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn sample(sample: &SampleInput) -> Value {
    let turns: Vec<Value> = sample.turns.iter().map(turn).collect();
    json!({ "sample": sample.sample, "turns": turns, "context": sample.context })
}

/// A turn without its token positions, which are the learner's affair.
fn turn(turn: &Turn) -> Value {
    let mut out = json!({ "role": turn.role, "content": turn.content });
    if let Some(reward) = turn.reward {
        out["reward"] = reward.into();
    }
    if !turn.tool_calls.is_empty() {
        out["tool_calls"] = json!(turn.tool_calls);
    }
    if !turn.tool_results.is_empty() {
        out["tool_results"] = json!(turn.tool_results);
    }
    out
}

/// Reads an answer's text. `Err` says what is wrong with it as a whole.
pub(crate) fn parse(text: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(text).map_err(|e| {
        let shown = excerpt(text);
        let hint = if ["NaN", "Infinity"].iter().any(|word| shown.contains(word)) {
            ": NaN and Infinity are not JSON, and a score must be finite"
        } else {
            ""
        };
        format!("the answer is not JSON ({e}){hint}; it begins {shown:?}")
    })
}

/// The outcomes in an answer. `Err` where the answer as a whole is unusable; a bad entry fails its own sample.
pub(crate) fn outcomes(name: &str, answer: &Value, samples: usize) -> Result<Vec<ScoreOutcome>, String> {
    let Some(scores) = answer.get("scores").and_then(Value::as_array) else {
        return Err(format!("the answer has no list \"scores\": it is {}", excerpt(answer.to_string().as_bytes())));
    };
    if scores.len() != samples {
        return Err(format!("{} scores for a group of {samples} samples: answer one entry a sample, in order", scores.len()));
    }
    let one = |(i, value): (usize, &Value)| match entry(value) {
        Ok(score) => ScoreOutcome::Scored(score),
        Err(why) => failed(name, &format!("sample {i}: {why}"), false),
    };
    Ok(scores.iter().enumerate().map(one).collect())
}

/// One entry of `scores`. Every number of a parsed JSON document is finite: what is not cannot be written in JSON.
fn entry(value: &Value) -> Result<Score, String> {
    let object = match value {
        Value::Number(_) | Value::Bool(_) => return Ok(score(finite("score", value)?, Vec::new(), None)),
        Value::Object(object) => object,
        other => return Err(format!("{other} is no score: expected a number or an object with \"score\"")),
    };
    if let Some(error) = object.get("error").filter(|error| !error.is_null()) {
        return Err(error.as_str().map_or_else(|| error.to_string(), str::to_owned));
    }
    if let Some(unknown) = object.keys().find(|key| !["score", "breakdown", "metadata", "error"].contains(&key.as_str())) {
        return Err(format!("unknown key {unknown:?}: an entry has score, breakdown, metadata, error"));
    }
    let main = finite("score", object.get("score").unwrap_or(&Value::Null))?;
    let breakdown = match object.get("breakdown") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Object(parts)) => {
            parts.iter().map(|(name, value)| Ok((name.clone(), finite(name, value)?))).collect::<Result<_, String>>()?
        }
        Some(other) => return Err(format!("breakdown is {other}: expected an object of numbers")),
    };
    let metadata = match object.get("metadata") {
        None | Some(Value::Null) => None,
        Some(Value::Object(metadata)) => Some(metadata),
        Some(other) => return Err(format!("metadata is {other}: expected an object")),
    };
    Ok(score(main, breakdown, metadata))
}

fn score(score: f64, breakdown: Vec<(String, f64)>, metadata: Option<&Map<String, Value>>) -> Score {
    let metadata_json = metadata.map_or_else(|| "{}".to_owned(), |m| Value::Object(m.clone()).to_string());
    Score { score, breakdown, metadata_json }
}

fn finite(what: &str, value: &Value) -> Result<f64, String> {
    let number = match value {
        Value::Bool(passed) => Some(f64::from(u8::from(*passed))),
        value => value.as_f64(),
    };
    number.filter(|n| n.is_finite()).ok_or_else(|| format!("{what} is {value}: expected a finite number"))
}

/// The first bytes of something, as text, for an error.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    const SHOWN: usize = 120;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).into_owned();
    if bytes.len() > SHOWN { format!("{text}..") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::tests::{error, group, scores};
    use proptest::prelude::*;

    #[test]
    fn a_question_carries_the_dialogue_without_token_positions() {
        let input = group(json!({"answer": 4}), &["four"]);
        let question = Value::Object(question(&input));
        assert_eq!(
            question,
            json!({"purpose": "train", "group": 3, "seed": 7, "item": {"answer": 4}, "samples": [
                {"sample": 0, "context": {}, "turns": [
                    {"role": "user", "content": "question"}, {"role": "assistant", "content": "four"}]}]})
        );
    }

    #[test]
    fn entries_are_numbers_objects_or_errors() {
        let answer = json!({"scores": [1, 0.5, true, {"score": 2, "breakdown": {"a": 1}, "metadata": {"m": "x"}}]});
        let got = outcomes("mine", &answer, 4).unwrap();
        assert_eq!(scores(&got), [1.0, 0.5, 1.0, 2.0]);
        let ScoreOutcome::Scored(last) = &got[3] else { panic!() };
        assert_eq!((last.breakdown.len(), last.metadata_json.as_str()), (1, "{\"m\":\"x\"}"));
        for (bad, want) in [
            (json!(null), "is no score"),
            (json!("1"), "is no score"),
            (json!({"score": null}), "expected a finite number"),
            (json!({"scor": 1}), "unknown key \"scor\""),
            (json!({"error": "cannot read it"}), "cannot read it"),
            (json!({"score": 1, "breakdown": [1]}), "object of numbers"),
        ] {
            let got = outcomes("mine", &json!({"scores": [bad, 1]}), 2).unwrap();
            let why = error(&got[0]);
            assert!(why.starts_with("reward \"mine\": sample 0: ") && why.contains(want), "{why}");
            assert_eq!(scores(&got[1..]), [1.0], "its neighbour is graded");
        }
    }

    #[test]
    fn wrong_counts_and_nonsense_are_errors_of_the_whole() {
        assert!(outcomes("m", &json!({"scores": [1]}), 2).unwrap_err().contains("1 scores for a group of 2 samples"));
        assert!(outcomes("m", &json!([1, 2]), 2).unwrap_err().contains("no list \"scores\""));
        assert!(parse(b"{\"scores\": [NaN]}").unwrap_err().contains("NaN and Infinity are not JSON"));
        assert!(parse(b"{\"scores\": [1e999]}").is_err());
        assert!(parse(b"<html>busy</html>").unwrap_err().contains("<html>busy"));
    }

    proptest! {
        #[test]
        fn no_answer_panics_or_gives_a_score_that_is_not_finite(text in "[\\[\\]{}\":,a-e0-9.\\-]{0,60}") {
            if let Ok(answer) = parse(text.as_bytes()) {
                for outcome in outcomes("m", &answer, 1).unwrap_or_default() {
                    if let ScoreOutcome::Scored(score) = outcome {
                        prop_assert!(score.score.is_finite());
                    }
                }
            }
        }
    }
}
