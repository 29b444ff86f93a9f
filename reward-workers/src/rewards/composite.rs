//! The weighted composite: what `[rewards]` as a whole is. Every sample is graded by every part.
//!
//! A sample fails where a part that counts fails. A part of weight 0 only reports: its failure stands in the score's
//! metadata under `errors`.
use crate::config::Combine;
use crate::reward::{Reward, ScoreInput, failed};
use async_trait::async_trait;
use cohort_protocol::{Score, ScoreOutcome};
use serde_json::{Map, Value};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// The whole of `[rewards]`.
pub struct Composite {
    combine: Combine,
    parts: Vec<(Arc<dyn Reward>, f64)>,
}

impl Composite {
    /// Over parts with their weights, which [`crate::RewardsConfig::check`] has approved.
    #[must_use]
    pub fn new(combine: Combine, parts: Vec<(Arc<dyn Reward>, f64)>) -> Self {
        Self { combine, parts }
    }

    fn combine_sample(&self, outcomes: Vec<ScoreOutcome>) -> ScoreOutcome {
        let (mut terms, mut breakdown) = (Vec::new(), Vec::new());
        let (mut metadata, mut errors) = (Map::new(), Map::new());
        for ((part, weight), outcome) in self.parts.iter().zip(outcomes) {
            match outcome {
                ScoreOutcome::Scored(score) => {
                    if *weight != 0.0 {
                        terms.push((score.score, *weight));
                    }
                    breakdown.push((part.name().to_owned(), score.score));
                    breakdown.extend(score.breakdown.into_iter().map(|(k, v)| (format!("{}/{k}", part.name()), v)));
                    if let Some(Value::Object(own)) =
                        serde_json::from_str(&score.metadata_json).ok().filter(|v| v != &Value::Object(Map::new()))
                    {
                        metadata.insert(part.name().to_owned(), Value::Object(own));
                    }
                }
                ScoreOutcome::Failed { error, .. } if *weight == 0.0 => {
                    errors.insert(part.name().to_owned(), error.into());
                }
                failure @ ScoreOutcome::Failed { .. } => return failure,
            }
        }
        if !errors.is_empty() {
            metadata.insert("errors".to_owned(), Value::Object(errors));
        }
        match combine(self.combine, &terms) {
            Ok(score) if score.is_finite() => {
                ScoreOutcome::Scored(Score { score, breakdown, metadata_json: Value::Object(metadata).to_string() })
            }
            Ok(score) => failed(self.name(), &format!("combining {terms:?} gives {score}, which is not finite"), false),
            Err(why) => failed(self.name(), &why, false),
        }
    }
}

#[async_trait]
impl Reward for Composite {
    fn name(&self) -> &'static str {
        "rewards"
    }

    async fn score(&self, input: &ScoreInput) -> Vec<ScoreOutcome> {
        let graded = join_all(self.parts.iter().map(|(part, _)| part.score(input)).collect()).await;
        let mut columns: Vec<_> = Vec::with_capacity(graded.len());
        for ((part, _), outcomes) in self.parts.iter().zip(graded) {
            let (got, want) = (outcomes.len(), input.samples.len());
            columns.push(if got == want {
                outcomes.into_iter()
            } else {
                let why = format!("{got} outcomes for a group of {want} samples");
                vec![failed(part.name(), &why, false); want].into_iter()
            });
        }
        (0..input.samples.len()).map(|_| self.combine_sample(columns.iter_mut().filter_map(Iterator::next).collect())).collect()
    }

    /// Its parts grade side by side.
    fn longest(&self) -> Duration {
        self.parts.iter().map(|(part, _)| part.longest()).max().unwrap_or_default()
    }

    fn breakers(&self) -> Vec<(String, String)> {
        self.parts.iter().flat_map(|(part, _)| part.breakers()).collect()
    }
}

/// The one score of `(score, weight)` terms; no term has weight 0.
fn combine(how: Combine, terms: &[(f64, f64)]) -> Result<f64, String> {
    let weights: f64 = terms.iter().map(|(_, w)| w).sum();
    Ok(match how {
        Combine::WeightedSum => terms.iter().map(|(s, w)| s * w).sum(),
        Combine::WeightedAverage => terms.iter().map(|(s, w)| s * w).sum::<f64>() / weights,
        Combine::Min => terms.iter().map(|(s, _)| *s).fold(f64::INFINITY, f64::min),
        Combine::Product => terms.iter().map(|(s, _)| s).product(),
        Combine::GeometricMean => {
            if let Some((score, _)) = terms.iter().find(|(s, _)| *s < 0.0) {
                return Err(format!(
                    "score {score} is negative, which combine = \"geometric_mean\" cannot average: use weighted_average"
                ));
            }
            (terms.iter().map(|(s, w)| w * s.ln()).sum::<f64>() / weights).exp()
        }
    })
}

/// Waits for all futures of one task together.
async fn join_all<'a, T>(mut futures: Vec<Pin<Box<dyn Future<Output = T> + Send + 'a>>>) -> Vec<T> {
    let mut done: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    poll_fn(|cx| {
        let mut pending = false;
        for (slot, future) in done.iter_mut().zip(&mut futures) {
            if slot.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(value) => *slot = Some(value),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::tests::{error, group, scores};
    use crate::reward::{Grade, outcome};
    use proptest::prelude::*;
    use serde_json::json;
    use std::time::Duration;

    struct Says(&'static str, Vec<Option<f64>>);

    #[async_trait]
    impl Reward for Says {
        fn name(&self) -> &str {
            self.0
        }
        async fn score(&self, _: &ScoreInput) -> Vec<ScoreOutcome> {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let one = |s: &Option<f64>| match s {
                Some(s) => outcome(self.0, Grade::of(*s).with("part", 1.0)),
                None => failed(self.0, "unreachable", true),
            };
            self.1.iter().map(one).collect()
        }
    }

    fn composite(combine: Combine, parts: Vec<(Says, f64)>) -> Composite {
        Composite::new(combine, parts.into_iter().map(|(p, w)| (Arc::new(p) as Arc<dyn Reward>, w)).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn parts_run_together_and_stand_in_the_breakdown() {
        let rewards = composite(
            Combine::WeightedSum,
            vec![(Says("a", vec![Some(1.0), Some(0.5)]), 2.0), (Says("b", vec![Some(1.0), None]), 0.0)],
        );
        let begun = tokio::time::Instant::now();
        let got = rewards.score(&group(json!({}), &["x", "y"])).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
        assert_eq!(scores(&got), [2.0, 1.0]);
        let ScoreOutcome::Scored(first) = &got[0] else { panic!() };
        let names: Vec<_> = first.breakdown.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["a", "a/part", "b", "b/part"]);
        let ScoreOutcome::Scored(second) = &got[1] else { panic!() };
        assert!(second.metadata_json.contains("unreachable"), "a part that only reports does not fail the sample");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_part_or_a_wrong_count_never_reads_as_zero() {
        let input = group(json!({}), &["x", "y"]);
        let got = composite(Combine::Min, vec![(Says("a", vec![Some(1.0), None]), 1.0)]).score(&input).await;
        assert_eq!(scores(&got[..1]), [1.0]);
        assert!(error(&got[1]).contains("\"a\": unreachable"));
        let got = composite(Combine::Min, vec![(Says("a", vec![Some(1.0)]), 1.0)]).score(&input).await;
        assert!(error(&got[0]).contains("1 outcomes for a group of 2 samples"), "{got:?}");
        let got = composite(Combine::GeometricMean, vec![(Says("a", vec![Some(-1.0), Some(4.0)]), 1.0)]).score(&input).await;
        assert!(error(&got[0]).contains("negative"));
    }

    proptest! {
        #[test]
        fn every_mean_lies_between_its_scores(terms in proptest::collection::vec((0.0..5.0f64, 0.01..3.0f64), 1..6)) {
            let low = terms.iter().map(|t| t.0).fold(f64::INFINITY, f64::min);
            let high = terms.iter().map(|t| t.0).fold(0.0, f64::max);
            for how in [Combine::WeightedAverage, Combine::GeometricMean, Combine::Min] {
                let mean = combine(how, &terms).unwrap();
                prop_assert!(mean >= low - 1e-9 && mean <= high + 1e-9, "{how:?} {mean}");
            }
        }
    }

    #[test]
    fn combines_by_hand_worked_values() {
        let terms = [(0.5, 1.0), (1.0, 3.0)];
        assert_eq!(combine(Combine::WeightedSum, &terms), Ok(3.5));
        assert_eq!(combine(Combine::WeightedAverage, &terms), Ok(0.875));
        assert_eq!(combine(Combine::Product, &terms), Ok(0.5));
        assert!((combine(Combine::GeometricMean, &terms).unwrap() - 0.5f64.powf(0.25)).abs() < 1e-12);
        assert_eq!(combine(Combine::GeometricMean, &[(0.0, 1.0), (1.0, 1.0)]), Ok(0.0));
    }
}
