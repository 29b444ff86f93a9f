//! Between turns and tokens: the chat template rendered step by step, so that sampled tokens are never tokenised again.
use crate::RolloutError;
use cohort_engine::StopWatch;
use cohort_model::{ChatMessage, ChatTemplate, ModelFiles, Tokenizer};
use cohort_protocol::{Turn, TurnRole};
use std::sync::Arc;

/// How a model's dialogues are written.
#[derive(Debug, Clone)]
pub struct ChatFormat {
    tokenizer: Arc<Tokenizer>,
    template: Arc<ChatTemplate>,
    end: Arc<[u32]>,
}

impl ChatFormat {
    /// Of a model.
    ///
    /// Errors: [`RolloutError::Config`] for a model without a chat template or without an end token.
    pub fn new(files: &ModelFiles) -> Result<Self, RolloutError> {
        let fail = |problem: String| RolloutError::Config { place: "model.path", problem };
        let Some(template) = files.chat.clone() else {
            return Err(fail(format!(
                "{} has no chat template; use an instruction-tuned model or add chat_template.jinja",
                files.source
            )));
        };
        if files.eos.is_empty() {
            return Err(fail(format!("{} names no end token; set eos_token_id in its generation_config.json", files.source)));
        }
        Ok(Self { tokenizer: files.tokenizer.clone(), template, end: files.eos.clone().into() })
    }

    /// Tokens that end an assistant turn.
    #[must_use]
    pub fn end(&self) -> &[u32] {
        &self.end
    }

    /// Tokens of a dialogue that waits for the assistant's first turn.
    pub fn prompt(&self, turns: &[Turn]) -> Result<Vec<u32>, RolloutError> {
        Ok(self.tokenizer.encode(&self.template.render(&messages(turns), true)?, false)?)
    }

    /// Tokens between the assistant's turn `assistant`, whose own tokens are in the context, and its next one. `closed`
    /// is the end token that it sampled, if it did.
    pub fn continuation(&self, turns: &[Turn], assistant: usize, closed: Option<u32>) -> Result<Vec<u32>, RolloutError> {
        let closed = closed.and_then(|id| self.tokenizer.token(id));
        let text = self.template.continuation(&messages(turns), assistant, closed.as_deref())?;
        Ok(self.tokenizer.encode(&text, false)?)
    }

    /// Text of sampled tokens without the end token, and that token.
    pub fn read(&self, sampled: &[u32]) -> Result<(String, Option<u32>), RolloutError> {
        let (body, closed) = match sampled.split_last() {
            Some((last, body)) if self.end.contains(last) => (body, Some(*last)),
            _ => (sampled, None),
        };
        // Special tokens inside a turn stay visible: a grader must see them.
        Ok((self.tokenizer.decode(body, false)?, closed))
    }

    /// The tokens of a text, as a stub says it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, RolloutError> {
        Ok(self.tokenizer.encode(text, false)?)
    }

    /// Tokens that open an assistant turn: what the generation prompt adds.
    pub fn opening(&self) -> Result<Vec<u32>, RolloutError> {
        let turns = [ChatMessage::new("user", "?")];
        let (without, with) = (self.template.render(&turns, false)?, self.template.render(&turns, true)?);
        let opening = with.strip_prefix(&without).filter(|text| !text.is_empty());
        let opening = opening.ok_or_else(|| RolloutError::Config {
            place: "model.path",
            problem: "its chat template adds no generation prompt, so a stub cannot tell when it is its turn".into(),
        })?;
        self.encode(opening)
    }

    /// A watch that ends a turn as soon as one of these texts stands in it; `None` for no texts.
    #[must_use]
    pub fn stop_watch(&self, stop: &[String]) -> Option<StopText> {
        let longest = stop.iter().map(String::len).max()?;
        Some(StopText { tokenizer: self.tokenizer.clone(), stop: stop.to_vec(), window: longest + 4, tokens: Vec::new() })
    }
}

fn messages(turns: &[Turn]) -> Vec<ChatMessage> {
    let role = |role| match role {
        TurnRole::System => "system",
        TurnRole::User => "user",
        TurnRole::Assistant => "assistant",
        TurnRole::Tool => "tool",
    };
    turns.iter().map(|turn| ChatMessage::new(role(turn.role), turn.content.clone())).collect()
}

/// Looks for stop texts in the last tokens of a turn.
#[derive(Debug)]
pub struct StopText {
    tokenizer: Arc<Tokenizer>,
    stop: Vec<String>,
    /// Tokens that surely cover the longest text: each has a byte at least, a few may be cut characters.
    window: usize,
    tokens: Vec<u32>,
}

impl StopWatch for StopText {
    fn push(&mut self, token: u32) -> bool {
        self.tokens.push(token);
        let recent = &self.tokens[self.tokens.len().saturating_sub(self.window)..];
        // Text that cannot be decoded holds no stop text.
        let text = self.tokenizer.decode(recent, false).unwrap_or_default();
        self.stop.iter().any(|stop| text.contains(stop.as_str()))
    }
}

/// `text` up to the first stop text in it.
#[must_use]
pub fn before_stop<'a>(text: &'a str, stop: &[String]) -> &'a str {
    let end = stop.iter().filter_map(|stop| text.find(stop.as_str())).min();
    &text[..end.unwrap_or(text.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format() -> ChatFormat {
        ChatFormat::new(&ModelFiles::open("random://tiny").unwrap()).unwrap()
    }

    #[test]
    fn a_dialogue_built_in_steps_has_the_tokens_of_the_whole() {
        let format = format();
        let mut turns = vec![Turn::text(TurnRole::User, "order 12?")];
        let mut tokens = format.prompt(&turns).unwrap();
        for (i, (said, heard)) in [("lookup(12)", "3 pens"), ("That is $6.", "thanks, bye")].iter().enumerate() {
            let mut sampled = format.encode(said).unwrap();
            sampled.push(format.end()[0]);
            assert_eq!(format.read(&sampled).unwrap(), ((*said).to_owned(), Some(format.end()[0])));
            tokens.extend(&sampled);
            turns.push(Turn::text(TurnRole::Assistant, *said));
            turns.push(Turn::text(if i == 0 { TurnRole::Tool } else { TurnRole::User }, *heard));
            tokens.extend(format.continuation(&turns, turns.len() - 2, Some(format.end()[0])).unwrap());
        }
        assert_eq!(tokens, format.prompt(&turns).unwrap());
    }

    #[test]
    fn an_unfinished_turn_is_closed_by_the_template() {
        let format = format();
        let turns = [Turn::text(TurnRole::User, "a"), Turn::text(TurnRole::Assistant, "b"), Turn::text(TurnRole::User, "c")];
        let (open, closed) =
            (format.continuation(&turns, 1, None).unwrap(), format.continuation(&turns, 1, Some(format.end()[0])).unwrap());
        assert_eq!(open[1..], closed);
    }

    #[test]
    fn stop_texts_are_found_across_tokens() {
        let format = format();
        let stop = ["\nEND".to_owned(), "€".to_owned()];
        let mut watch = format.stop_watch(&stop).unwrap();
        let ids = format.encode("some text\nEND more").unwrap();
        let at = ids.iter().position(|id| watch.push(*id)).unwrap();
        assert_eq!(format.read(&ids[..=at]).unwrap().0, "some text\nEND");
        assert_eq!(before_stop("some text\nEND more", &stop), "some text");
        assert_eq!(before_stop("nothing", &stop), "nothing");
        assert!(format.stop_watch(&[]).is_none());
    }
}
