//! Whether an episode at the order desk was right.
use super::world::{LOOKUP, Order, PRICE, TOOLS};
use crate::agents::tool::parse_calls;
use cohort_protocol::{ToolCall, Turn, TurnRole};

/// A graded episode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The dollars that the last turn names.
    pub answer: Option<u32>,
    /// The order was looked up by its number, the price by its item, and the answer is the product; nothing else was done.
    pub correct: bool,
    /// Every turn is a well-formed call but the last, which is an answer.
    pub format: bool,
}

/// Grades a dialogue about an order.
#[must_use]
pub fn grade(turns: &[Turn], order: Order) -> Verdict {
    let said: Vec<&Turn> = turns.iter().filter(|turn| turn.role == TurnRole::Assistant).collect();
    let Some((last, calls)) = said.split_last() else { return Verdict { answer: None, correct: false, format: false } };
    let answer = parse_answer(&last.content);
    let calls: Vec<ToolCall> = calls.iter().flat_map(|turn| parse_calls(&turn.content, &TOOLS)).collect();
    let format = answer.is_some() && calls.len() + 1 == said.len();
    let is = |call: &ToolCall, name: &str, argument: &str| call.name == name && call.arguments == argument;
    let used_tools = match calls.as_slice() {
        [first, second] => is(first, LOOKUP, &order.to_string()) && is(second, PRICE, order.item()),
        _ => false,
    };
    Verdict { answer, correct: format && used_tools && answer == Some(order.total()), format }
}

/// The one amount in an answer such as `$42.` or `That comes to 42.`: exactly one number, of at most four digits without
/// leading zeros, not part of a word, with nothing but letters, spaces, `$` before it and `.` after it.
#[must_use]
pub fn parse_answer(text: &str) -> Option<u32> {
    let text = text.trim();
    let text = text.strip_suffix('.').unwrap_or(text);
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let (before, digits) = text.split_at(start);
    let before = before.strip_suffix('$').unwrap_or(before);
    let words = before.chars().all(|c| c.is_ascii_alphabetic() || c == ' ') && (before.is_empty() || before.ends_with(' '));
    let number = (1..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let plain = !digits.starts_with('0') || digits == "0";
    if words && number && plain { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialogue(order: Order, said: &[&str]) -> Verdict {
        let mut turns = vec![Turn::text(TurnRole::User, order.question())];
        for text in said {
            turns.push(Turn::text(TurnRole::Assistant, *text));
            turns.push(Turn::text(TurnRole::Tool, "whatever the tool says is not graded"));
        }
        grade(&turns, order)
    }

    #[test]
    fn answers_are_read_exactly() {
        for (text, want) in [("$42.", 42), ("That comes to 42.", 42), ("That comes to $42", 42), ("42", 42), (" $0. ", 0)] {
            assert_eq!(parse_answer(text), Some(want), "{text}");
        }
        for text in [
            "",
            "$",
            "42 or 43.",
            "$42.5",
            "-42",
            "x42",
            "042",
            "42 dollars",
            "$ 42.",
            "forty",
            "12345",
            "$$42",
            "42..",
            "lookup(42)",
        ] {
            assert_eq!(parse_answer(text), None, "{text}");
        }
    }

    #[test]
    fn only_the_whole_behaviour_is_correct() {
        let order = Order(4821);
        let (item, total) = (order.item(), order.total());
        let (price, answer) = (format!("price({item})"), format!("That comes to ${total}."));
        let right = dialogue(order, &["lookup(4821)", &price, &answer]);
        assert_eq!(right, Verdict { answer: Some(total), correct: true, format: true });
        for said in [
            vec![answer.as_str()],
            vec!["lookup(4821)", &answer],
            vec![&price, "lookup(4821)", &answer],
            vec!["lookup(4821)", &price, &price, &answer],
            vec!["lookup(4812)", &price, &answer],
            vec!["lookup(4821)", &price, "That comes to $99."],
        ] {
            let verdict = dialogue(order, &said);
            assert!(!verdict.correct && verdict.format, "{said:?}");
        }
        for said in [vec!["lookup(4821)", price.as_str()], vec!["lookup(4821)", "hm", &answer], vec!["sorry"], vec![]] {
            let verdict = dialogue(order, &said);
            assert!(!verdict.correct && !verdict.format, "{said:?}");
        }
    }
}
