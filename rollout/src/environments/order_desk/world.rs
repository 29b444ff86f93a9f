//! Orders, items and prices: pure functions of the order number.
use crate::draw::hash;
use std::fmt;

/// Order numbers are below this.
pub const ORDERS: u64 = 10_000;
/// Every so many-th number is held out.
pub const HELDOUT_EVERY: u64 = 7;
/// Tool: order number to item and quantity.
pub const LOOKUP: &str = "lookup";
/// Tool: item to price.
pub const PRICE: &str = "price";
/// Both tools.
pub const TOOLS: [&str; 2] = [LOOKUP, PRICE];
/// What is sold.
pub const ITEMS: [&str; 20] = [
    "lamp", "desk", "chair", "clock", "vase", "rug", "mirror", "shelf", "stool", "bench", "bowl", "plate", "mug", "tray",
    "basket", "candle", "cushion", "blanket", "frame", "hook",
];
/// Ways to ask.
const QUESTIONS: [(&str, &str); 4] = [
    ("What does order ", " come to?"),
    ("How much is order ", "?"),
    ("What is the total of order ", "?"),
    ("What do I owe for order ", "?"),
];
/// Salt of all records; the same in every run.
const SALT: u64 = 0x6f72_6465_7264_6573;

/// An order by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Order(pub u16);

impl fmt::Display for Order {
    /// The number in four digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}", self.0)
    }
}

/// An order number of exactly four digits.
#[must_use]
pub fn parse_order(text: &str) -> Option<Order> {
    if text.len() == 4 && text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok().map(Order) } else { None }
}

impl Order {
    fn draw(self, what: u64, n: u64) -> u64 {
        hash(&[SALT, u64::from(self.0), what]) % n
    }

    /// What was ordered.
    #[must_use]
    pub fn item(self) -> &'static str {
        ITEMS[self.draw(0, ITEMS.len() as u64) as usize]
    }

    /// How many, 1 to 9.
    #[must_use]
    pub fn quantity(self) -> u32 {
        1 + self.draw(1, 9) as u32
    }

    /// Price of any item for this customer, 1 to 9 dollars; `None` for what is not sold.
    #[must_use]
    pub fn price_of(self, item: &str) -> Option<u32> {
        let index = ITEMS.iter().position(|known| *known == item)?;
        Some(1 + self.draw(2 + index as u64, 9) as u32)
    }

    /// What the order comes to, in dollars.
    #[must_use]
    pub fn total(self) -> u32 {
        self.quantity() * self.price_of(self.item()).unwrap_or(0)
    }

    /// What the lookup tool says.
    #[must_use]
    pub fn record(self) -> String {
        format!("{} x {}", self.item(), self.quantity())
    }

    /// What the customer says.
    #[must_use]
    pub fn question(self) -> String {
        let (before, after) = QUESTIONS[self.draw(100, QUESTIONS.len() as u64) as usize];
        format!("{before}{self}{after}")
    }
}

/// What the price tool says.
#[must_use]
pub fn price_text(price: u32) -> String {
    format!("${price} each")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn only_four_digits_are_an_order() {
        assert_eq!(parse_order("0042"), Some(Order(42)));
        assert_eq!(Order(42).to_string(), "0042");
        for text in ["42", "00042", "+042", " 042", "4a21", "٤٨٢١"] {
            assert_eq!(parse_order(text), None, "{text}");
        }
    }

    #[test]
    fn no_constant_answer_is_often_right() {
        let mut totals = BTreeMap::new();
        for number in 0..ORDERS as u16 {
            *totals.entry(Order(number).total()).or_insert(0u32) += 1;
        }
        assert!(totals.values().all(|&n| n < 600), "{totals:?}");
        assert_eq!(totals.keys().next_back(), Some(&81));
    }
}
