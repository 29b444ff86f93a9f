//! The first frames: the plug-in says what it is, the host answers with its options or refuses.
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The plug-in protocol this build speaks.
pub const PROTOCOL: u64 = 1;

/// What a plug-in says of itself.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct PluginHello {
    /// Oldest protocol it speaks.
    pub protocol_min: u64,
    /// Newest.
    pub protocol_max: u64,
    /// Its role; a reward's is `reward`.
    pub role: String,
    /// The function's name, for the log.
    #[serde(default)]
    pub name: String,
    /// SDK and language, for the log.
    #[serde(default)]
    pub sdk: String,
    /// What it can do; unknown ones are ignored.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// JSON Schema of its `options`.
    #[serde(default)]
    pub schema: Option<Value>,
}

/// Reads and checks the first frame. `Err` says what to change.
pub(super) fn check(frame: &Value, options: &Map<String, Value>) -> Result<PluginHello, String> {
    match frame.get("type").and_then(Value::as_str) {
        Some("hello") => {}
        Some("error") => {
            return Err(format!("it could not start: {}", frame.get("message").and_then(Value::as_str).unwrap_or("no message")));
        }
        _ => return Err(format!("its first frame is {frame}, expected one of type \"hello\"")),
    }
    let hello = PluginHello::deserialize(frame).map_err(|e| format!("its hello is malformed: {e}"))?;
    if !(hello.protocol_min..=hello.protocol_max).contains(&PROTOCOL) {
        return Err(format!(
            "it speaks plug-in protocol {} to {}, this build speaks {PROTOCOL}: use the SDK file of this version",
            hello.protocol_min, hello.protocol_max
        ));
    }
    if hello.role != "reward" {
        return Err(format!("it is a plug-in of role {:?}, expected \"reward\"", hello.role));
    }
    if let Some(schema) = hello.schema.as_ref().filter(|schema| !schema.is_null()) {
        let validator = jsonschema::validator_for(schema).map_err(|e| format!("the schema of its options is none: {e}"))?;
        if let Err(e) = validator.validate(&Value::Object(options.clone())) {
            let place = e.instance_path().to_string();
            return Err(format!("options{place}: {e}: correct the part's `options` in the config"));
        }
    }
    Ok(hello)
}

/// The host's answer.
pub(super) fn welcome(name: &str, options: &Map<String, Value>) -> Value {
    json!({ "type": "welcome", "protocol": PROTOCOL, "name": name, "options": options })
}

/// The host's refusal.
pub(super) fn refused(reason: &str) -> Value {
    json!({ "type": "refused", "reason": reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(change: impl FnOnce(&mut Value)) -> Result<PluginHello, String> {
        let mut frame = json!({"type": "hello", "role": "reward", "protocol_min": 1, "protocol_max": 1, "name": "f",
            "schema": {"type": "object", "properties": {"strict": {"type": "boolean"}}, "additionalProperties": false}});
        change(&mut frame);
        check(&frame, json!({"strict": true}).as_object().unwrap())
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        assert_eq!(hello(|_| {}).unwrap().name, "f");
        assert!(hello(|f| f["future"] = json!(1)).is_ok(), "fields may be added");
        for (key, value, want) in [
            ("protocol_min", json!(2), "speaks plug-in protocol 2 to 1"),
            ("role", json!("tool"), "role \"tool\""),
            ("type", json!("hallo"), "expected one of type \"hello\""),
            ("schema", json!({"type": 5}), "schema of its options"),
            ("schema", json!({"required": ["level"]}), "correct the part's `options`"),
            ("protocol_max", json!("new"), "malformed"),
        ] {
            let why = hello(|f| f[key] = value).unwrap_err();
            assert!(why.contains(want), "{why}");
        }
        let died = check(&json!({"type": "error", "message": "no module named x"}), &Map::new()).unwrap_err();
        assert!(died.contains("no module named x"));
    }
}
