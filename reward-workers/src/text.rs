//! Reading text the way the graders do: words, sentences, paragraphs, and which turns count.
use crate::reward::SampleInput;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Which assistant turns a grader reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The last one.
    #[default]
    Last,
    /// All of them, joined by line breaks.
    All,
}

impl Scope {
    /// The text to grade.
    pub fn text<'a>(self, sample: &'a SampleInput) -> Cow<'a, str> {
        match self {
            Self::Last => Cow::Borrowed(sample.last_turn()),
            Self::All => Cow::Owned(sample.assistant().collect::<Vec<_>>().join("\n")),
        }
    }
}

/// Words: runs of characters between white space that hold a letter or a digit.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace().filter(|word| word.chars().any(char::is_alphanumeric))
}

/// Sentences: stretches that hold a letter or a digit and end in `.`, `!`, `?` before white space, or at the end of a line.
pub(crate) fn sentences(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(line_sentences).filter(|part| part.chars().any(char::is_alphanumeric))
}

fn line_sentences(line: &str) -> Vec<&str> {
    let (mut out, mut start) = (Vec::new(), 0);
    let mut after_stop = false;
    for (i, c) in line.char_indices() {
        if after_stop && c.is_whitespace() {
            out.push(line[start..i].trim());
            start = i;
        }
        // A closing quote or bracket after the stop still belongs to the sentence.
        after_stop = matches!(c, '.' | '!' | '?') || (after_stop && matches!(c, '"' | '\'' | ')' | ']' | '”' | '’'));
    }
    out.push(line[start..].trim());
    out
}

/// Paragraphs: blocks of lines between empty lines.
pub(crate) fn paragraphs(text: &str) -> usize {
    let mut count = 0;
    let mut inside = false;
    for line in text.lines() {
        let blank = line.trim().is_empty();
        count += usize::from(!blank && !inside);
        inside = !blank;
    }
    count
}

/// How often a phrase stands in a text as whole words, letter case ignored.
pub(crate) fn count_phrase(text: &str, phrase: &str) -> usize {
    let (text, phrase) = (text.to_lowercase(), phrase.trim().to_lowercase());
    if phrase.is_empty() {
        return 0;
    }
    let boundary = |c: Option<char>| !c.is_some_and(char::is_alphanumeric);
    text.match_indices(&phrase)
        .filter(|(at, found)| boundary(text[..*at].chars().next_back()) && boundary(text[at + found.len()..].chars().next()))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_like_a_reader() {
        assert_eq!(words("One, two - three 4!").count(), 4);
        assert_eq!(sentences("It costs 3.50 today. \"Really?\" Yes!\nNo stop here").count(), 4);
        assert_eq!(sentences(" ... \n").count(), 0);
        assert_eq!(paragraphs("a\nb\n\n \nc\n"), 2);
        assert_eq!(count_phrase("Cat, category; the CAT", "cat"), 2);
        assert_eq!(count_phrase("çat", "at"), 0);
    }
}
