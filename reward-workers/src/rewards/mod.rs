//! One file a reward type.
pub mod composite;
pub mod contains;
pub mod exact_match;
pub mod format;
pub mod heuristic;
pub mod http;
pub mod json_schema;
pub mod length;
pub mod numeric;
pub mod order_desk;
pub mod process;
pub mod random;
pub mod regex;

use crate::registry::RewardType;
use crate::reward::RuleReward;
use cohort_actors::confine::Confiner;

/// Every built-in type with its summary for the generated docs; programs of users are confined by `confiner`.
pub(crate) fn builtin(confiner: &Confiner) -> Vec<RewardType> {
    let confiner = confiner.clone();
    let mut types = vec![
        RewardType::new("exact_match", "1 where the completion equals the row's answer, else 0.", |name, c| {
            Ok(RuleReward::new(name, exact_match::ExactMatch::new(c)))
        }),
        RewardType::new(
            "regex",
            "1 where a regular expression matches the completion, or captures the row's answer.",
            |name, c| Ok(RuleReward::new(name, regex::RegexReward::new(c)?)),
        ),
        RewardType::new(
            "numeric",
            "1 where the number in the completion equals the row's answer within a tolerance.",
            |name, c| Ok(RuleReward::new(name, numeric::Numeric::new(c)?)),
        ),
        RewardType::new("json_schema", "1 where the completion is JSON that fits a schema.", |name, c| {
            Ok(RuleReward::new(name, json_schema::JsonSchemaReward::new(c)?))
        }),
        RewardType::new("contains", "Which of a list of phrases stand in the completion.", |name, c| {
            Ok(RuleReward::new(name, contains::Contains::new(c)?))
        }),
        RewardType::new("length", "1 inside a range of lengths, falling to 0 outside.", |name, c| {
            Ok(RuleReward::new(name, length::Length::new(c)?))
        }),
        RewardType::new("format", "How many of the row's verifiable format constraints hold.", |name, c| {
            Ok(RuleReward::new(name, format::Format::new(c)))
        }),
        RewardType::new("order_desk", "The order desk's own verdict: 1 for the exact total.", |name, c| {
            Ok(RuleReward::new(name, order_desk::OrderDesk::new(c)))
        }),
        RewardType::new("random", "A coin or a uniform draw that no behaviour influences (a control experiment).", |name, c| {
            Ok(RuleReward::new(name, random::Random::new(c)?))
        }),
        RewardType::new("http", "Your own HTTP endpoint grades a group in one POST.", http::HttpReward::new),
        RewardType::new("process", "Your own program grades groups over its standard input and output.", move |name, config| {
            process::ProcessReward::new(name, config, &confiner)
        }),
    ];
    types.extend(heuristic::builtin());
    types
}
