//! How completions go out: whole rows in input order, tokens as they come, or text for somebody who watches.
use super::super::{CliError, json_line};
use super::{Place, Row, token_sha256};
use cohort_engine::{Completion, Finish, Sampled};
use cohort_model::{Detokenizer, ModelFiles};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;

/// In which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// A JSON object a row, in input order.
    Rows,
    /// A JSON object a token as it is sampled, and the row's after its last one; rows run side by side.
    Tokens,
    /// Text, the rows one after the other in input order, the first that is not finished as it grows.
    Text,
}

/// A row out.
#[derive(Debug, Serialize)]
struct Generated<'a> {
    id: &'a serde_json::Value,
    text: String,
    token_ids: &'a [u32],
    logprobs: &'a [f32],
    sampled_logprobs: &'a [f32],
    finish_reason: &'static str,
    token_sha256: String,
}

/// A token out.
#[derive(Debug, Serialize)]
struct Token<'a> {
    id: &'a serde_json::Value,
    token_id: u32,
    text: String,
    logprob: f32,
    sampled_logprob: f32,
}

/// Takes what the engine makes and writes it.
pub(super) struct Output<'a> {
    style: Style,
    files: &'a ModelFiles,
    rows: &'a [(Place, Row)],
    out: &'a mut dyn Write,
    /// Rows of which tokens came, with text that waits for its turn.
    live: BTreeMap<usize, (Detokenizer<'a>, String)>,
    /// Finished rows that wait for their turn.
    done: BTreeMap<usize, Completion>,
    /// The row whose turn it is.
    next: usize,
    /// Whether that row's head is out ([`Style::Text`]).
    headed: bool,
}

impl<'a> Output<'a> {
    pub(super) fn new(style: Style, files: &'a ModelFiles, rows: &'a [(Place, Row)], out: &'a mut dyn Write) -> Self {
        Self { style, files, rows, out, live: BTreeMap::new(), done: BTreeMap::new(), next: 0, headed: false }
    }

    /// Finished rows that wait for their turn.
    pub(super) fn waiting(&self) -> usize {
        self.done.len()
    }

    /// A token of a row.
    pub(super) fn token(&mut self, row: usize, sampled: Sampled) -> Result<(), CliError> {
        let (place, Row { id, .. }) = &self.rows[row];
        let live = self.live.entry(row).or_insert_with(|| (self.files.tokenizer.detokenizer(true), String::new()));
        let text = live.0.push(sampled.token).map_err(|e| place.error(e))?;
        if self.style == Style::Tokens {
            let Sampled { token, logp, logp_sampled, .. } = sampled;
            json_line(self.out, &Token { id, token_id: token, text, logprob: logp, sampled_logprob: logp_sampled })?;
            return Ok(self.out.flush()?);
        }
        live.1.push_str(&text);
        self.show()
    }

    /// A row's completion, after all of its tokens.
    pub(super) fn done(&mut self, row: usize, completion: Completion) -> Result<(), CliError> {
        match self.style {
            Style::Tokens => self.row(row, &completion)?,
            Style::Rows => {
                self.done.insert(row, completion);
                while let Some(completion) = self.done.remove(&self.next) {
                    self.row(self.next, &completion)?;
                    self.next += 1;
                }
            }
            Style::Text => {
                self.done.insert(row, completion);
                self.show()?;
            }
        }
        Ok(self.out.flush()?)
    }

    fn row(&mut self, row: usize, done: &Completion) -> Result<(), CliError> {
        let (place, Row { id, .. }) = &self.rows[row];
        self.live.remove(&row);
        let generated = Generated {
            id,
            text: self.files.tokenizer.decode(&done.tokens, true).map_err(|e| place.error(e))?,
            token_ids: &done.tokens,
            logprobs: &done.logp,
            sampled_logprobs: &done.logp_sampled,
            finish_reason: reason(done.finish),
            token_sha256: token_sha256(&done.tokens),
        };
        json_line(self.out, &generated)
    }

    /// Writes the text that is there of the rows whose turn it is.
    fn show(&mut self) -> Result<(), CliError> {
        while let Some((place, Row { id, .. })) = self.rows.get(self.next) {
            let done = self.done.remove(&self.next);
            if done.is_none() && !self.live.contains_key(&self.next) {
                break;
            }
            if !self.headed {
                writeln!(self.out, "--- {id}")?;
                self.headed = true;
            }
            if let Some((_, text)) = self.live.get_mut(&self.next) {
                self.out.write_all(std::mem::take(text).as_bytes())?;
            }
            let Some(done) = done else { break };
            if let Some((detokenizer, _)) = self.live.remove(&self.next) {
                let rest = detokenizer.finish().map_err(|e| place.error(e))?;
                self.out.write_all(rest.as_bytes())?;
            }
            match done.finish {
                Finish::Stop => writeln!(self.out)?,
                cut => writeln!(self.out, " [{}]", reason(cut))?,
            }
            (self.next, self.headed) = (self.next + 1, false);
        }
        Ok(self.out.flush()?)
    }
}

fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Context => "context",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows 0 and 1 of "a" with their tokens mixed, then both ends, the second row's first.
    fn written(style: Style) -> String {
        let files = ModelFiles::open("random://tiny").unwrap();
        let input = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&input, "{\"id\":0,\"prompt\":\"a\"}\n{\"id\":1,\"prompt\":\"a\"}\n").unwrap();
        let rows = super::super::jsonl::read(input.path()).unwrap();
        let mut bytes = Vec::new();
        let mut output = Output::new(style, &files, &rows, &mut bytes);
        let sampled = |token| Sampled { token, logp: -1.5, logp_sampled: -0.5, version: 0, exact: true };
        let completion = |tokens: &[u32], finish| Completion {
            tokens: tokens.to_vec(),
            logp: vec![-1.5; tokens.len()],
            logp_sampled: vec![-0.5; tokens.len()],
            spans: Vec::new(),
            finish,
        };
        if style != Style::Rows {
            for (row, token) in [(1, 0x78), (0, 0x68), (0, 0xc3), (1, 0x79), (0, 0xa9)] {
                output.token(row, sampled(token)).unwrap();
            }
        }
        output.done(1, completion(&[0x78, 0x79], Finish::Length)).unwrap();
        output.done(0, completion(&[0x68, 0xc3, 0xa9, 256], Finish::Stop)).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_comes_row_by_row_and_characters_whole() {
        assert_eq!(written(Style::Text), "--- 0\nh\u{e9}\n--- 1\nxy [length]\n");
    }

    #[test]
    fn rows_come_in_input_order_and_tokens_as_they_are_sampled() {
        let ids = |text: &str| {
            let value = |line| serde_json::from_str::<serde_json::Value>(line).unwrap();
            text.lines()
                .map(value)
                .map(|v| (v["id"].as_u64().unwrap(), v["text"].as_str().unwrap().to_owned()))
                .collect::<Vec<_>>()
        };
        let row = |id, text: &str| (id, text.to_owned());
        assert_eq!(ids(&written(Style::Rows)), [row(0, "h\u{e9}"), row(1, "xy")]);
        let tokens = [row(1, "x"), row(0, "h"), row(0, ""), row(1, "y"), row(0, "\u{e9}")];
        assert_eq!(ids(&written(Style::Tokens)), [&tokens[..], &[row(1, "xy"), row(0, "h\u{e9}")]].concat());
        assert!(
            written(Style::Tokens).starts_with(r#"{"id":1,"token_id":120,"text":"x","logprob":-1.5,"sampled_logprob":-0.5}"#)
        );
    }
}
