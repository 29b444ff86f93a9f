//! The `[rewards]` section. Which keys a part may have is its type's affair: see [`crate::Registry`].
use crate::{Registry, RewardError};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// How a completion is graded: the parts and how their scores become one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RewardsConfig {
    /// How the parts' scores become one. Default `weighted_sum`.
    pub combine: Combine,
    /// The graders, at least one. Each sample is graded by all of them.
    pub parts: Vec<PartConfig>,
}

/// How the parts' scores become one. Parts of weight 0 are reported in the breakdown and count nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// Sum of weight x score. Weights may be negative (a penalty).
    #[default]
    WeightedSum,
    /// Sum of weight x score over the sum of weights.
    WeightedAverage,
    /// The smallest score. Weights are 0 or 1.
    Min,
    /// The product of the scores. Weights are 0 or 1.
    Product,
    /// `exp(sum of weight x ln score / sum of weights)`. Scores must not be negative.
    GeometricMean,
}

/// One grader: its type, its name, its weight and the keys of its type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct PartConfig {
    /// Which grader: a name of the [`Registry`].
    pub kind: String,
    /// Name in the breakdown and in errors; the type's name unless given. Unique among the parts.
    pub name: String,
    /// Its share, see [`Combine`]. Default 1.
    pub weight: f64,
    /// The keys of its type.
    pub options: Map<String, Value>,
}

impl PartConfig {
    /// A part of weight 1 without options, named like its type.
    #[must_use]
    pub fn new(kind: &str) -> Self {
        Self { kind: kind.to_owned(), name: kind.to_owned(), weight: 1.0, options: Map::new() }
    }

    /// Sets one of its type's keys.
    #[must_use]
    pub fn option(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.options.insert(key.to_owned(), value.into());
        self
    }
}

impl TryFrom<Map<String, Value>> for PartConfig {
    type Error = String;

    fn try_from(mut options: Map<String, Value>) -> Result<Self, String> {
        let mut text = |key: &str| match options.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
            Some(other) => Err(format!("{key} = {other}: expected a string that is not empty")),
        };
        let kind = text("type")?.ok_or("a reward part needs a type, for example type = \"exact_match\"")?;
        let name = text("name")?.unwrap_or_else(|| kind.clone());
        if name.contains('/') {
            return Err(format!("name = {name:?}: a name must not contain '/', which separates the parts of a breakdown"));
        }
        let weight = match options.remove("weight") {
            None => 1.0,
            Some(value) => value
                .as_f64()
                .filter(|weight| weight.is_finite())
                .ok_or_else(|| format!("weight = {value} of part {name:?}: expected a finite number"))?,
        };
        Ok(Self { kind, name, weight, options })
    }
}

impl From<PartConfig> for Map<String, Value> {
    fn from(part: PartConfig) -> Self {
        let mut map = Self::new();
        map.insert("type".to_owned(), part.kind.into());
        map.insert("name".to_owned(), part.name.into());
        map.insert("weight".to_owned(), part.weight.into());
        map.extend(part.options);
        map
    }
}

impl JsonSchema for PartConfig {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PartConfig".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let variants: Vec<Value> = Registry::builtin()
            .types()
            .map(|entry| {
                let mut schema = entry.schema(generator).to_value();
                let keys = [
                    ("type", json_schema!({ "const": entry.name() })),
                    ("name", json_schema!({ "type": "string", "description": "Name in the breakdown and in errors. Default: the type." })),
                    ("weight", json_schema!({ "type": "number", "default": 1.0, "description": "Its share, see `combine`. Default 1." })),
                ];
                if let Some(object) = schema.as_object_mut() {
                    object.insert("description".to_owned(), entry.summary().into());
                    object.insert("title".to_owned(), entry.name().into());
                    let properties = object.entry("properties").or_insert_with(|| Value::Object(Map::new()));
                    if let Some(properties) = properties.as_object_mut() {
                        let own = std::mem::take(properties);
                        properties.extend(keys.map(|(key, schema)| (key.to_owned(), schema.to_value())));
                        properties.extend(own);
                    }
                    let required = object.entry("required").or_insert_with(|| Value::Array(Vec::new()));
                    if let Some(required) = required.as_array_mut() {
                        required.insert(0, "type".into());
                    }
                }
                schema
            })
            .collect();
        json_schema!({ "oneOf": variants })
    }
}

impl RewardsConfig {
    /// Makes relative commands and files of the parts absolute against the folder of the config file they came from.
    /// Call it once for each file, before files are merged or the resolved config is written elsewhere.
    pub fn resolve_paths(&mut self, folder: &Path) {
        for part in &mut self.parts {
            resolve_part(&part.kind, &mut part.options, folder);
        }
    }

    /// Checks what can be checked before anything is built: parts, names, weights.
    ///
    /// Errors: [`RewardError::Config`] naming the part.
    pub fn check(&self) -> Result<(), RewardError> {
        if self.parts.is_empty() {
            return Err(RewardError::config("rewards.parts", "no reward is configured: add [[rewards.parts]] with a type"));
        }
        for (i, part) in self.parts.iter().enumerate() {
            let place = format!("rewards.parts[{i}]");
            if self.parts[..i].iter().any(|other| other.name == part.name) {
                let why = format!("two parts are called {:?}: give one of them another name = \"..\"", part.name);
                return Err(RewardError::config(place, why));
            }
            check_weight(self.combine, part.weight).map_err(|why| RewardError::config(format!("{place}.weight"), why))?;
        }
        if self.parts.iter().all(|part| part.weight == 0.0) {
            return Err(RewardError::config("rewards.parts", "every weight is 0: nothing would be rewarded"));
        }
        Ok(())
    }
}

fn check_weight(combine: Combine, weight: f64) -> Result<(), String> {
    let binary = weight == 0.0 || weight == 1.0;
    match combine {
        Combine::Min | Combine::Product if !binary => {
            Err(format!("{weight}, but combine = {combine:?} does not weigh: use 1, or 0 to report the part only"))
        }
        Combine::WeightedAverage | Combine::GeometricMean if weight < 0.0 => {
            Err(format!("{weight} is negative, which combine = {combine:?} cannot average: use weighted_sum"))
        }
        _ => Ok(()),
    }
}

/// As [`RewardsConfig::resolve_paths`], on the raw options of one part.
fn resolve_part(kind: &str, options: &mut Map<String, Value>, folder: &Path) {
    let absolute = |path: &str| folder.join(path).display().to_string();
    match kind {
        "process" => {
            let given = options.get("working_dir").and_then(Value::as_str).unwrap_or(".").to_owned();
            let resolved = if given == "." { folder.display().to_string() } else { absolute(&given) };
            options.insert("working_dir".to_owned(), resolved.into());
            for key in ["read", "write"] {
                let paths = options.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten();
                for path in paths {
                    if let Some(given) = path.as_str() {
                        *path = absolute(given).into();
                    }
                }
            }
        }
        "json_schema" => {
            if let Some(path) = options.get("schema_path").and_then(Value::as_str).map(absolute) {
                options.insert("schema_path".to_owned(), path.into());
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RewardsConfig, String> {
        toml::from_str(text).map_err(|e| e.to_string())
    }

    #[test]
    fn reads_parts_with_defaults_and_keeps_their_own_keys() {
        let config = parse(
            "[[parts]]\ntype = \"numeric\"\ntolerance = 0.5\n[[parts]]\ntype = \"length\"\nname = \"short\"\nweight = -0.1",
        )
        .unwrap();
        assert_eq!(config.combine, Combine::WeightedSum);
        assert_eq!(config.parts[0], PartConfig::new("numeric").option("tolerance", 0.5));
        assert_eq!((config.parts[1].name.as_str(), config.parts[1].weight), ("short", -0.1));
        config.check().unwrap();
        let again: RewardsConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn bad_parts_are_refused_with_place_and_remedy() {
        for (text, want) in [
            ("", "add [[rewards.parts]]"),
            ("[[parts]]\ntype = \"length\"\n[[parts]]\ntype = \"length\"", "rewards.parts[1]: two parts are called \"length\""),
            ("combine = \"min\"\n[[parts]]\ntype = \"length\"\nweight = 0.5", "rewards.parts[0].weight: 0.5"),
            ("combine = \"weighted_average\"\n[[parts]]\ntype = \"length\"\nweight = -1", "use weighted_sum"),
            ("[[parts]]\ntype = \"length\"\nweight = 0", "every weight is 0"),
        ] {
            let error = parse(text).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
        for (text, want) in [
            ("[[parts]]\nname = \"x\"", "needs a type"),
            ("[[parts]]\ntype = \"length\"\nweight = \"much\"", "expected a finite number"),
            ("[[parts]]\ntype = \"length\"\nweight = nan", "expected a finite number"),
            ("[[parts]]\ntype = \"length\"\nname = \"a/b\"", "must not contain '/'"),
            ("combin = \"min\"", "unknown field `combin`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn relative_commands_run_from_the_folder_of_the_config() {
        let part = PartConfig::new("process").option("read", vec!["data", "/srv"]);
        let mut config = RewardsConfig { parts: vec![part], ..Default::default() };
        config.resolve_paths(Path::new("/etc/run"));
        assert_eq!(config.parts[0].options["working_dir"], "/etc/run");
        assert_eq!(config.parts[0].options["read"], serde_json::json!(["/etc/run/data", "/srv"]));
        config.resolve_paths(Path::new("/elsewhere"));
        assert_eq!(config.parts[0].options["working_dir"], "/etc/run", "resolved once, kept on resume");
    }

    #[test]
    fn the_schema_lists_every_type_with_its_keys() {
        let schema = schemars::schema_for!(RewardsConfig).to_value().to_string();
        for entry in Registry::builtin().types() {
            assert!(schema.contains(&format!("{{\"const\":{:?}}}", entry.name())), "{} in {schema}", entry.name());
        }
        assert!(schema.contains("tolerance"));
    }
}
