//! What is wrong with a configuration: place, value, expectation, remedy.
use super::origin::Origin;
use std::fmt;

/// A configuration that is refused.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigError {
    /// What is wrong.
    pub problem: Box<Problem>,
    /// Dotted path of the value (of the table that should have it, where a key is missing); empty at the top.
    pub path: String,
    /// Where it was said.
    pub origin: Origin,
    /// Documentation of the key, where it has one.
    pub help: Option<String>,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq)]
pub enum Problem {
    /// Not TOML.
    Syntax(String),
    /// A file that cannot be read.
    Unreadable(String),
    /// `--set` with an argument of another form.
    Set(String),
    /// A key that does not exist.
    UnknownKey {
        /// The key.
        key: String,
        /// Keys of that table.
        expected: Vec<String>,
        /// Full path of the one probably meant.
        meant: Option<String>,
        /// The `type` of the table that would have this key.
        of_type: Option<String>,
    },
    /// A name that does not exist.
    UnknownName {
        /// The name.
        name: String,
        /// Names allowed.
        expected: Vec<String>,
    },
    /// A key that must be there.
    Missing(String),
    /// A value of another type or out of range.
    Expected {
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Anything else.
    Custom(String),
}

impl ConfigError {
    /// An error at a place.
    #[must_use]
    pub fn new(problem: Problem, path: String, origin: Origin) -> Self {
        Self { problem: Box::new(problem), path, origin, help: None }
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &*self.problem {
            Problem::Syntax(why) => write!(f, "not valid TOML: {why}")?,
            Problem::Unreadable(why) => f.write_str(why)?,
            Problem::Set(why) => write!(f, "cannot read `{}`: {why}; write `--set section.key=VALUE`", self.origin)?,
            Problem::UnknownKey { expected, meant, of_type, .. } => {
                write!(f, "unknown key `{path}`")?;
                match (of_type, meant) {
                    (Some(kind), _) => write!(f, " for this type; type = \"{kind}\" has it")?,
                    (None, Some(meant)) => write!(f, "; did you mean `{meant}`?")?,
                    (None, None) if expected.is_empty() => f.write_str("; no keys here")?,
                    (None, None) => write!(f, "; keys here: {}", expected.join(", "))?,
                }
            }
            Problem::UnknownName { name, expected } => {
                write!(f, "`{path}` cannot be \"{name}\"")?;
                match nearest(name, expected.iter().map(String::as_str)) {
                    Some(meant) => write!(f, "; did you mean \"{meant}\"?")?,
                    None => f.write_str(";")?,
                }
                write!(f, " known: {}", expected.join(", "))?;
            }
            Problem::Missing(key) if path.is_empty() => write!(f, "key `{key}` is missing")?,
            Problem::Missing(key) => write!(f, "key `{key}` is missing in `{path}`")?,
            Problem::Expected { expected, found } => write!(f, "`{path}` must be {expected}, found {found}")?,
            Problem::Custom(why) if path.is_empty() => f.write_str(why)?,
            Problem::Custom(why) => write!(f, "`{path}`: {why}")?,
        }
        if !matches!(*self.problem, Problem::Set(_)) {
            snippet(f, &self.origin)?;
        }
        match &self.help {
            Some(help) => write!(f, "\n  = {path}: {help}"),
            None => Ok(()),
        }
    }
}

fn snippet(f: &mut fmt::Formatter<'_>, origin: &Origin) -> fmt::Result {
    let Origin::File(source, span) = origin else {
        return match origin {
            Origin::Default => Ok(()),
            other => write!(f, "\n  --> {other}"),
        };
    };
    let (line, column) = source.line_column(span.start);
    let text = source.line(line);
    write!(f, "\n  --> {}:{line}:{column}", source.name)?;
    if text.is_empty() {
        return Ok(());
    }
    let rest = text.chars().count().saturating_sub(column - 1);
    let marked = source.text.get(span.clone()).map_or(1, |s| s.chars().take_while(|&c| c != '\n').count()).clamp(1, rest.max(1));
    let margin = line.to_string().len();
    write!(f, "\n{:margin$} |\n{line} | {text}\n{:margin$} | {}", "", "", " ".repeat(column - 1) + &"^".repeat(marked))
}

/// The candidate that was probably meant: close in edits or in spelling, else none.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |s: &str| s.to_lowercase().replace('-', "_");
    let word = plain(word);
    candidates
        .map(|c| (strsim::jaro_winkler(&word, &plain(c)), strsim::damerau_levenshtein(&word, &plain(c)), c))
        .filter(|&(near, edits, c)| edits <= 1.max(c.len() / 4) || near > 0.9)
        .max_by(|a, b| b.1.cmp(&a.1).then(a.0.total_cmp(&b.0)))
        .map(|(_, _, c)| c)
}
