//! Which settings a resumed run may change: those that cannot change a bit of its weights, and more steps of a run whose
//! learning rate does not depend on their number. Everything else is the run's own and is refused by name.
use crate::config::Config;
use cohort_learner::schedule::Decay;
use serde_json::Value;
use std::collections::BTreeMap;

/// Keys, and tables of keys, that another launch of the same run may set anew.
const FREE: [&str; 5] = ["cluster", "logging", "training.checkpoint", "training.eval", "training.shard_optimizer"];
/// May grow.
const STEPS: &str = "training.steps";

/// A setting that is the run's and was given another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    /// Dotted path.
    pub key: String,
    /// What the run has.
    pub run: String,
    /// What was given.
    pub given: String,
    /// Why it is not taken, and what to do.
    pub why: &'static str,
}

/// The first setting of `given` that a run begun with `begun` cannot take.
pub(super) fn refused(begun: &Config, given: &Config) -> Option<Change> {
    let (was, is) = (settings(begun), settings(given));
    let keys: std::collections::BTreeSet<&String> = was.keys().chain(is.keys()).collect();
    keys.into_iter().filter(|key| was.get(*key) != is.get(*key)).find_map(|key| {
        let text = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
        let why = refusal(key, begun, given)?;
        Some(Change { key: key.clone(), run: text(was.get(key)), given: text(is.get(key)), why })
    })
}

/// A digest of every setting that is the run's own; steps are not among them, since they may grow.
pub(super) fn identity(config: &Config) -> String {
    let fixed: BTreeMap<String, Value> = settings(config).into_iter().filter(|(key, _)| key != STEPS && !is_free(key)).collect();
    let text = serde_json::to_string(&fixed).unwrap_or_default();
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

fn refusal(key: &str, begun: &Config, given: &Config) -> Option<&'static str> {
    if key == STEPS {
        let training = &begun.training;
        // Warm-up is a part of all steps, a decay ends with them: more steps would have had another rate from the start.
        if training.schedule != Decay::Constant || training.warmup_ratio != 0.0 {
            return Some(
                "the learning rate of the steps already taken depends on their number; only a run with schedule = \"constant\" \
                 and warmup_ratio = 0 can be extended",
            );
        }
        return (given.training.steps < training.steps).then_some("a run may be extended, not cut; stop it with Ctrl-C instead");
    }
    (!is_free(key)).then_some("it is part of the run; leave it out, or begin a new run")
}

fn is_free(key: &str) -> bool {
    FREE.iter().any(|free| key.strip_prefix(free).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// Every value by its dotted path.
fn settings(config: &Config) -> BTreeMap<String, Value> {
    let mut out = BTreeMap::new();
    // A configuration that was read from TOML can be written as JSON.
    flatten("", serde_json::to_value(config).unwrap_or_default(), &mut out);
    out
}

fn flatten(path: &str, value: Value, out: &mut BTreeMap<String, Value>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(map) => map.into_iter().for_each(|(key, value)| flatten(&below(&key), value, out)),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items.into_iter().enumerate().for_each(|(i, value)| flatten(&below(&i.to_string()), value, out));
        }
        // Left out of the file: not there.
        Value::Null => {}
        value => drop(out.insert(path.to_owned(), value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(change: impl FnOnce(&mut Config)) -> Option<Change> {
        let begun = Config::default();
        let mut given = begun.clone();
        change(&mut given);
        refused(&begun, &given)
    }

    #[test]
    fn what_cannot_change_a_bit_may_differ() {
        let free = changed(|c| {
            c.cluster.rollout = u16::MAX;
            c.cluster.threads = 3;
            c.cluster.processes = true;
            c.logging.level = "debug".into();
            c.training.checkpoint.every += 1;
            c.training.eval.every += 1;
            c.training.shard_optimizer = true;
        });
        assert_eq!(free, None);
        assert_eq!(identity(&Config::default()), {
            let mut other = Config::default();
            other.cluster.threads = 9;
            other.training.steps += 1;
            identity(&other)
        });
    }

    #[test]
    fn what_is_the_runs_own_is_refused_by_name_with_both_values() {
        let seed = changed(|c| c.training.seed = 7).unwrap();
        assert_eq!((seed.key.as_str(), seed.run.as_str(), seed.given.as_str()), ("training.seed", "42", "7"));
        assert_eq!(changed(|c| c.training.group_size = 4).unwrap().key, "training.group_size");
        assert_eq!(changed(|c| c.model.path = "elsewhere".into()).unwrap().key, "model.path");
        assert_eq!(changed(|c| c.agent.temperature = 0.5).unwrap().key, "agent.temperature");
        let mut seeded = Config::default();
        seeded.training.seed = 7;
        assert_ne!(identity(&Config::default()), identity(&seeded));
    }

    #[test]
    fn steps_may_grow_where_the_learning_rate_does_not_depend_on_them() {
        let cosine = changed(|c| c.training.steps += 1).unwrap();
        assert!(cosine.key == "training.steps" && cosine.why.contains("constant"), "{cosine:?}");
        let mut begun = Config::default();
        (begun.training.schedule, begun.training.warmup_ratio) = (Decay::Constant, 0.0);
        let mut given = begun.clone();
        given.training.steps += 1;
        assert_eq!(refused(&begun, &given), None);
        given.training.steps -= 2;
        assert!(refused(&begun, &given).unwrap().why.contains("not cut"));
    }
}
