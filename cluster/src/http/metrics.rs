//! What a run's files say, in the text format of Prometheus (version 0.0.4).
//!
//! `metrics.jsonl`'s last line gives a gauge for each of its numbers (`rewards/random/mean` becomes
//! `cohort_rewards_random_mean`), `status.json` the run's and its actors' state, `agent.json` the processes.
use crate::agent::ChildReport;
use crate::ledger::RunPaths;
use crate::progress::RunStatus;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes from the end of `metrics.jsonl` in which its last line is looked for.
const TAIL: u64 = 64 << 10;

/// Everything that there is; a file that is missing or half written is left out.
pub(super) fn text(paths: &RunPaths) -> String {
    let mut page = Page::default();
    if let Some(step) = last_line(&paths.metrics()) {
        for (name, value) in step {
            if let Some(value) = value.as_f64() {
                page.gauge(&name, "of the last committed step, see docs/algorithms.md", &[], value);
            }
        }
    }
    if let Some(status) = read::<RunStatus>(&paths.status()) {
        run(&mut page, &status);
    }
    for child in read::<Vec<ChildReport>>(&paths.agent()).unwrap_or_default() {
        let host = child.host.as_deref().unwrap_or("node-0");
        let labels = [("process", child.name.as_str()), ("host", host)];
        page.gauge("process_up", "1 while the process runs", &labels, f64::from(u8::from(child.phase == "running")));
        page.counter("process_restarts_total", "restarts of the process", &labels, f64::from(child.restarts));
    }
    page.finish()
}

fn run(page: &mut Page, status: &RunStatus) {
    page.gauge("run_step", "committed steps", &[], status.step as f64);
    page.gauge("run_steps", "steps of the whole run", &[], status.steps as f64);
    page.gauge("run_epoch", "incarnation of the coordinator", &[], status.epoch as f64);
    page.gauge("status_updated_seconds", "when the coordinator spoke last, since 1970", &[], status.updated_ms as f64 / 1e3);
    let waited = status.full_disk.as_ref().map_or(0, |disk| disk.waited_s.max(1));
    page.gauge("full_disk_seconds", "how long the run has waited for room on a disk, 0 where it does not", &[], waited as f64);
    let groups = &status.groups;
    for (state, count) in [("generated", groups.generated), ("consumed", groups.consumed), ("in_flight", groups.in_flight)] {
        page.gauge("training_groups", "training groups by what became of them", &[("state", state)], count as f64);
    }
    for (reason, count) in &groups.dropped {
        page.gauge("training_groups_dropped", "training groups given up, by reason", &[("reason", reason)], *count as f64);
    }
    for actor in &status.actors {
        let role = actor.role.to_string();
        let labels = [("actor", actor.name.as_str()), ("role", role.as_str())];
        let state = serde_json::to_value(actor.state).unwrap_or_default();
        let state = state.as_str().unwrap_or_default();
        let up = !matches!(state, "lost" | "starting" | "stopped");
        page.gauge("actor_up", "1 while the actor is connected", &labels, f64::from(u8::from(up)));
        page.counter("actor_restarts_total", "restarts of the actor", &labels, f64::from(actor.restarts));
        if let Some(version) = actor.version {
            page.gauge("actor_policy_version", "policy version that the actor holds", &labels, version as f64);
        }
        for (breaker, state) in &actor.breakers {
            let labels = [("actor", actor.name.as_str()), ("breaker", breaker.as_str()), ("state", state.as_str())];
            page.gauge("breaker_state", "1 for the state that the breaker is in", &labels, 1.0);
        }
    }
}

/// Samples by metric, so that all of one metric stand together as the format wants.
#[derive(Default)]
struct Page(BTreeMap<String, (&'static str, &'static str, Vec<String>)>);

impl Page {
    fn gauge(&mut self, name: &str, help: &'static str, labels: &[(&str, &str)], value: f64) {
        self.add(name, "gauge", help, labels, value);
    }

    fn counter(&mut self, name: &str, help: &'static str, labels: &[(&str, &str)], value: f64) {
        self.add(name, "counter", help, labels, value);
    }

    fn add(&mut self, name: &str, kind: &'static str, help: &'static str, labels: &[(&str, &str)], value: f64) {
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let name = format!("cohort_{name}");
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let sample = format!("{name}{labels} {value}");
        self.0.entry(name).or_insert_with(|| (kind, help, Vec::new())).2.push(sample);
    }

    fn finish(self) -> String {
        let mut text = String::new();
        for (name, (kind, help, samples)) in self.0 {
            // Writing into a string does not fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{}", samples.join("\n"));
        }
        text
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// The last whole line of a JSONL file.
fn last_line(path: &Path) -> Option<Map<String, Value>> {
    let mut file = std::fs::File::open(path).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL))).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail).ok()?;
    let whole = tail.iter().rposition(|&b| b == b'\n')?;
    tail[..whole].rsplit(|&b| b == b'\n').find_map(|line| serde_json::from_slice(line).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_s_files_become_samples_grouped_by_metric() {
        let dir = tempfile::tempdir().unwrap();
        let paths = RunPaths::new(dir.path());
        assert_eq!(text(&paths), "", "nothing there yet");
        let lines = "{\"step\":1,\"reward\":0.25}\n{\"step\":2,\"reward\":0.5,\"rewards/a b/mean\":1.0,\"note\":\"x\"}\n{\"step\":3,\"rew";
        std::fs::write(paths.metrics(), lines).unwrap();
        let children = r#"[{"name":"rollout-0","pid":7,"phase":"running","restarts":2,"last_exit":null},
            {"name":"rollout-1","pid":null,"phase":"out of reach","restarts":0,"last_exit":"a \"b\"","host":"node-1"}]"#;
        std::fs::write(paths.agent(), children).unwrap();
        let status = r#"{"phase":"collecting","epoch":2,"step":2,"steps":9,"updated_ms":1500,"groups":{"generated":9,"consumed":8,
            "in_flight":1,"ready":0,"dropped":{"stale":3}},"actors":[]}"#;
        std::fs::write(paths.status(), status).unwrap();
        let page = text(&paths);
        for line in [
            "cohort_reward 0.5",
            "cohort_rewards_a_b_mean 1",
            "cohort_process_up{process=\"rollout-0\",host=\"node-0\"} 1",
            "cohort_process_up{process=\"rollout-1\",host=\"node-1\"} 0",
            "cohort_process_restarts_total{process=\"rollout-0\",host=\"node-0\"} 2",
            "cohort_training_groups{state=\"consumed\"} 8",
            "cohort_training_groups_dropped{reason=\"stale\"} 3",
            "# TYPE cohort_process_restarts_total counter",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} in\n{page}");
        }
        for name in page.lines().filter_map(|l| l.strip_prefix("# TYPE ")) {
            let name = name.split(' ').next().unwrap();
            assert_eq!(page.matches(&format!("# TYPE {name} ")).count(), 1, "{name} once");
        }
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
