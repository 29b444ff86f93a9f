//! `order_desk`: hands on the verdict of the order desk environment, which alone knows the order book.
use crate::reward::{Grade, Rule, SampleInput, ScoreInput};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Keys of `type = "order_desk"`: none.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderDeskConfig {}

/// The rule: score and part `correct` from the context's `correct`, part `format` from its `format`.
#[derive(Debug)]
pub struct OrderDesk {}

impl OrderDesk {
    /// With these keys.
    #[must_use]
    pub fn new(_: OrderDeskConfig) -> Self {
        Self {}
    }
}

impl Rule for OrderDesk {
    fn grade(&self, _: &ScoreInput, sample: &SampleInput) -> Result<Grade, String> {
        let read = |key: &str| match sample.context.get(key).and_then(serde_json::Value::as_u64) {
            Some(bit @ (0 | 1)) => Ok(f64::from(u8::from(bit == 1))),
            _ => Err(format!(
                "the context's {key:?} is {}, expected 0 or 1: this reward needs [environment] type = \"order_desk\"",
                sample.context.get(key).map_or_else(|| "missing".to_owned(), ToString::to_string)
            )),
        };
        let correct = read("correct")?;
        Ok(Grade::of(correct).with("correct", correct).with("format", read("format")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::tests::group;
    use serde_json::json;

    #[test]
    fn reads_the_verdict_and_refuses_another_environment() {
        let rule = OrderDesk::new(OrderDeskConfig {});
        let mut input = group(json!({}), &["12"]);
        let why = rule.grade(&input, &input.samples[0]).unwrap_err();
        assert!(why.contains("missing") && why.contains("order_desk"), "{why}");
        for (correct, format) in [(0, 1), (1, 1)] {
            input.samples[0].context = json!({"correct": correct, "format": format}).as_object().unwrap().clone();
            let grade = rule.grade(&input, &input.samples[0]).unwrap();
            assert_eq!(grade.score, f64::from(correct));
            assert_eq!(grade.breakdown, [("correct".to_owned(), f64::from(correct)), ("format".to_owned(), f64::from(format))]);
        }
    }
}
