//! Where a value came from, down to the line.
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// A text that values are read from.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// How it is called in messages: the path as given, `(embedded)/order-desk.toml`.
    pub name: String,
    /// Its whole text.
    pub text: String,
    /// Folder that relative paths in it start from; `None` for an embedded text.
    pub folder: Option<PathBuf>,
}

impl Source {
    /// Line and column of a byte, from 1.
    #[must_use]
    pub fn line_column(&self, byte: usize) -> (usize, usize) {
        let before = &self.text.as_bytes()[..byte.min(self.text.len())];
        let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
        let start = before.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
        (line, column)
    }

    /// The text of a line, from 1.
    #[must_use]
    pub fn line(&self, line: usize) -> &str {
        self.text.lines().nth(line.saturating_sub(1)).unwrap_or("")
    }
}

/// Where a value came from. Later kinds win over earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// The profile of that name.
    Profile(String),
    /// A place in a file.
    File(Arc<Source>, Range<usize>),
    /// `--set` with its whole argument.
    Set(String),
    /// A flag of the command line, or what a scheduler says.
    Flag(String),
}

impl Origin {
    /// Folder that a relative path with this origin starts from; `None` is the working directory.
    #[must_use]
    pub fn folder(&self) -> Option<&PathBuf> {
        match self {
            Self::File(source, _) => source.folder.as_ref(),
            _ => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Profile(name) => write!(f, "profile {name}"),
            Self::File(source, span) => write!(f, "{}:{}", source.name, source.line_column(span.start).0),
            Self::Set(argument) => write!(f, "--set {argument}"),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}
