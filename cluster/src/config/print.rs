//! The resolved configuration as TOML that can be read back, each value with its origin as a comment.
use super::origin::Origin;
use super::tree::{Node, Value as Given};
use serde_json::{Map, Value};

type Table = Map<String, Value>;

/// Prints a serialised configuration; origins come from the tree it was read from.
///
/// Errors: a whole number past TOML's 64 signed bits, by its path.
pub(super) fn with_origins(config: &Table, tree: &Node) -> Result<String, String> {
    let mut printer = Printer { tree, path: Vec::new(), lines: Vec::new() };
    printer.table(config)?;
    let lines = printer.lines;
    let width = lines.iter().filter(|l| l.origin.is_some()).map(|l| l.text.chars().count()).filter(|&w| w <= 60).max();
    let width = width.unwrap_or(0);
    let mut out = String::new();
    for line in lines {
        match line.origin {
            Some(origin) => out.push_str(&format!("{:width$}  # {}\n", line.text, one_line(&origin))),
            None => out.push_str(&format!("{}\n", line.text)),
        }
    }
    Ok(out.trim_start().to_owned())
}

/// A comment cannot hold control characters.
fn one_line(origin: &Origin) -> String {
    origin.to_string().replace(|c: char| c.is_control(), " ")
}

struct Line {
    text: String,
    origin: Option<Origin>,
}

struct Printer<'a> {
    tree: &'a Node,
    path: Vec<String>,
    lines: Vec<Line>,
}

impl Printer<'_> {
    fn table(&mut self, config: &Table) -> Result<(), String> {
        for (key, value) in config.iter().filter(|(_, v)| !v.is_null() && !is_section(v)) {
            self.path.push(key.clone());
            let given = self.tree.get(&self.path);
            let origin = given.map_or(Origin::Default, |node| node.origin.clone());
            let text = inline(value, given).map_err(|why| format!("{}: {why}", self.path.join(".")))?;
            self.lines.push(Line { text: format!("{} = {text}", quoted(key)), origin: Some(origin) });
            self.path.pop();
        }
        for (key, value) in config.iter().filter(|(_, v)| is_section(v)) {
            self.path.push(key.clone());
            match value {
                Value::Object(inner) => {
                    self.header("[", "]");
                    self.table(inner)?;
                }
                Value::Array(items) => {
                    for (i, item) in items.iter().filter_map(Value::as_object).enumerate() {
                        self.header("[[", "]]");
                        self.path.push(i.to_string());
                        self.table(item)?;
                        self.path.pop();
                    }
                }
                _ => {}
            }
            self.path.pop();
        }
        Ok(())
    }

    fn header(&mut self, open: &str, close: &str) {
        let keys = self.path.iter().filter(|k| k.parse::<usize>().is_err()).map(|k| quoted(k));
        let name = keys.collect::<Vec<_>>().join(".");
        self.lines.push(Line { text: String::new(), origin: None });
        self.lines.push(Line { text: format!("{open}{name}{close}"), origin: None });
    }
}

/// Whether a value gets a header of its own: a table, or a list of nothing but tables.
fn is_section(value: &Value) -> bool {
    match value {
        Value::Object(_) => true,
        Value::Array(items) => !items.is_empty() && items.iter().all(Value::is_object),
        _ => false,
    }
}

fn quoted(key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { key.to_owned() } else { toml::Value::from(key).to_string() }
}

fn inline(value: &Value, given: Option<&Node>) -> Result<String, String> {
    Ok(match value {
        Value::Number(n) if n.is_f64() => match given {
            Some(Node { value: Given::Float(said), origin }) if *origin != Origin::Default => float(*said),
            Some(Node { value: Given::Integer(said), .. }) => float(*said as f64),
            _ => shortest(n.as_f64().unwrap_or(f64::NAN)),
        },
        Value::Number(n) => n.as_i64().map(|i| i.to_string()).ok_or_else(|| format!("{n} is more than {}", i64::MAX))?,
        Value::String(s) => toml::Value::from(s.as_str()).to_string(),
        Value::Array(items) => {
            let items = items.iter().filter(|item| !item.is_null()).map(|item| inline(item, None));
            format!("[{}]", items.collect::<Result<Vec<_>, _>>()?.join(", "))
        }
        Value::Object(map) => {
            let pairs = map.iter().filter(|(_, v)| !v.is_null());
            let pairs = pairs.map(|(k, v)| Ok(format!("{} = {}", quoted(k), inline(v, None)?)));
            format!("{{ {} }}", pairs.collect::<Result<Vec<_>, String>>()?.join(", "))
        }
        other => other.to_string(),
    })
}

/// A default's digits: those of the f32 where the value is one (0.7 rather than 0.699999988079071).
fn shortest(x: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "compared with the original right after")]
    let single = x as f32;
    let widened = f64::from(single).to_bits() == x.to_bits();
    match single.to_string().parse::<f64>() {
        Ok(written) if widened => float(written),
        _ => float(x),
    }
}

fn float(x: f64) -> String {
    let far = x != 0.0 && x.is_finite() && (x.abs() < 1e-4 || x.abs() >= 1e15);
    if far { format!("{x:e}") } else { toml::Value::Float(x).to_string() }
}
