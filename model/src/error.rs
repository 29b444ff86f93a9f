//! Why a model could not be read or written: place, value, remedy.
use crate::weights::ShapeError;
use std::path::{Path, PathBuf};

/// What went wrong with a model's files.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// `read`, `write` or the like.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file or entry is not there.
    #[error("{place}: {what} is missing; {remedy}")]
    Missing {
        /// Directory, file or model path.
        place: String,
        /// What was looked for.
        what: String,
        /// The way out.
        remedy: String,
    },
    /// The bytes are not what they claim to be.
    #[error("{place} is damaged or not what its name says: {problem}; fetch or export it again")]
    Corrupt {
        /// The file, with the entry where one is known.
        place: String,
        /// What does not hold.
        problem: String,
    },
    /// A setting has a value that cannot be used.
    #[error("{place}: {key} = {value}: {problem}")]
    Value {
        /// The file.
        place: String,
        /// Which setting.
        key: String,
        /// What it says.
        value: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A decoder of another family.
    #[error("{place}: architecture {found} is not supported: {remedy}")]
    Architecture {
        /// The file.
        place: String,
        /// Its architecture's name.
        found: String,
        /// What is supported instead.
        remedy: String,
    },
    /// A tensor in a number format that is not read.
    #[error("{place}: tensor {tensor} has dtype {dtype}; {remedy}")]
    Dtype {
        /// The file.
        place: String,
        /// Which tensor.
        tensor: String,
        /// Its dtype's name or number.
        dtype: String,
        /// What is read instead.
        remedy: String,
    },
    /// Weights and architecture do not belong together.
    #[error("{place}: {source}; config and weights must come from the same model")]
    Shape {
        /// The file.
        place: String,
        /// Which tensor and how.
        source: ShapeError,
    },
    /// The tokenizer cannot be built or fails on an input.
    #[error("{place}: tokenizer: {problem}")]
    Tokenizer {
        /// The file.
        place: String,
        /// Why.
        problem: String,
    },
    /// The chat template does not parse, or refuses these messages.
    #[error("chat template: {problem}")]
    Template {
        /// Why.
        problem: String,
    },
    /// The model hub did not give the files.
    #[error(
        "cannot fetch hf://{id}: {problem}; check the network and the id, or download the model and give its directory as [model] path"
    )]
    Hub {
        /// `org/name`.
        id: String,
        /// Why.
        problem: String,
    },
}

impl ModelError {
    /// An [`ModelError::Io`] for `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// A [`ModelError::Corrupt`].
    pub(crate) fn corrupt(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Corrupt { place: place.into(), problem: problem.into() }
    }
}
