//! Parts that cannot keep up: a grader a hundred times slower, then one that does not answer, then a learner that stands still.
//! Rollout workers go no further ahead than they may, memory stays, and the run goes on as if nothing had been.
use super::endless::Endless;
use super::figures::keep;
use super::{bench, trials};
use anyhow::{Context, Result, ensure};
use cohort_tests::launch::{Bench, PATIENCE, metric, processes_of, signal, until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Versions that a group may be behind.
const STALENESS: u32 = 2;
/// What a grading takes, and a hundred times that.
const PACE_MS: u64 = 4;
/// A grader that does not answer.
const NEVER: u64 = u64::MAX;
/// Growth of one process that is no growth: allocators, logs, a second connection. The bytes of all groups that may be under
/// way are below one MiB here.
const NOISE_KIB: u64 = 24 << 10;

/// A grader on loopback that takes as long as it is told to.
struct Grader {
    url: String,
    takes_ms: Arc<AtomicU64>,
}

impl Grader {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/grade", listener.local_addr()?);
        let takes_ms = Arc::new(AtomicU64::new(PACE_MS));
        let takes = takes_ms.clone();
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let takes = takes.clone();
                std::thread::spawn(move || grade(stream, &takes));
            }
        });
        Ok(Self { url, takes_ms })
    }

    fn takes(&self, ms: u64) {
        self.takes_ms.store(ms, Ordering::Relaxed);
    }
}

/// Answers one request: scores that differ within a group. What goes wrong here the client sees.
fn grade(mut stream: TcpStream, takes: &AtomicU64) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    let samples = loop {
        match stream.read(&mut buffer).ok()? {
            0 => return None,
            n => bytes.extend_from_slice(&buffer[..n]),
        }
        let text = String::from_utf8_lossy(&bytes);
        let body = text.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str::<Value>(body).ok());
        if let Some(body) = body {
            break body["samples"].as_array()?.len();
        }
    };
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(takes.load(Ordering::Relaxed).min(60_000)) {
        std::thread::sleep(Duration::from_millis(2));
    }
    let scores: Vec<f64> = (0..samples).map(|i| i as f64 / 4.0).collect();
    let body = json!({ "scores": scores }).to_string();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).ok()
}

/// Resident memory of the run's processes in KiB, by role and number.
fn resident(bench: &Bench, name: &str) -> Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    for pid in processes_of(&bench.run_dir(name))? {
        // One that ends meanwhile is not counted.
        let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&str> = words.split('\0').collect();
        let after = |flag: &str| words.iter().skip_while(|word| **word != flag).nth(1).copied().unwrap_or_default();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        found.insert(format!("{}-{}", after("--role"), after("--index")), kib.unwrap_or(0));
    }
    Ok(found)
}

/// The most that each process held within that time.
fn most(bench: &Bench, name: &str, time: Duration) -> Result<BTreeMap<String, u64>> {
    let (begun, mut most) = (Instant::now(), BTreeMap::new());
    while begun.elapsed() < time {
        for (process, kib) in resident(bench, name)? {
            let known = most.entry(process).or_insert(kib);
            *known = kib.max(*known);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(most)
}

#[test]
fn what_cannot_keep_up_is_waited_for_and_memory_stays() -> Result<()> {
    let (_folder, bench) = bench()?;
    let grader = Grader::start()?;
    let parts = format!("rewards.parts=[{{type=\"http\",url=\"{}\",timeout_s=1.0,backoff_s=0.1,attempts=100}}]", grader.url);
    let staleness = format!("training.max_staleness={STALENESS}");
    let options =
        ["--set", &parts, "--set", &staleness, "--set", "training.correction.type=\"tis\"", "--workers", "rollout=2,reward=1"];
    let name = "overloaded";
    let mut run = Endless::start(&bench, name, &options)?;
    run.progress(20, PATIENCE)?;
    let phase = Duration::from_secs(3 * trials(1) as u64);
    let mut figures = json!({ "phase_s": phase.as_secs() });
    let baseline = most(&bench, name, phase)?;
    figures["baseline_kib"] = json!(baseline);
    let mut held = |what: &str, now: BTreeMap<String, u64>| -> Result<()> {
        for (process, kib) in &now {
            let allowed = baseline.get(process).context("an unknown process")? + NOISE_KIB;
            ensure!(*kib <= allowed, "{what}: {process} holds {kib} KiB of {allowed}; baseline {baseline:?}");
        }
        figures[what] = json!(now);
        Ok(())
    };
    grader.takes(100 * PACE_MS);
    held("slow_grader_kib", most(&bench, name, phase)?)?;
    grader.takes(NEVER);
    held("no_grader_kib", most(&bench, name, 2 * phase)?)?;
    let open = bench.status(name)?.map(|status| status["actors"].to_string()).unwrap_or_default();
    ensure!(open.contains("open"), "a breaker in front of a grader that does not answer: {open}");
    grader.takes(PACE_MS);
    run.progress(3, PATIENCE)?;
    let learner = until("the learner", PATIENCE, || bench.process_of(name, "learner-0"))?;
    signal(learner, "STOP")?;
    held("no_learner_kib", most(&bench, name, 2 * phase)?)?;
    run.progress(3, PATIENCE)?;
    let steps = run.end_as_recorded()?;
    let staleness = metric(&bench.run_dir(name), "staleness/max")?.into_iter().fold(0.0, f64::max);
    ensure!(staleness <= f64::from(STALENESS), "{staleness}");
    figures["steps"] = steps.into();
    figures["staleness_max"] = staleness.into();
    keep("overload", &figures)
}
