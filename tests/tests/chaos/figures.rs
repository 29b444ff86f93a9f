//! Figures as measured: printed, and left as JSON where `COHORT_FIGURES` says.
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// Durations of one kind of event.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// The time that `part` of all stay below or at: the nearest rank.
    pub(crate) fn percentile(&self, part: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let rank = (part * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    pub(crate) fn worst(&self) -> Duration {
        self.percentile(1.0)
    }

    /// For a report, in seconds.
    pub(crate) fn json(&self) -> Value {
        let seconds = |part| (self.percentile(part).as_secs_f64() * 1000.0).round() / 1000.0;
        json!({ "trials": self.0.len(), "p50_s": seconds(0.5), "p90_s": seconds(0.9), "p99_s": seconds(0.99), "max_s": seconds(1.0) })
    }
}

/// Prints figures under a name and keeps them.
pub(crate) fn keep(name: &str, figures: &Value) -> Result<()> {
    println!("{name}: {figures}");
    let Some(folder) = std::env::var_os("COHORT_FIGURES").map(PathBuf::from) else { return Ok(()) };
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{name}.json"));
    std::fs::write(&path, format!("{figures:#}\n")).with_context(|| path.display().to_string())
}

#[test]
fn percentiles_are_of_the_nearest_rank() {
    let mut times = Times::default();
    (1..=200).rev().for_each(|ms| times.add(Duration::from_millis(ms)));
    assert_eq!([0.5, 0.99, 1.0].map(|part| times.percentile(part).as_millis()), [100, 198, 200]);
    assert_eq!(Times::default().worst(), Duration::ZERO);
}
