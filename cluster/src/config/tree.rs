//! Values with their origins, and how layers of them are put on top of each other.
//!
//! Invariants
//! - **C1** tables are merged key by key; every other value is replaced as a whole, arrays too.
//! - **C2** a table whose `type` changes is another thing (the keys of one loss are not the keys of another): below a section
//!   the newer one replaces it whole; of a section itself only what nobody said (defaults, profile) is taken away.
//! - **C3** within `--set`, a whole number after the name of an array is an index into it: `rewards.parts.0.weight=2`.
use super::error::{ConfigError, Problem};
use super::origin::{Origin, Source};
use serde_spanned::Spanned;
use std::collections::BTreeMap;
use std::sync::Arc;
use toml::de::{DeTable, DeValue};

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where it came from.
    pub origin: Origin,
}

/// What a TOML text can say.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A string.
    String(String),
    /// A whole number.
    Integer(i64),
    /// A number.
    Float(f64),
    /// true or false.
    Bool(bool),
    /// Values in order.
    Array(Vec<Node>),
    /// Values by key.
    Table(Table),
}

/// Values by key.
pub type Table = BTreeMap<String, Entry>;

/// A value of a table and the place of its key.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Where the key stands.
    pub key_origin: Origin,
    /// The value.
    pub node: Node,
}

/// Parts of the key of `--set`: more than any key has.
const DEEPEST: usize = 32;

impl Node {
    /// A table without entries.
    #[must_use]
    pub fn empty() -> Self {
        Self { value: Value::Table(Table::new()), origin: Origin::Default }
    }

    /// Reads a TOML text.
    pub fn parse(source: &Arc<Source>) -> Result<Self, ConfigError> {
        match DeTable::parse(&source.text) {
            Ok(table) => from_table(table.get_ref(), Origin::File(Arc::clone(source), table.span()), source),
            Err(error) => Err(ConfigError::new(
                Problem::Syntax(error.message().to_owned()),
                String::new(),
                Origin::File(Arc::clone(source), error.span().unwrap_or(0..0)),
            )),
        }
    }

    /// A default that was written down; `None` for what is absent.
    #[must_use]
    pub fn from_json(value: &serde_json::Value) -> Option<Self> {
        use serde_json::Value as Json;
        let value = match value {
            Json::Null => return None,
            Json::String(s) => Value::String(s.clone()),
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => match n.as_i64() {
                Some(i) => Value::Integer(i),
                None => Value::Float(n.as_f64()?),
            },
            Json::Array(items) => Value::Array(items.iter().filter_map(Self::from_json).collect()),
            Json::Object(map) => {
                let entry = |(key, value): (&String, &Json)| {
                    Some((key.clone(), Entry { key_origin: Origin::Default, node: Self::from_json(value)? }))
                };
                Value::Table(map.iter().filter_map(entry).collect())
            }
        };
        Some(Self { value, origin: Origin::Default })
    }

    /// A scalar at a dotted path, in tables of its own.
    #[must_use]
    pub fn at_path(path: &str, value: Value, origin: &Origin) -> Self {
        path.rsplit('.').fold(Self { value, origin: origin.clone() }, |node, key| {
            let entry = Entry { key_origin: origin.clone(), node };
            Self { value: Value::Table(Table::from([(key.to_owned(), entry)])), origin: origin.clone() }
        })
    }

    /// Reads the argument of `--set`: `a.b=VALUE`, where VALUE is TOML, or else a bare string.
    pub fn parse_set(argument: &str) -> Result<Self, ConfigError> {
        let origin = Origin::Set(argument.to_owned());
        let fail = |why: &str| Err(ConfigError::new(Problem::Set(why.to_owned()), String::new(), origin.clone()));
        let Some((path, text)) = argument.split_once('=') else { return fail("it has no `=`") };
        let path = path.trim();
        if path.is_empty() || path.split('.').any(|key| key.is_empty() || key.contains(char::is_whitespace)) {
            return fail("the part before `=` must be a dotted key");
        }
        if path.split('.').count() > DEEPEST {
            return fail(&format!("the key before `=` has too many parts, at most {DEEPEST} are taken"));
        }
        let text = text.trim();
        let document = format!("v = {text}");
        let value = match DeTable::parse(&document) {
            Ok(table) if table.get_ref().len() == 1 => match table.get_ref().get("v") {
                Some(value) => from_value(value, &|_| origin.clone())?,
                None => Value::String(text.to_owned()),
            },
            _ => Value::String(text.to_owned()),
        };
        Ok(Self::at_path(path, value, &origin))
    }

    /// Puts a newer layer on top of this one (C1 to C3).
    pub fn merge(&mut self, over: Self) {
        merge(self, over, 0);
    }

    /// The node at a path.
    #[must_use]
    pub fn get(&self, path: &[String]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| match &node.value {
            Value::Table(table) => table.get(key).map(|entry| &entry.node),
            Value::Array(items) => items.get(key.parse::<usize>().ok()?),
            _ => None,
        })
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, path: &[String]) -> Option<&mut Self> {
        path.iter().try_fold(self, |node, key| match &mut node.value {
            Value::Table(table) => table.get_mut(key).map(|entry| &mut entry.node),
            Value::Array(items) => items.get_mut(key.parse::<usize>().ok()?),
            _ => None,
        })
    }

    /// The string at a dotted path of keys.
    #[must_use]
    pub fn string_at(&self, path: &str) -> Option<(&str, &Origin)> {
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        match self.get(&path) {
            Some(Self { value: Value::String(s), origin }) => Some((s, origin)),
            _ => None,
        }
    }
}

fn tag(table: &Table) -> Option<&str> {
    match table.get("type").map(|entry| &entry.node.value) {
        Some(Value::String(tag)) => Some(tag),
        _ => None,
    }
}

fn merge(base: &mut Node, over: Node, depth: usize) {
    let is_set = matches!(over.origin, Origin::Set(_));
    match (&mut base.value, over.value) {
        (Value::Table(old), Value::Table(new)) => {
            let retyped = matches!((tag(old), tag(&new)), (Some(a), Some(b)) if a != b);
            if retyped && depth >= 2 {
                *base = Node { value: Value::Table(new), origin: over.origin };
                return;
            }
            if retyped {
                old.retain(|_, entry| !matches!(entry.key_origin, Origin::Default | Origin::Profile(_)));
            }
            for (key, entry) in new {
                match old.get_mut(&key) {
                    Some(existing) => {
                        existing.key_origin = entry.key_origin;
                        merge(&mut existing.node, entry.node, depth + 1);
                    }
                    None => {
                        old.insert(key, entry);
                    }
                }
            }
            if base.origin == Origin::Default {
                base.origin = over.origin;
            }
        }
        (Value::Array(items), Value::Table(new)) if is_set && new.keys().all(|k| index(k, items.len()).is_some()) => {
            for (key, entry) in new {
                if let Some(i) = index(&key, items.len()) {
                    merge(&mut items[i], entry.node, depth + 1);
                }
            }
        }
        (_, value) => *base = Node { value, origin: over.origin },
    }
}

fn index(key: &str, len: usize) -> Option<usize> {
    key.parse().ok().filter(|&i| i < len)
}

fn from_table(table: &DeTable<'_>, origin: Origin, source: &Arc<Source>) -> Result<Node, ConfigError> {
    let value = table_value(table, &|span| Origin::File(Arc::clone(source), span))?;
    Ok(Node { value, origin })
}

type OriginOf<'a> = &'a dyn Fn(std::ops::Range<usize>) -> Origin;

fn table_value(table: &DeTable<'_>, origin: OriginOf<'_>) -> Result<Value, ConfigError> {
    let mut out = Table::new();
    for (key, value) in table {
        let node = Node { value: from_value(value, origin)?, origin: origin(value.span()) };
        out.insert(key.get_ref().to_string(), Entry { key_origin: origin(key.span()), node });
    }
    Ok(Value::Table(out))
}

fn from_value(value: &Spanned<DeValue<'_>>, origin: OriginOf<'_>) -> Result<Value, ConfigError> {
    let fail = |what: String| Err(ConfigError::new(Problem::Custom(what), String::new(), origin(value.span())));
    Ok(match value.get_ref() {
        DeValue::String(s) => Value::String(s.to_string()),
        DeValue::Integer(i) => match i64::from_str_radix(i.as_str(), i.radix()) {
            Ok(i) => Value::Integer(i),
            Err(_) => return fail(format!("the number {i} does not fit 64 bits")),
        },
        DeValue::Float(f) => match f.as_str().parse() {
            Ok(f) => Value::Float(f),
            Err(_) => return fail(format!("{f} is not a number")),
        },
        DeValue::Boolean(b) => Value::Bool(*b),
        DeValue::Datetime(date) => Value::String(date.to_string()),
        DeValue::Array(items) => {
            let node = |item: &Spanned<DeValue<'_>>| Ok(Node { value: from_value(item, origin)?, origin: origin(item.span()) });
            Value::Array(items.iter().map(node).collect::<Result<_, ConfigError>>()?)
        }
        DeValue::Table(table) => table_value(table, origin)?,
    })
}
