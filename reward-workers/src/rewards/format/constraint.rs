//! One verifiable instruction and whether a text obeys it.
use crate::text::{count_phrase, paragraphs, sentences, words};
use serde::Deserialize;
use serde_json::Value;

/// A verifiable instruction. In a data row: `{"kind": "..", ..}`; unknown kinds and keys are refused.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Constraint {
    /// No capital letter, and at least one small one.
    Lowercase {},
    /// No small letter, and at least one capital one.
    Uppercase {},
    /// Ends with exactly this phrase (white space at the end ignored).
    EndsWith {
        /// The phrase.
        phrase: String,
    },
    /// The first word is this one; letter case and punctuation around it do not count.
    StartsWith {
        /// The word.
        word: String,
    },
    /// Number of lines that start with `* `, `- ` or a bullet.
    Bullets {
        /// At least.
        min: Option<u64>,
        /// At most.
        max: Option<u64>,
    },
    /// All of these stand in the text as whole words, letter case ignored.
    Contains {
        /// The keywords.
        keywords: Vec<String>,
    },
    /// None of these stands in the text as a whole word, letter case ignored.
    Forbidden {
        /// The words.
        words: Vec<String>,
    },
    /// Number of sentences (length).
    Sentences {
        /// At least.
        min: Option<u64>,
        /// At most.
        max: Option<u64>,
    },
    /// Number of words (length).
    Words {
        /// At least.
        min: Option<u64>,
        /// At most.
        max: Option<u64>,
    },
    /// Number of blocks between empty lines.
    Paragraphs {
        /// At least.
        min: Option<u64>,
        /// At most.
        max: Option<u64>,
    },
    /// The whole text stands in double quotes.
    Quoted {},
    /// The whole text is a JSON object or list; a fenced block counts.
    Json {},
    /// A line has a title in double angular brackets, `<<like this>>`.
    Title {},
    /// No comma.
    NoCommas {},
    /// Number of placeholders in square brackets, `[name]`.
    Placeholders {
        /// At least.
        min: u64,
    },
}

impl Constraint {
    /// Reads one from a data row.
    ///
    /// Errors: unknown kind or key, an empty phrase or list, bounds that nothing or everything meets.
    pub fn read(value: &Value) -> Result<Self, String> {
        let constraint = Self::deserialize(value).map_err(|e| e.to_string())?;
        let empty = |text: &String| text.trim().is_empty();
        let why = match &constraint {
            Self::EndsWith { phrase } if empty(phrase) => "phrase is empty",
            Self::StartsWith { word } if empty(word) => "word is empty",
            Self::Contains { keywords: list } | Self::Forbidden { words: list } if list.is_empty() || list.iter().any(empty) => {
                "the list of words is empty or holds an empty one"
            }
            Self::Placeholders { min: 0 } => "min = 0 asks for nothing",
            Self::Bullets { min, max }
            | Self::Sentences { min, max }
            | Self::Words { min, max }
            | Self::Paragraphs { min, max } => match (min, max) {
                (None, None) => "give min, max or both",
                (Some(min), Some(max)) if min > max => "min is over max",
                _ => return Ok(constraint),
            },
            _ => return Ok(constraint),
        };
        Err(format!("{value}: {why}"))
    }

    /// The name of its kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Lowercase {} => "lowercase",
            Self::Uppercase {} => "uppercase",
            Self::EndsWith { .. } => "ends_with",
            Self::StartsWith { .. } => "starts_with",
            Self::Bullets { .. } => "bullets",
            Self::Contains { .. } => "contains",
            Self::Forbidden { .. } => "forbidden",
            Self::Sentences { .. } => "sentences",
            Self::Words { .. } => "words",
            Self::Paragraphs { .. } => "paragraphs",
            Self::Quoted {} => "quoted",
            Self::Json {} => "json",
            Self::Title {} => "title",
            Self::NoCommas {} => "no_commas",
            Self::Placeholders { .. } => "placeholders",
        }
    }

    /// Whether it only bounds the length.
    #[must_use]
    pub fn is_length(&self) -> bool {
        matches!(self, Self::Sentences { .. } | Self::Words { .. })
    }

    /// Whether a trimmed text obeys it.
    #[must_use]
    pub fn holds(&self, text: &str) -> bool {
        match self {
            Self::Lowercase {} => text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase),
            Self::Uppercase {} => text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase),
            Self::EndsWith { phrase } => text.ends_with(phrase.trim()),
            Self::StartsWith { word } => first_word(text).to_lowercase() == word.trim().to_lowercase(),
            Self::Bullets { min, max } => within(text.lines().filter(|line| is_bullet(line)).count(), *min, *max),
            Self::Contains { keywords } => keywords.iter().all(|word| count_phrase(text, word) > 0),
            Self::Forbidden { words } => words.iter().all(|word| count_phrase(text, word) == 0),
            Self::Sentences { min, max } => within(sentences(text).count(), *min, *max),
            Self::Words { min, max } => within(words(text).count(), *min, *max),
            Self::Paragraphs { min, max } => within(paragraphs(text), *min, *max),
            Self::Quoted {} => text.len() > 2 && text.starts_with('"') && text.ends_with('"'),
            Self::Json {} => is_json(text),
            Self::Title {} => text.lines().any(|line| {
                line.split_once("<<")
                    .and_then(|(_, rest)| rest.split_once(">>"))
                    .is_some_and(|(title, _)| !title.trim().is_empty())
            }),
            Self::NoCommas {} => !text.contains(','),
            Self::Placeholders { min } => within(placeholders(text), Some(*min), None),
        }
    }
}

fn within(count: usize, min: Option<u64>, max: Option<u64>) -> bool {
    let count = count as u64;
    min.is_none_or(|min| count >= min) && max.is_none_or(|max| count <= max)
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default().trim_matches(|c: char| !c.is_alphanumeric())
}

fn is_bullet(line: &str) -> bool {
    let line = line.trim_start();
    ["* ", "- ", "• "].iter().any(|mark| line.strip_prefix(mark).is_some_and(|rest| !rest.trim().is_empty()))
}

fn is_json(text: &str) -> bool {
    let inner = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    let body = inner.map_or(text, |inner| inner.split_once('\n').map_or(inner, |(_, body)| body));
    matches!(serde_json::from_str(body.trim()), Ok(Value::Object(_) | Value::Array(_)))
}

/// `[..]` with something inside and no bracket or line break in it.
fn placeholders(text: &str) -> usize {
    let mut count = 0;
    for part in text.split('[').skip(1) {
        let inside = part.split_once(']').map_or("", |(inside, _)| inside);
        count += usize::from(!inside.trim().is_empty() && !inside.contains('\n'));
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(value: Value, yes: &[&str], no: &[&str]) {
        let constraint = Constraint::read(&value).unwrap();
        assert_eq!(value["kind"], constraint.kind());
        for text in yes {
            assert!(constraint.holds(text), "{value} should hold for {text:?}");
        }
        for text in no {
            assert!(!constraint.holds(text), "{value} should not hold for {text:?}");
        }
    }

    #[test]
    fn each_kind_tells_obeying_from_not() {
        check(json!({"kind": "lowercase"}), &["so it is 2", "größe"], &["So", "123", ""]);
        check(json!({"kind": "uppercase"}), &["SO IT IS 2"], &["SO it", "123", ""]);
        check(json!({"kind": "ends_with", "phrase": "the end."}), &["it is the end."], &["the end. no", "THE END."]);
        check(json!({"kind": "starts_with", "word": "well"}), &["Well, yes", "\"well"], &["Oh well", ""]);
        check(json!({"kind": "bullets", "min": 2, "max": 2}), &["a\n* b\n - c"], &["* a", "* a\n* b\n* c", "*a\n-b", "* \n- "]);
        check(json!({"kind": "contains", "keywords": ["cat", "dog"]}), &["Dog and CAT."], &["dogs and cats", "cat"]);
        check(json!({"kind": "forbidden", "words": ["bad"]}), &["badly"], &["it is Bad."]);
        check(json!({"kind": "sentences", "min": 2, "max": 3}), &["One. Two!", "A? B. C."], &["One.", "A. B. C. D."]);
        check(json!({"kind": "words", "max": 3}), &["one two three", "- a -"], &["one two three four"]);
        check(json!({"kind": "paragraphs", "min": 2, "max": 2}), &["a\n\nb"], &["a\nb", "a\n\nb\n\nc"]);
        check(json!({"kind": "quoted"}), &["\"yes it is\""], &["yes \"it\" is", "\"\"", "\""]);
        check(json!({"kind": "json"}), &["{\"a\": 1}", "```json\n[1]\n```"], &["1", "{a: 1}", "see {\"a\": 1}"]);
        check(json!({"kind": "title"}), &["<<A title>>\ntext"], &["<< >>", "<<A\n>>", "<A>"]);
        check(json!({"kind": "no_commas"}), &["a b"], &["a, b"]);
        check(json!({"kind": "placeholders", "min": 2}), &["[name] at [place]"], &["[name]", "[] [\n]", "[a [b"]);
    }

    #[test]
    fn nonsense_constraints_are_refused() {
        for value in [
            json!({"kind": "words"}),
            json!({"kind": "words", "min": 3, "max": 2}),
            json!({"kind": "lowercase", "min": 3}),
            json!({"kind": "ends_with", "phrase": " "}),
            json!({"kind": "contains", "keywords": []}),
            json!({"kind": "placeholders", "min": 0}),
            json!({"kind": "placeholders"}),
            json!("lowercase"),
        ] {
            assert!(Constraint::read(&value).is_err(), "{value}");
        }
    }
}
