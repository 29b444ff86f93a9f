//! From a tree of values with origins to a typed section: a serde deserializer whose every error knows its place.
//!
//! Invariants
//! - **D1** an error carries the path and the origin of the innermost value it is about. Where serde has buffered a table
//!   (an internally tagged enum reads its `type` first), the value is found again by its key or by its own text.
//! - **D2** a scalar given by `--set` or a flag may be read as a string whatever it looks like (`--set agent.type=1`).
use super::error::{ConfigError, Problem};
use super::origin::Origin;
use super::tree::{Entry, Node, Value};
use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};
use std::fmt;

/// Reads a typed value from a tree.
pub(super) fn from_node<T: de::DeserializeOwned>(node: &Node) -> Result<T, ConfigError> {
    T::deserialize(Reader { node, path: None }).map_err(|error| match error.place {
        Some((path, origin)) => ConfigError::new(error.problem, path, origin),
        None => ConfigError::new(error.problem, String::new(), node.origin.clone()),
    })
}

/// A problem that may not know its place yet.
#[derive(Debug)]
pub(super) struct ReadError {
    problem: Problem,
    place: Option<(String, Origin)>,
}

impl std::error::Error for ReadError {}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.problem)
    }
}

impl From<Problem> for ReadError {
    fn from(problem: Problem) -> Self {
        Self { problem, place: None }
    }
}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(msg: T) -> Self {
        Problem::Custom(msg.to_string()).into()
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Problem::Expected { expected: in_words(&expected.to_string()), found: describe(&found) }.into()
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Problem::UnknownName { name: variant.to_owned(), expected: owned(expected) }.into()
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Problem::UnknownKey { key: field.to_owned(), expected: owned(expected), meant: None, of_type: None }.into()
    }

    fn missing_field(field: &'static str) -> Self {
        Problem::Missing(field.to_owned()).into()
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn describe(found: &de::Unexpected<'_>) -> String {
    match found {
        de::Unexpected::Str(s) => format!("the string \"{s}\""),
        de::Unexpected::Bool(b) => b.to_string(),
        de::Unexpected::Unsigned(n) => n.to_string(),
        de::Unexpected::Signed(n) => n.to_string(),
        de::Unexpected::Float(x) => x.to_string(),
        de::Unexpected::Seq => "a list".to_owned(),
        de::Unexpected::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

/// serde's own names of what it wants, in words.
fn in_words(expected: &str) -> String {
    match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number from 0",
        "a nonzero u8" => "a whole number from 1 to 255",
        "a nonzero u16" => "a whole number from 1 to 65535",
        "a nonzero u32" => "a whole number from 1 to 4294967295",
        "a nonzero u64" | "a nonzero usize" => "a whole number from 1",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a table",
        "a string" | "string" | "str" => "a string",
        other if other.starts_with("struct ") || other.starts_with("internally tagged enum ") => "a table",
        other if other.contains("enum ") => "a name",
        other => other,
    }
    .to_owned()
}

#[derive(Clone, Copy)]
struct Step<'a> {
    key: &'a str,
    up: Option<&'a Step<'a>>,
}

fn dotted(step: Option<&Step<'_>>) -> String {
    match step {
        None => String::new(),
        Some(step) => join(&dotted(step.up), step.key),
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    path: Option<&'a Step<'a>>,
}

impl<'a> Reader<'a> {
    fn locate(&self, mut error: ReadError) -> ReadError {
        if error.place.is_none() {
            let path = dotted(self.path);
            error.place = Some(find(&error.problem, self.node, &path).unwrap_or_else(|| (path, self.node.origin.clone())));
        }
        error
    }

    /// A scalar's own text, where it came from the command line (D2).
    fn command_line_text(&self) -> Option<String> {
        match (&self.node.origin, &self.node.value) {
            (Origin::Set(argument), Value::Integer(_) | Value::Float(_) | Value::Bool(_)) => {
                let text = argument.split_once('=').map(|(_, text)| text.trim())?;
                (!text.starts_with(['[', '{'])).then(|| text.to_owned())
            }
            (Origin::Flag(_), Value::Integer(i)) => Some(i.to_string()),
            _ => None,
        }
    }

    #[expect(clippy::result_large_err, reason = "an error ends the reading; it carries its place")]
    fn visit<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let result = match &self.node.value {
            Value::String(s) => visitor.visit_str(s),
            Value::Integer(i) => match u64::try_from(*i) {
                Ok(u) => visitor.visit_u64(u),
                Err(_) => visitor.visit_i64(*i),
            },
            Value::Float(x) => visitor.visit_f64(*x),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Array(items) => visitor.visit_seq(Items { items: items.iter(), next: 0, up: self.path }),
            Value::Table(table) => visitor.visit_map(Entries { entries: table.iter(), value: None, up: self.path }),
        };
        result.map_err(|error| self.locate(error))
    }
}

/// Finds the value that a problem without a place is about (D1).
fn find(problem: &Problem, node: &Node, path: &str) -> Option<(String, Origin)> {
    match problem {
        Problem::UnknownKey { key, .. } => key_in(node, path, key),
        Problem::UnknownName { name, .. } => only(node, path, &format!("the string \"{name}\"")),
        Problem::Expected { found, .. } => only(node, path, found),
        _ => None,
    }
}

fn key_in(node: &Node, path: &str, key: &str) -> Option<(String, Origin)> {
    match &node.value {
        Value::Table(table) => match table.get(key) {
            Some(entry) => Some((join(path, key), entry.key_origin.clone())),
            None => table.iter().find_map(|(k, entry)| key_in(&entry.node, &join(path, k), key)),
        },
        Value::Array(items) => items.iter().enumerate().find_map(|(i, item)| key_in(item, &join(path, &i.to_string()), key)),
        _ => None,
    }
}

/// The one value below `node` that is described so; none where several are.
fn only(node: &Node, path: &str, found: &str) -> Option<(String, Origin)> {
    let mut hits = Vec::new();
    described_so(node, path, found, &mut hits);
    if hits.len() == 1 { hits.pop() } else { None }
}

fn described_so(node: &Node, path: &str, found: &str, hits: &mut Vec<(String, Origin)>) {
    let own = match &node.value {
        Value::String(s) => describe(&de::Unexpected::Str(s)),
        Value::Integer(i) => i.to_string(),
        Value::Float(x) => x.to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Array(_) => "a list".to_owned(),
        Value::Table(_) => "a table".to_owned(),
    };
    if own == found {
        hits.push((path.to_owned(), node.origin.clone()));
    }
    match &node.value {
        Value::Table(table) => table.iter().for_each(|(k, entry)| described_so(&entry.node, &join(path, k), found, hits)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| described_so(item, &join(path, &i.to_string()), found, hits));
        }
        _ => {}
    }
}

impl<'de> de::Deserializer<'de> for Reader<'_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.visit(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.command_line_text() {
            Some(text) => visitor.visit_string(text).map_err(|error| self.locate(error)),
            None => self.visit(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_some(self).map_err(|error| self.locate(error))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self).map_err(|error| self.locate(error))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let result = match &self.node.value {
            Value::String(s) => visitor.visit_enum(s.as_str().into_deserializer()),
            Value::Table(table) => {
                let entries = Entries { entries: table.iter(), value: None, up: self.path };
                visitor.visit_enum(de::value::MapAccessDeserializer::new(entries))
            }
            _ => return self.visit(visitor),
        };
        result.map_err(|error| self.locate(error))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf
        unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'a> {
    items: std::slice::Iter<'a, Node>,
    next: usize,
    up: Option<&'a Step<'a>>,
}

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        let Some(node) = self.items.next() else { return Ok(None) };
        let key = self.next.to_string();
        self.next += 1;
        let step = Step { key: &key, up: self.up };
        let reader = Reader { node, path: Some(&step) };
        seed.deserialize(reader).map(Some).map_err(|error| reader.locate(error))
    }
}

struct Entries<'a> {
    entries: std::collections::btree_map::Iter<'a, String, Entry>,
    value: Option<(&'a str, &'a Entry)>,
    up: Option<&'a Step<'a>>,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ReadError> {
        let Some((key, entry)) = self.entries.next() else { return Ok(None) };
        self.value = Some((key, entry));
        seed.deserialize(key.as_str().into_deserializer()).map(Some).map_err(|mut error: ReadError| {
            error.place.get_or_insert_with(|| (join(&dotted(self.up), key), entry.key_origin.clone()));
            error
        })
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ReadError> {
        let Some((key, entry)) = self.value.take() else {
            return Err(Problem::Custom("a value was asked for before its key".to_owned()).into());
        };
        let step = Step { key, up: self.up };
        let reader = Reader { node: &entry.node, path: Some(&step) };
        seed.deserialize(reader).map_err(|error| reader.locate(error))
    }
}
