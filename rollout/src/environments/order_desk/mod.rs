//! The order desk: a customer asks what an order comes to; the agent looks the order up, looks the price up, multiplies.
//!
//! ```text
//! user       What does order 4821 come to?
//! assistant  lookup(4821)
//! tool       lamp x 3
//! assistant  price(lamp)
//! tool       $7 each
//! assistant  That comes to $21.
//! ```
//!
//! Nothing can be memorised: records are hashes of order numbers, and a number that was copied wrongly finds another,
//! equally plausible record.
pub mod grade;
pub mod world;

use super::{Environment, Episode, Observation, object};
use crate::dataset::Dataset;
use crate::draw::{hash, permute};
use crate::{EnvironmentConfig, RolloutError};
use async_trait::async_trait;
use cohort_engine::DrawKey;
use cohort_protocol::{FinishReason, GroupId, SampledItem, ToolCall, ToolResult, Turn, TurnRole};
use serde_json::{Map, Value, json};
use world::{HELDOUT_EVERY, LOOKUP, ORDERS, Order, PRICE, TOOLS};

/// Held-out orders unless the configuration says otherwise.
const HELDOUT: u64 = 256;

/// See the module.
#[derive(Debug, Clone)]
pub struct OrderDesk {
    max_turns: u32,
}

impl OrderDesk {
    /// From its section.
    #[must_use]
    pub fn new(config: &EnvironmentConfig) -> Self {
        Self { max_turns: config.max_turns }
    }
}

#[async_trait]
impl Environment for OrderDesk {
    async fn reset(&self, item: &SampledItem, _key: DrawKey) -> Result<Box<dyn Episode>, RolloutError> {
        let number = object(item)?.get("order").and_then(Value::as_str).and_then(world::parse_order);
        let Some(order) = number else {
            return Err(RolloutError::Item { row: item.row, problem: "it has no \"order\" of four digits".into() });
        };
        Ok(Box::new(Desk { order, looked_up: None }))
    }

    fn max_turns(&self) -> u32 {
        self.max_turns
    }
}

struct Desk {
    order: Order,
    looked_up: Option<Order>,
}

#[async_trait]
impl Episode for Desk {
    fn opening(&self) -> Vec<Turn> {
        vec![Turn::text(TurnRole::User, self.order.question())]
    }

    fn tools(&self) -> &'static [&'static str] {
        &TOOLS
    }

    async fn call_tool(&mut self, call: &ToolCall) -> Result<Option<ToolResult>, RolloutError> {
        let found = match call.name.as_str() {
            LOOKUP => {
                self.looked_up = world::parse_order(&call.arguments);
                self.looked_up.map(|order| order.record())
            }
            // Prices are those of the order in hand.
            PRICE => self.looked_up.unwrap_or(self.order).price_of(&call.arguments).map(world::price_text),
            _ => return Ok(None),
        };
        let is_error = found.is_none();
        let content = found.unwrap_or_else(|| "not found".into());
        Ok(Some(ToolResult { name: call.name.clone(), content, is_error }))
    }

    async fn step(&mut self, _turn: &Turn) -> Result<Observation, RolloutError> {
        Ok(Observation::done())
    }

    fn context(&self, turns: &[Turn], _finish: FinishReason) -> Map<String, Value> {
        let verdict = grade::grade(turns, self.order);
        let fields = [
            ("answer", json!(verdict.answer)),
            ("expected", json!(self.order.total())),
            ("correct", json!(u8::from(verdict.correct))),
            ("format", json!(u8::from(verdict.format))),
        ];
        fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
    }
}

/// Ten thousand order numbers, every seventh held out.
#[derive(Debug, Clone, Copy)]
pub struct Orders {
    seed: u64,
    heldout: u64,
}

impl Orders {
    /// For a run's seed.
    pub fn new(config: &EnvironmentConfig, seed: u64) -> Result<Self, RolloutError> {
        let heldout = config.heldout.map_or(HELDOUT, u64::from);
        if heldout > Self::held() {
            let problem = format!("the order desk has {} held-out orders, {heldout} were asked for", Self::held());
            return Err(RolloutError::Config { place: "environment.heldout", problem });
        }
        Ok(Self { seed, heldout })
    }

    fn held() -> u64 {
        ORDERS.div_ceil(HELDOUT_EVERY)
    }

    fn item(number: u64) -> SampledItem {
        let order = Order(number as u16);
        let row = json!({"prompt": order.question(), "order": order.to_string(), "answer": order.total().to_string()});
        SampledItem { row: number, json: row.to_string() }
    }
}

impl Dataset for Orders {
    fn train_len(&self) -> u64 {
        ORDERS - Self::held()
    }

    fn train(&self, group: GroupId) -> SampledItem {
        let n = self.train_len();
        let index = permute(group.0 % n, n, hash(&[self.seed, group.0 / n]));
        // Runs of numbers between two multiples of `HELDOUT_EVERY`.
        let run = HELDOUT_EVERY - 1;
        Self::item(index / run * HELDOUT_EVERY + index % run + 1)
    }

    fn heldout_len(&self) -> u64 {
        self.heldout
    }

    fn heldout(&self, index: u64) -> SampledItem {
        Self::item(permute(index % self.heldout.max(1), Self::held(), 0) * HELDOUT_EVERY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn training_and_held_out_orders_are_disjoint() {
        let orders = Orders::new(&EnvironmentConfig::default(), 3).unwrap();
        let train: BTreeSet<u64> = (0..orders.train_len()).map(|g| orders.train(GroupId(g)).row).collect();
        let held: BTreeSet<u64> = (0..orders.heldout_len()).map(|i| orders.heldout(i).row).collect();
        assert_eq!((train.len() as u64, held.len()), (orders.train_len(), 256));
        assert!(train.iter().all(|n| *n < ORDERS && n % HELDOUT_EVERY != 0));
        assert!(held.iter().all(|n| *n < ORDERS && n % HELDOUT_EVERY == 0));
        let too_many = EnvironmentConfig { heldout: Some(1430), ..EnvironmentConfig::default() };
        assert!(Orders::new(&too_many, 3).is_err());
    }

    #[tokio::test]
    async fn a_perfect_agent_is_right_and_a_wrong_number_finds_another_record() {
        let desk = OrderDesk::new(&EnvironmentConfig::default());
        let mut episode = desk.reset(&Orders::item(4821), DrawKey::default()).await.unwrap();
        let call = |name: &str, arguments: &str| ToolCall { name: name.into(), arguments: arguments.into() };
        let right = episode.call_tool(&call(LOOKUP, "4821")).await.unwrap().unwrap();
        let wrong = episode.call_tool(&call(LOOKUP, "4812")).await.unwrap().unwrap();
        assert_ne!(right.content, wrong.content);
        assert!(episode.call_tool(&call(LOOKUP, "48")).await.unwrap().unwrap().is_error);
        assert!(episode.call_tool(&call(PRICE, "dragon")).await.unwrap().unwrap().is_error);
        assert!(episode.call_tool(&call("other", "1")).await.unwrap().is_none());
    }
}
