//! Profiles: sets of defaults under the user's values. Nothing of a profile is hidden: `--dry-run` shows each of its values
//! with the origin `profile NAME`.
//!
//! | profile | learning rate | group size | groups a step | grad norm | warm-up | eval every | clip | further |
//! |---|---|---|---|---|---|---|---|---|
//! | conservative | 1e-6 | 32 | 8 | 0.5 | 0.2 | 25 | 0.1 | |
//! | balanced | 5e-6 | 16 | 4 | 1 | 0.1 | 50 | 0.2 | the plain defaults |
//! | aggressive | 1e-5 | 8 | 2 | 2 | 0.05 | 100 | 0.3 | temperature 1.1 |
//! | experimental | 2e-5 | 12 | 1 | 1.5 | 0 | 20 | 0.2 | linear schedule |
use super::error::{ConfigError, Problem};
use super::origin::Origin;
use super::tree::{Node, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A set of defaults by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Small steps, large groups, tight clipping: for rewards that are rare or noisy.
    Conservative,
    /// The plain defaults.
    #[default]
    Balanced,
    /// Large steps, small groups, wide clipping, more exploration.
    Aggressive,
    /// Large steps on few groups, linear schedule, frequent evaluation.
    Experimental,
}

struct Values {
    learning_rate: f64,
    group_size: i64,
    groups_per_step: i64,
    max_grad_norm: f64,
    warmup_ratio: f64,
    eval_every: i64,
    clip: f64,
    temperature: f64,
    schedule: &'static str,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Conservative, Self::Balanced, Self::Aggressive, Self::Experimental];

    /// Its name in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Conservative => "conservative",
            Self::Balanced => "balanced",
            Self::Aggressive => "aggressive",
            Self::Experimental => "experimental",
        }
    }

    fn values(self) -> Values {
        let balanced = Values {
            learning_rate: 5e-6,
            group_size: 16,
            groups_per_step: 4,
            max_grad_norm: 1.0,
            warmup_ratio: 0.1,
            eval_every: 50,
            clip: 0.2,
            temperature: 1.0,
            schedule: "cosine",
        };
        match self {
            Self::Balanced => balanced,
            Self::Conservative => Values {
                learning_rate: 1e-6,
                group_size: 32,
                groups_per_step: 8,
                max_grad_norm: 0.5,
                warmup_ratio: 0.2,
                eval_every: 25,
                clip: 0.1,
                ..balanced
            },
            Self::Aggressive => Values {
                learning_rate: 1e-5,
                group_size: 8,
                groups_per_step: 2,
                max_grad_norm: 2.0,
                warmup_ratio: 0.05,
                eval_every: 100,
                clip: 0.3,
                temperature: 1.1,
                ..balanced
            },
            Self::Experimental => Values {
                learning_rate: 2e-5,
                group_size: 12,
                groups_per_step: 1,
                max_grad_norm: 1.5,
                warmup_ratio: 0.0,
                eval_every: 20,
                schedule: "linear",
                ..balanced
            },
        }
    }

    /// What it sets, by dotted path.
    fn settings(self) -> [(&'static str, Value); 10] {
        let v = self.values();
        [
            ("training.learning_rate", Value::Float(v.learning_rate)),
            ("training.group_size", Value::Integer(v.group_size)),
            ("training.groups_per_step", Value::Integer(v.groups_per_step)),
            ("training.max_grad_norm", Value::Float(v.max_grad_norm)),
            ("training.warmup_ratio", Value::Float(v.warmup_ratio)),
            ("training.schedule", Value::String(v.schedule.to_owned())),
            ("training.eval.every", Value::Integer(v.eval_every)),
            ("training.loss.clip_low", Value::Float(v.clip)),
            ("training.loss.clip_high", Value::Float(v.clip)),
            ("agent.temperature", Value::Float(v.temperature)),
        ]
    }

    /// Each path with its value in every profile, for the reference.
    pub(super) fn table() -> Vec<(&'static str, Vec<String>)> {
        let text = |value: Value| match value {
            Value::Integer(i) => i.to_string(),
            Value::Float(x) if x != 0.0 && x < 1e-3 => format!("{x:e}"),
            Value::Float(x) => x.to_string(),
            Value::String(s) => format!("\"{s}\""),
            other => format!("{other:?}"),
        };
        let columns = Self::ALL.map(Self::settings);
        let row = |i: usize| (columns[0][i].0, columns.iter().map(|column| text(column[i].1.clone())).collect());
        (0..columns[0].len()).map(row).collect()
    }

    /// Its values as a layer.
    fn layer(self) -> Node {
        let origin = Origin::Profile(self.name().to_owned());
        let mut layer = Node::empty();
        for (path, value) in self.settings() {
            layer.merge(Node::at_path(path, value, &origin));
        }
        layer
    }
}

/// The layer of the profile that the user's layers name.
pub(super) fn layer(user: &Node) -> Result<Node, ConfigError> {
    let (name, origin) = user.string_at("profile").unwrap_or((Profile::default().name(), &Origin::Default));
    match Profile::ALL.into_iter().find(|p| p.name() == name) {
        Some(profile) => Ok(profile.layer()),
        None => {
            let expected = Profile::ALL.iter().map(|p| p.name().to_owned()).collect();
            let problem = Problem::UnknownName { name: name.to_owned(), expected };
            Err(ConfigError::new(problem, "profile".to_owned(), origin.clone()))
        }
    }
}
