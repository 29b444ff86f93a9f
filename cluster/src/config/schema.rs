//! What keys exist, read from the JSON schema of a configuration type: for the reference, for "did you mean", for help
//! beside an error.
use schemars::JsonSchema;
use serde_json::{Map, Value};

/// One key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyDoc {
    /// Dotted path; `[]` after a list's name.
    pub path: String,
    /// `type = "..."` of the table that has this key, where only some have it.
    pub when: Option<String>,
    /// What values it takes, in words.
    pub kind: String,
    /// Its default as TOML, where it has one.
    pub default: Option<String>,
    /// Its documentation.
    pub doc: String,
}

/// All keys of a type, in the order of its fields.
#[must_use]
pub fn keys<T: JsonSchema>() -> Vec<KeyDoc> {
    let root = schemars::SchemaGenerator::default().into_root_schema_for::<T>().to_value();
    let none = Map::new();
    let definitions = root.get("$defs").and_then(Value::as_object).unwrap_or(&none);
    let mut walker = Walker { definitions, out: Vec::new() };
    walker.table(&root, "", None, root.get("default"));
    walker.out
}

/// The documentation of a concrete path, as `rewards.parts.0.weight`.
#[must_use]
pub fn find<'a>(keys: &'a [KeyDoc], path: &str) -> Option<&'a KeyDoc> {
    let mut generic = String::new();
    for key in path.split('.') {
        if key.bytes().all(|b| b.is_ascii_digit()) {
            generic.push_str("[]");
        } else {
            if !generic.is_empty() {
                generic.push('.');
            }
            generic.push_str(key);
        }
    }
    keys.iter().find(|key| key.path == generic)
}

struct Walker<'a> {
    definitions: &'a Map<String, Value>,
    out: Vec<KeyDoc>,
}

impl<'a> Walker<'a> {
    /// Follows `$ref` and the wrapper of an optional value.
    fn target(&self, schema: &'a Value) -> &'a Value {
        let mut schema = schema;
        for _ in 0..8 {
            let reference = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/$defs/"));
            if let Some(definition) = reference.and_then(|name| self.definitions.get(name)) {
                schema = definition;
            } else if let Some(inner) = optional(schema) {
                schema = inner;
            } else {
                break;
            }
        }
        schema
    }

    fn table(&mut self, schema: &'a Value, path: &str, when: Option<&str>, default: Option<&'a Value>) {
        let schema = self.target(schema);
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            let required: Vec<&str> = schema
                .get("required")
                .and_then(Value::as_array)
                .map_or(Vec::new(), |r| r.iter().filter_map(Value::as_str).collect());
            for (name, child) in properties {
                if when.is_some() && name == "type" {
                    continue;
                }
                let given = default.and_then(|d| d.get(name)).or_else(|| child.get("default"));
                self.key(name, child, path, when, given, required.contains(&name.as_str()));
            }
        }
        for variant in variants(schema) {
            let variant = self.target(variant);
            if let Some(tag) = variant.pointer("/properties/type/const").and_then(Value::as_str) {
                self.table(variant, path, Some(tag), None);
            }
        }
    }

    fn key(&mut self, name: &str, schema: &'a Value, path: &str, when: Option<&str>, default: Option<&'a Value>, required: bool) {
        let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let target = self.target(schema);
        let doc = schema.get("description").or_else(|| target.get("description")).and_then(Value::as_str).unwrap_or("");
        let is_table = target.get("properties").is_some() || variants(target).any(|v| self.target(v).get("properties").is_some());
        let default_text = match default {
            Some(Value::Null) | None => required.then(|| "required".to_owned()),
            Some(value) if is_table => value.get("type").map(|tag| format!("type = {tag}")),
            Some(value) => Some(literal(value)),
        };
        self.out.push(KeyDoc {
            path: path.clone(),
            when: when.map(str::to_owned),
            kind: self.kind(schema),
            default: default_text,
            doc: doc.split_whitespace().collect::<Vec<_>>().join(" "),
        });
        if is_table {
            self.table(target, &path, None, default);
        } else if let Some(items) = target.get("items") {
            self.table(items, &format!("{path}[]"), None, None);
        }
    }

    /// What values a schema takes, in words.
    fn kind(&self, schema: &'a Value) -> String {
        let schema = self.target(schema);
        if let Some(kind) = schema.get("x-kind").and_then(Value::as_str) {
            return kind.to_owned();
        }
        let names: Vec<&str> = constants(schema)
            .into_iter()
            .chain(variants(schema).flat_map(|v| constants(self.target(v))))
            .chain(variants(schema).filter_map(|v| self.target(v).pointer("/properties/type/const").and_then(Value::as_str)))
            .collect();
        if !names.is_empty() {
            let quoted = names.iter().map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(" \\| ");
            return if schema.get("enum").is_some() || !constants(schema).is_empty() || self.plain(schema) {
                quoted
            } else {
                format!("table, type = {quoted}")
            };
        }
        match type_name(schema) {
            Some("array") => format!("list of {}", schema.get("items").map_or("values".to_owned(), |i| self.kind(i))),
            Some("object") => "table".to_owned(),
            Some("integer") => format!("whole number{}", bounds(schema)),
            Some("number") => "number".to_owned(),
            Some("boolean") => "true or false".to_owned(),
            Some("string") => "string".to_owned(),
            _ => "any value".to_owned(),
        }
    }

    /// Whether all variants are names and none is a table.
    fn plain(&self, schema: &'a Value) -> bool {
        variants(schema).all(|v| self.target(v).get("properties").is_none())
    }
}

fn type_name(schema: &Value) -> Option<&str> {
    match schema.get("type")? {
        Value::Array(names) => names.iter().filter_map(Value::as_str).find(|&n| n != "null"),
        name => name.as_str(),
    }
}

fn bounds(schema: &Value) -> String {
    match schema.get("minimum").and_then(Value::as_f64) {
        Some(minimum) if minimum > 0.0 => format!(" from {minimum}"),
        _ => String::new(),
    }
}

fn variants(schema: &Value) -> impl Iterator<Item = &Value> {
    ["oneOf", "anyOf"].into_iter().filter_map(|k| schema.get(k).and_then(Value::as_array)).flatten()
}

fn constants(schema: &Value) -> Vec<&str> {
    let listed = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    listed.chain(schema.get("const")).filter_map(Value::as_str).collect()
}

/// The value of `anyOf: [value, null]`.
fn optional(schema: &Value) -> Option<&Value> {
    let variants = schema.get("anyOf")?.as_array()?;
    let is_null = |v: &&Value| v.get("type").and_then(Value::as_str) == Some("null");
    let mut values = variants.iter().filter(|v| !is_null(v));
    match (values.next(), values.next(), variants.iter().any(|v| is_null(&v))) {
        (Some(value), None, true) => Some(value),
        _ => None,
    }
}

/// A default as TOML writes it.
fn literal(value: &Value) -> String {
    match value {
        Value::String(s) => format!("{s:?}"),
        Value::Array(items) => format!("[{}]", items.iter().map(literal).collect::<Vec<_>>().join(", ")),
        Value::Object(map) if map.is_empty() => "{}".to_owned(),
        Value::Object(map) => {
            format!("{{ {} }}", map.iter().map(|(k, v)| format!("{k} = {}", literal(v))).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}
