//! A worker that is slower than the others, for tests and measurements: `COHORT_ROLLOUT_DELAY_MS=0:800` makes rollout worker 0
//! wait 800 ms before it delivers a group. Not set, nothing is waited for.
use crate::RolloutError;
use std::time::Duration;

const VARIABLE: &str = "COHORT_ROLLOUT_DELAY_MS";

/// How long the worker of that index waits before each delivery.
///
/// Errors: [`RolloutError::Config`] where the variable is not `INDEX:MILLISECONDS`.
pub(crate) fn delay_of(index: u16) -> Result<Duration, RolloutError> {
    match std::env::var(VARIABLE) {
        Ok(text) => read(&text, index),
        Err(_) => Ok(Duration::ZERO),
    }
}

fn read(text: &str, index: u16) -> Result<Duration, RolloutError> {
    let parsed = text.split_once(':').and_then(|(who, ms)| Some((who.parse::<u16>().ok()?, ms.parse::<u64>().ok()?)));
    let Some((who, ms)) = parsed else {
        return Err(RolloutError::Config { place: VARIABLE, problem: format!("{text:?} is not INDEX:MILLISECONDS, as 0:800") });
    };
    Ok(Duration::from_millis(if who == index { ms } else { 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_is_slow_and_nonsense_is_refused() {
        assert_eq!(read("1:800", 1).unwrap(), Duration::from_millis(800));
        assert_eq!(read("1:800", 0).unwrap(), Duration::ZERO);
        assert!(read("800", 0).unwrap_err().to_string().contains("INDEX:MILLISECONDS"));
    }
}
