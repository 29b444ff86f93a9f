//! `cargo xtask budget LOG`: what each group of tests took, beside its seconds in `tests/budget.toml`.
//!
//! A group is a test executable. One that is not in the budget fails; one that took more than its seconds is named; only one
//! that took several times as long fails, for machines differ and a hang is what is looked for.
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What `cargo test --workspace` printed.
    log: PathBuf,
}

/// So many times a group's seconds are too many anywhere.
const FAIL: f64 = 4.0;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    /// Seconds on two cores by test executable.
    seconds: BTreeMap<String, f64>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/budget.toml");
    let budget: Budget =
        toml::from_str(&std::fs::read_to_string(&path).context("tests/budget.toml")?).context("tests/budget.toml")?;
    let log = std::fs::read_to_string(&args.log).with_context(|| args.log.display().to_string())?;
    let taken = groups(&log);
    if taken.is_empty() {
        bail!("{}: no finished test executable in it", args.log.display());
    }
    let mut faults = Vec::new();
    for (group, &seconds) in &taken {
        match budget.seconds.get(group) {
            None => faults.push(format!("{group} has no seconds in tests/budget.toml; it took {seconds:.1}")),
            Some(&allowed) if seconds > allowed * FAIL => faults.push(format!("{group} took {seconds:.1} s of {allowed} s")),
            Some(&allowed) => {
                let mark = if seconds > allowed { "  over" } else { "" };
                println!("{group:24} {seconds:7.1} s of {allowed:5} s{mark}");
            }
        }
    }
    println!("{:24} {:7.1} s of {:5} s", "all", taken.values().sum::<f64>(), budget.seconds.values().sum::<f64>());
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(())
}

/// Seconds by test executable; executables of one name are one group, those without a test none.
fn groups(log: &str) -> BTreeMap<String, f64> {
    let mut taken = BTreeMap::new();
    let mut group = None;
    for line in log.lines() {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("Running ") {
            let file = rest.rsplit_once('/').map_or(rest, |(_, file)| file).trim_end_matches(')');
            group = file.rsplit_once('-').map(|(name, _)| name.to_owned());
        } else if line.starts_with("Doc-tests ") {
            group = None;
        } else if line.starts_with("test result:")
            && !line.contains(" filtered out; finished in 0.00s")
            && let Some(name) = group.clone()
            && let Some(seconds) = line.rsplit_once("finished in ").and_then(|(_, s)| s.trim_end_matches('s').parse::<f64>().ok())
        {
            *taken.entry(name).or_insert(0.0) += seconds;
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_told_apart_and_added_up() {
        let log = "\
     Running unittests src/lib.rs (target/debug/deps/cohort_actors-d9df7d5b64566fb6)
test result: ok. 32 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.07s
     Running tests/worker.rs (target/debug/deps/worker-6772dae2e254f696)
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.25s
     Running tests/worker.rs (target/debug/deps/worker-1111dae2e254f696)
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.50s
   Doc-tests cohort_actors
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
        let taken = groups(log);
        assert_eq!(taken.into_iter().collect::<Vec<_>>(), [("cohort_actors".to_owned(), 3.07), ("worker".to_owned(), 0.75)]);
    }
}
