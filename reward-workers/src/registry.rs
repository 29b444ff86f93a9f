//! Reward types by name (`type = ".."`). A program built on this crate registers its own beside the built-in ones.
use crate::{RewardError, RewardsConfig, reward::Reward, rewards};
use cohort_actors::confine::Confiner;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

type Build = dyn Fn(&str, Map<String, Value>) -> Result<Arc<dyn Reward>, String> + Send + Sync;

/// One reward type.
pub struct RewardType {
    name: &'static str,
    summary: &'static str,
    schema: fn(&mut SchemaGenerator) -> Schema,
    build: Box<Build>,
}

impl RewardType {
    /// A type whose keys are the fields of `C`. `build` gets the part's name; its error says what to change.
    pub fn new<C, R, F>(name: &'static str, summary: &'static str, build: F) -> Self
    where
        C: DeserializeOwned + JsonSchema,
        R: Reward + 'static,
        F: Fn(&str, C) -> Result<R, String> + Send + Sync + 'static,
    {
        let build = move |part: &str, options: Map<String, Value>| -> Result<Arc<dyn Reward>, String> {
            let options: C = serde_json::from_value(Value::Object(options)).map_err(|e| e.to_string())?;
            Ok(Arc::new(build(part, options)?))
        };
        Self { name, summary, schema: C::json_schema, build: Box::new(build) }
    }

    /// The name in the config.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// One line for `docs/config.md`.
    #[must_use]
    pub fn summary(&self) -> &'static str {
        self.summary
    }

    /// The schema of its keys.
    pub fn schema(&self, generator: &mut SchemaGenerator) -> Schema {
        (self.schema)(generator)
    }
}

/// All reward types that a config may name.
pub struct Registry {
    types: BTreeMap<&'static str, RewardType>,
}

impl Registry {
    /// The built-in types. Programs of users are confined by the running program, which must hand
    /// [`cohort_actors::confine::COMMAND`] on as `cluster` does.
    #[must_use]
    pub fn builtin() -> Self {
        Self::confining(&Confiner::default())
    }

    /// The built-in types, programs of users confined by `confiner`.
    #[must_use]
    pub fn confining(confiner: &Confiner) -> Self {
        let mut registry = Self { types: BTreeMap::new() };
        for entry in rewards::builtin(confiner) {
            registry.register(entry);
        }
        registry
    }

    /// Adds a type, or replaces the one of its name.
    pub fn register(&mut self, entry: RewardType) {
        self.types.insert(entry.name, entry);
    }

    /// The types by name.
    pub fn types(&self) -> impl Iterator<Item = &RewardType> {
        self.types.values()
    }

    /// Builds the reward of a run. Processes of plug-ins start with their first group, not here.
    ///
    /// Errors: [`RewardError::Config`] with the part's place: unknown type, unknown key, bad value.
    pub fn build(&self, config: &RewardsConfig) -> Result<Arc<dyn Reward>, RewardError> {
        config.check()?;
        let mut parts = Vec::with_capacity(config.parts.len());
        for (i, part) in config.parts.iter().enumerate() {
            let place = || format!("rewards.parts[{i}] (type = {:?}, name = {:?})", part.kind, part.name);
            let entry =
                self.types.get(part.kind.as_str()).ok_or_else(|| RewardError::config(place(), self.unknown(&part.kind)))?;
            let reward = (entry.build)(&part.name, part.options.clone()).map_err(|why| RewardError::config(place(), why))?;
            parts.push((reward, part.weight));
        }
        Ok(Arc::new(rewards::composite::Composite::new(config.combine, parts)))
    }

    fn unknown(&self, kind: &str) -> String {
        let near = self.types.keys().map(|name| (strsim::damerau_levenshtein(name, kind), name)).min();
        let hint = match near {
            Some((distance, name)) if distance <= 1 + kind.chars().count() / 3 => format!(" Did you mean {name:?}?"),
            _ => String::new(),
        };
        let known: Vec<&str> = self.types.keys().copied().collect();
        format!("unknown reward type.{hint} Known types: {}", known.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PartConfig;

    fn refuse(part: PartConfig) -> String {
        let config = RewardsConfig { parts: vec![part], ..Default::default() };
        match Registry::builtin().build(&config) {
            Ok(_) => panic!("accepted"),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn unknown_types_and_keys_are_refused_with_the_place_and_what_is_near() {
        let error = refuse(PartConfig::new("exact_mach"));
        assert!(error.starts_with("rewards.parts[0] (type = \"exact_mach\""), "{error}");
        assert!(error.contains("Did you mean \"exact_match\"?"), "{error}");
        let error = refuse(PartConfig::new("numeric").option("tolerence", 0.1));
        assert!(error.contains("unknown field `tolerence`") && error.contains("`tolerance`"), "{error}");
        assert!(!refuse(PartConfig::new("zzzzzzzz")).contains("Did you mean"));
    }

    #[test]
    fn a_program_adds_its_own_type() {
        #[derive(serde::Deserialize, JsonSchema)]
        struct None {}
        struct Half;
        impl crate::Rule for Half {
            fn grade(&self, _: &crate::ScoreInput, _: &crate::SampleInput) -> Result<crate::Grade, String> {
                Ok(crate::Grade::of(0.5))
            }
        }
        let mut registry = Registry::builtin();
        registry.register(RewardType::new("half", "Always one half.", |name, _: None| Ok(crate::RuleReward::new(name, Half))));
        let config = RewardsConfig { parts: vec![PartConfig::new("half")], ..Default::default() };
        assert!(registry.build(&config).is_ok());
    }
}
