//! The flags that say something about the configuration, shared by the subcommands that read one.
use crate::config::tree::Value;
use crate::config::{ConfigError, Inputs, Resolved, nearest};
use std::path::PathBuf;

/// Roles whose number `--workers` sets.
const ROLES: [&str; 3] = ["rollout", "reward", "learner"];

/// Where the configuration comes from.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct ConfigArgs {
    /// Configuration files, later ones over earlier ones [default: the embedded order desk]
    #[arg(value_name = "CONFIG")]
    pub files: Vec<PathBuf>,
    /// Set one key: a dotted path and a TOML value or a bare string, as training.learning_rate=1e-4
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Steps of the run (training.steps)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub steps: Option<i64>,
    /// Key of every random draw (training.seed)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<i64>,
    /// Compute threads of each engine, 0 for all cores (cluster.threads)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub threads: Option<i64>,
    /// How many workers, as rollout=2,reward=1 (cluster.rollout, cluster.reward, cluster.learner)
    #[arg(long, value_name = "ROLE=N,..", value_delimiter = ',', value_parser = workers)]
    pub workers: Vec<(String, i64)>,
    /// Run coordinator and workers as processes of their own (cluster.processes)
    #[arg(long)]
    pub processes: bool,
}

/// One `role=count`. Whether the count makes sense is said by the configuration, with the range.
fn workers(text: &str) -> Result<(String, i64), String> {
    let (role, count) = text.split_once('=').ok_or("write role=count, as rollout=2,reward=1")?;
    let role = role.trim();
    if !ROLES.contains(&role) {
        let hint = match nearest(role, ROLES.into_iter()) {
            Some(meant) => format!("; did you mean {meant}?"),
            None => format!("; there are {}", ROLES.join(", ")),
        };
        return Err(format!("no role {role:?}{hint}"));
    }
    let count = count.trim().parse().map_err(|_| format!("{count:?} is not a whole number"))?;
    Ok((role.to_owned(), count))
}

impl ConfigArgs {
    /// What the user said.
    pub(super) fn inputs(&self) -> Inputs {
        let mut flags = Vec::new();
        for (flag, path, value) in [
            ("--steps", "training.steps", self.steps),
            ("--seed", "training.seed", self.seed),
            ("--threads", "cluster.threads", self.threads),
        ] {
            flags.extend(value.map(|v| (path.to_owned(), Value::Integer(v), format!("{flag} {v}"))));
        }
        for (role, count) in &self.workers {
            flags.push((format!("cluster.{role}"), Value::Integer(*count), format!("--workers {role}={count}")));
        }
        if self.processes {
            flags.push(("cluster.processes".to_owned(), Value::Bool(true), "--processes".to_owned()));
        }
        Inputs { files: self.files.clone(), sets: self.sets.clone(), flags, given: Vec::new() }
    }

    /// The configuration that this comes to, of a run that trains.
    pub(super) fn resolve(&self) -> Result<Resolved, ConfigError> {
        self.resolve_over(Vec::new())
    }

    /// The same over what follows from where the program runs.
    pub(super) fn resolve_over(&self, given: Vec<(String, Value, String)>) -> Result<Resolved, ConfigError> {
        let resolved = Resolved::load(&Inputs { given, ..self.inputs() })?;
        resolved.check_training()?;
        Ok(resolved)
    }
}
