//! `json_schema`: the completion is JSON of a given shape.
use crate::reward::{Grade, Rule, SampleInput, ScoreInput};
use crate::text::Scope;
use jsonschema::Validator;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Keys of `type = "json_schema"`. Exactly one of `schema`, `schema_path` and `schema_column` is given.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JsonSchemaConfig {
    /// The JSON Schema as a table. References to other documents are refused. Default: none.
    pub schema: Option<Map<String, Value>>,
    /// File with the JSON Schema, relative to the config file. Default: none.
    pub schema_path: Option<String>,
    /// Column of the data row with the JSON Schema. Default: none.
    pub schema_column: Option<String>,
    /// A fenced block (three backticks) inside the completion is read in place of the whole completion. Default false.
    pub fenced: bool,
    /// Score of a completion that is JSON and does not fit the schema, in 0..1. Default 0.
    pub parsed_score: f64,
    /// Which assistant turns are read. Default `last`.
    pub scope: Scope,
}

#[derive(Debug)]
enum Schema {
    Fixed(Box<Validator>),
    Column(String),
}

/// The rule.
#[derive(Debug)]
pub struct JsonSchemaReward {
    config: JsonSchemaConfig,
    schema: Schema,
}

impl JsonSchemaReward {
    /// Reads and compiles the schema.
    pub fn new(config: JsonSchemaConfig) -> Result<Self, String> {
        if !(0.0..=1.0).contains(&config.parsed_score) {
            return Err(format!("parsed_score = {}: expected a number in 0..1", config.parsed_score));
        }
        let schema = match (&config.schema, &config.schema_path, &config.schema_column) {
            (Some(schema), None, None) => Schema::Fixed(Box::new(compile(&Value::Object(schema.clone()))?)),
            (None, Some(path), None) => {
                let text = std::fs::read_to_string(path).map_err(|e| format!("schema_path = {path:?}: {e}"))?;
                let value = serde_json::from_str(&text).map_err(|e| format!("schema_path = {path:?}: {e}"))?;
                Schema::Fixed(Box::new(compile(&value).map_err(|e| format!("schema_path = {path:?}: {e}"))?))
            }
            (None, None, Some(column)) => Schema::Column(column.clone()),
            _ => return Err("give exactly one of schema, schema_path and schema_column".to_owned()),
        };
        Ok(Self { config, schema })
    }

    fn grade_json(&self, text: &str, validator: &Validator) -> Grade {
        let text = if self.config.fenced { fenced(text).unwrap_or(text) } else { text };
        let parsed: Result<Value, _> = serde_json::from_str(text.trim());
        let valid = parsed.as_ref().is_ok_and(|value| validator.is_valid(value));
        let score = match (&parsed, valid) {
            (_, true) => 1.0,
            (Ok(_), false) => self.config.parsed_score,
            (Err(_), _) => 0.0,
        };
        Grade::of(score).with("parsed", f64::from(u8::from(parsed.is_ok()))).with("valid", f64::from(u8::from(valid)))
    }
}

impl Rule for JsonSchemaReward {
    fn grade(&self, input: &ScoreInput, sample: &SampleInput) -> Result<Grade, String> {
        let text = self.config.scope.text(sample);
        match &self.schema {
            Schema::Fixed(validator) => Ok(self.grade_json(&text, validator)),
            Schema::Column(column) => {
                let validator = compile(input.column(column)?).map_err(|e| format!("column {column:?}: {e}"))?;
                Ok(self.grade_json(&text, &validator))
            }
        }
    }
}

fn compile(schema: &Value) -> Result<Validator, String> {
    jsonschema::validator_for(schema).map_err(|e| format!("not a JSON Schema: {e}"))
}

/// The inside of the first fenced block.
fn fenced(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("```")?;
    let (info, body) = rest.split_once('\n')?;
    if info.trim().contains(char::is_whitespace) {
        return None;
    }
    Some(body.split_once("```")?.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::tests::grade;
    use serde_json::json;

    fn build(config: Value) -> Result<JsonSchemaReward, String> {
        JsonSchemaReward::new(serde_json::from_value(config).unwrap())
    }

    #[test]
    fn grades_shape_and_parsing_apart() {
        let schema = json!({"type": "object", "required": ["total"], "properties": {"total": {"type": "integer"}}});
        let rule = build(json!({"schema": schema, "parsed_score": 0.2, "fenced": true})).unwrap();
        assert_eq!(grade(&rule, json!({}), "{\"total\": 3}"), Ok(1.0));
        assert_eq!(grade(&rule, json!({}), "Here:\n```json\n{\"total\": 3}\n```\nDone."), Ok(1.0));
        assert_eq!(grade(&rule, json!({}), "{\"total\": \"3\"}"), Ok(0.2));
        assert_eq!(grade(&rule, json!({}), "total 3"), Ok(0.0));
        let column = build(json!({"schema_column": "shape"})).unwrap();
        assert_eq!(grade(&column, json!({"shape": {"type": "array"}}), "[1]"), Ok(1.0));
        assert!(grade(&column, json!({"shape": {"type": 7}}), "[1]").unwrap_err().contains("not a JSON Schema"));
    }

    #[test]
    fn bad_schemas_are_refused_when_built() {
        for config in [
            json!({}),
            json!({"schema": {"type": "object"}, "schema_column": "s"}),
            json!({"schema": {"type": "objekt"}}),
            json!({"schema": {"$ref": "https://example.org/other.json"}}),
            json!({"schema_path": "/nowhere/at/all.json"}),
        ] {
            assert!(build(config.clone()).is_err(), "{config}");
        }
    }
}
