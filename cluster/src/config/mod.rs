//! Configuration: files, `--set` and flags on top of a profile, read into typed sections, each value with its origin.
//!
//! Invariants
//! - **K1** layers, later wins: defaults, profile, what follows from an allocation, files in the order given, `--set`, flags. See [`tree`] for how tables,
//!   lists and `type` are merged.
//! - **K2** nothing is ignored: a key that no section reads is an error with file and line.
//! - **K3** what `--dry-run` prints and `config.toml` of a run directory holds reads back as an equal configuration.
//! - **K4** relative paths are made absolute against the folder of the file that said them (the working directory for
//!   `--set` and flags), so that a resolved configuration means the same anywhere on the host.
//!
//! Files: `origin` places; `tree` layers; `de` typed reading; `schema` the keys that exist; `print` TOML with origins;
//! `docs` the reference; `profile` the profiles; `sections` the cluster's own, `cluster` what they ask together; `paths` relative paths; `units` spans, bytes.

mod cluster;
mod de;
mod docs;
mod error;
pub mod origin;
mod paths;
mod print;
mod profile;
mod root;
pub mod schema;
mod sections;
pub mod tree;
pub mod units;

pub use docs::docs;
pub use error::{ConfigError, Problem, nearest};
pub use origin::{Origin, Source};
pub use profile::Profile;
pub use root::Config;
pub use sections::{AutoscaleConfig, ClusterConfig, LogFormat, LoggingConfig, NodeConfig};

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tree::{Node, Value};

/// The configuration of `cluster launch` without a file: the order desk.
pub const EMBEDDED: &str = include_str!("../../../configs/basic/order-desk/order-desk.toml");
/// Its name in messages.
pub const EMBEDDED_NAME: &str = "(embedded)/order-desk.toml";

/// What the user said, before it is read.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Configuration files in order; empty for the embedded one.
    pub files: Vec<PathBuf>,
    /// Arguments of `--set` in order.
    pub sets: Vec<String>,
    /// What flags set: `(dotted path, value, the flag as typed)`.
    pub flags: Vec<(String, Value, String)>,
    /// What follows from where the program runs, under everything that was said: `(dotted path, value, who says so)`.
    pub given: Vec<(String, Value, String)>,
}

/// A configuration that was read and checked.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The sections.
    pub config: Config,
    tree: Node,
}

impl Resolved {
    /// Reads, merges and checks everything that can be checked without a model or a data file.
    pub fn load(inputs: &Inputs) -> Result<Self, ConfigError> {
        let mut sources = Vec::new();
        if inputs.files.is_empty() {
            sources.push(Source { name: EMBEDDED_NAME.to_owned(), text: EMBEDDED.to_owned(), folder: None });
        }
        for path in &inputs.files {
            sources.push(read_source(path)?);
        }
        Self::from_sources(sources, inputs)
    }

    /// The same from texts; `inputs.files` are not read.
    pub fn from_sources(sources: Vec<Source>, inputs: &Inputs) -> Result<Self, ConfigError> {
        let mut user = Node::empty();
        for source in sources {
            user.merge(Node::parse(&Arc::new(source))?);
        }
        user.merge(overrides(inputs)?);
        let mut tree = defaults::<Config>()?;
        tree.merge(profile::layer(&user)?);
        for (path, value, who) in &inputs.given {
            tree.merge(Node::at_path(path, value.clone(), &Origin::Flag(who.clone())));
        }
        tree.merge(user);
        paths::make_absolute(&mut tree);
        let mut config: Config = read(&tree)?;
        config.finish(&tree);
        let resolved = Self { config, tree };
        resolved.config.check().map_err(|(path, why)| resolved.error(&path, why))?;
        Ok(resolved)
    }

    /// Where the value at a dotted path came from. List items are addressed by `parts.0` or `parts[0]`.
    #[must_use]
    pub fn origin(&self, path: &str) -> Origin {
        self.nearest_node(path).map_or(Origin::Default, |node| node.origin.clone())
    }

    /// Checks what only a run that trains must keep to.
    pub fn check_training(&self) -> Result<(), ConfigError> {
        self.config.check_training().map_err(|(path, why)| self.error(&path, why))
    }

    /// An error about the value at a dotted path, with the place where it was said.
    #[must_use]
    pub fn error(&self, path: &str, why: String) -> ConfigError {
        let mut error = ConfigError::new(Problem::Custom(why), path.to_owned(), self.origin(path));
        error.help = help::<Config>(path);
        error
    }

    /// The resolved configuration as TOML, each value with its origin as a comment (K3).
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        to_toml(&self.config, &self.tree)
    }

    /// The node at the path, or at the longest part of it that was said.
    fn nearest_node(&self, path: &str) -> Option<&Node> {
        let keys: Vec<String> =
            path.replace('[', ".").replace(']', "").split('.').filter(|k| !k.is_empty()).map(str::to_owned).collect();
        (1..=keys.len()).rev().find_map(|n| self.tree.get(&keys[..n]))
    }
}

/// A type's defaults as the lowest layer.
fn defaults<T: Serialize + Default>() -> Result<Node, ConfigError> {
    let value = serde_json::to_value(T::default()).map_err(|error| unwritable(&error.to_string()))?;
    Ok(Node::from_json(&value).unwrap_or_else(Node::empty))
}

/// `--set` and flags as one layer; among themselves later wins, and a changed `type` does not wipe its neighbours.
fn overrides(inputs: &Inputs) -> Result<Node, ConfigError> {
    let mut layer = Node::empty();
    for argument in &inputs.sets {
        layer.merge(Node::parse_set(argument)?);
    }
    for (path, value, flag) in &inputs.flags {
        layer.merge(Node::at_path(path, value.clone(), &Origin::Flag(flag.clone())));
    }
    Ok(layer)
}

fn read_source(path: &Path) -> Result<Source, ConfigError> {
    let name = path.display().to_string();
    let fail = |why: String| Err(ConfigError::new(Problem::Unreadable(why), String::new(), Origin::Default));
    let text = match std::fs::read(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => return fail(format!("{name} is not UTF-8 text (byte {})", error.utf8_error().valid_up_to())),
        },
        Err(error) => {
            return fail(format!(
                "cannot read the configuration {name}: {error}; `cluster launch` without a file trains the order desk"
            ));
        }
    };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    Ok(Source { name, text, folder: Some(folder) })
}

/// Reads a typed configuration from a tree, its errors furnished with "did you mean" and the key's documentation.
pub fn read<T: DeserializeOwned + JsonSchema>(tree: &Node) -> Result<T, ConfigError> {
    de::from_node(tree).map_err(|mut error| {
        let keys = schema::keys::<T>();
        match &mut *error.problem {
            Problem::UnknownKey { key, expected, meant, of_type } => {
                *of_type = schema::find(&keys, &error.path).and_then(|other| other.when.clone());
                let table = error.path.rsplit_once('.').map_or("", |(table, _)| table);
                let prefix = if table.is_empty() { String::new() } else { format!("{table}.") };
                let sibling = nearest(key, expected.iter().map(String::as_str)).map(|name| format!("{prefix}{name}"));
                let elsewhere = || keys.iter().find(|k| k.path.rsplit('.').next() == Some(key) && !k.path.contains("[]"));
                *meant = sibling.or_else(|| elsewhere().map(|k| k.path.clone()));
            }
            _ => error.help = schema::find(&keys, &error.path).map(describe).filter(|d| !d.is_empty()),
        }
        error
    })
}

fn help<T: JsonSchema>(path: &str) -> Option<String> {
    schema::find(&schema::keys::<T>(), path).map(describe).filter(|d| !d.is_empty())
}

fn describe(key: &schema::KeyDoc) -> String {
    match &key.default {
        Some(default) if default != "required" && !key.doc.to_lowercase().contains("default") => {
            format!("{} Default {default}.", key.doc)
        }
        _ => key.doc.clone(),
    }
}

/// Prints a configuration as TOML with origins.
pub fn to_toml<T: Serialize>(config: &T, tree: &Node) -> Result<String, ConfigError> {
    match serde_json::to_value(config) {
        Ok(serde_json::Value::Object(table)) => print::with_origins(&table, tree).map_err(|why| unwritable(&why)),
        Ok(_) => Err(unwritable("it is not a table")),
        Err(error) => Err(unwritable(&error.to_string())),
    }
}

fn unwritable(why: &str) -> ConfigError {
    let why = format!("this configuration cannot be written as TOML: {why}");
    ConfigError::new(Problem::Custom(why), String::new(), Origin::Default)
}

#[cfg(test)]
mod tests;
