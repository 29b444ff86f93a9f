//! Adapters through whole runs: the same bits however they are run, nothing else saved, and the merged model's bits.
use super::bench;
use anyhow::{Context, Result, ensure};
use cohort_tests::launch::{Bench, finish};
use std::path::Path;

const LORA: [&str; 4] = ["--set", "model.lora.rank=4", "--set", r#"model.lora.target_modules=["all-linear"]"#];

fn run(bench: &Bench, name: &str, extra: &[&str]) -> Result<String> {
    finish(&mut bench.launch(name, &[&LORA, extra].concat()))?.weights()
}

/// Completions and their log-probs, as `generate` writes them.
fn generated(bench: &Bench, model: &Path) -> Result<Vec<u8>> {
    let rows = bench.run_dir("rows.jsonl");
    std::fs::write(&rows, "{\"id\":1,\"prompt\":\"Say 7.\"}\n{\"id\":2,\"prompt\":\"What is 3 x 4?\"}\n")?;
    let mut command = bench.command("generate");
    let output = command.arg("--model").arg(model).arg("--input").arg(rows).args(["--max-new-tokens", "24"]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

#[test]
fn adapters_train_to_the_same_bits_travel_alone_and_merge() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = run(&bench, "one", &["--threads", "1"])?;
    assert_eq!(run(&bench, "processes", &["--processes", "--workers", "rollout=2", "--threads", "2"])?, reference);
    let mut killed = bench.launch("killed", &[&LORA[..], &["--processes"]].concat());
    bench.arm(&mut killed, "learner-backward:2")?;
    let killed = finish(&mut killed)?;
    assert_eq!(killed.weights()?, reference, "killed and replayed");
    assert!(killed.number("restarts")? >= 1);
    let whole = finish(&mut bench.launch("whole", &[]))?.weights()?;
    assert_ne!(whole, reference, "adapters are another run than the whole model");

    // Only adapters are kept, and a directory with them is a model.
    let checkpoint = bench.run_dir("one").join("checkpoints/step-4");
    assert!(checkpoint.join("adapter_model.safetensors").is_file() && !checkpoint.join("model.safetensors").exists());
    let merged = bench.run_dir("merged");
    let export = bench.command("export").arg(&checkpoint).arg(&merged).arg("--json").output()?;
    let report: serde_json::Value = serde_json::from_slice(&export.stdout).context("export's report")?;
    assert_eq!(report["merged"], true);
    assert!(merged.join("model.safetensors").is_file());
    assert_eq!(generated(&bench, &checkpoint)?, generated(&bench, &merged)?, "the merged model draws and scores the same bits");
    Ok(())
}

#[test]
fn with_dropped_inputs_the_stored_log_probs_are_still_checked_and_runs_repeat() -> Result<()> {
    let (_folder, bench) = bench()?;
    let dropout = ["--set", "model.lora.dropout=0.2"];
    // `weights` asks for a difference of zero between sampler and learner.
    let first = run(&bench, "first", &dropout)?;
    assert_eq!(run(&bench, "second", &[&dropout[..], &["--processes", "--workers", "rollout=2"]].concat())?, first);
    assert_ne!(run(&bench, "without", &[])?, first, "dropping inputs changes what is learnt");
    Ok(())
}
