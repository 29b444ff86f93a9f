//! Rollouts in int8: runs that correct for them repeat to the bit however they are run, and say how far sampler and learner are apart.
use super::asynchronous::replay;
use super::bench;
use anyhow::{Context, Result, ensure};
use cohort_tests::launch::{Bench, Ended, GROUPS, finish, metric};

const STEPS: u64 = 4;
const INT8: [&str; 2] = ["--set", r#"rollout.quantization="int8""#];
const TIS: [&str; 2] = ["--set", r#"training.correction.type="tis""#];

fn run(bench: &Bench, name: &str, args: &[&[&str]]) -> Result<Ended> {
    finish(&mut bench.launch(name, &args.concat()))
}

fn hash(ended: &Ended) -> Result<String> {
    ensure!(ended.code == Some(0), "exit code {:?}: {}", ended.code, ended.stderr);
    Ok(ended.field("weights_sha256")?.as_str().context("no hash")?.to_owned())
}

#[test]
fn runs_in_int8_repeat_and_measure_what_they_correct() -> Result<()> {
    let (_folder, bench) = bench()?;
    let one = run(&bench, "one", &[&INT8, &TIS, &["--threads", "1"]])?;
    let weights = hash(&one)?;
    ensure!(one.number("logprob_tokens_compared")? == 0, "no token is promised to be the learner's: {:?}", one.report);
    bench.balanced("one", STEPS * GROUPS)?;
    let dir = bench.run_dir("one");
    for (step, tokens) in metric(&dir, "exactness/inexact_tokens")?.into_iter().enumerate() {
        let mean = metric(&dir, "sampling/sampling_logp_difference/mean")?[step];
        let ratio = metric(&dir, "sampling/importance_sampling_ratio/mean")?[step];
        ensure!(tokens > 0.0 && mean > 0.0 && mean < 0.1 && (ratio - 1.0).abs() < 0.1, "step {step}: {tokens} {mean} {ratio}");
    }
    // Workers with int8 copies alone draw what the engine that learns as well draws.
    let many = ["--processes", "--workers", "rollout=2", "--threads", "2"];
    ensure!(hash(&run(&bench, "many", &[&INT8, &TIS, &many])?)? == weights);
    ensure!(hash(&run(&bench, "plain", &[&TIS])?)? != weights, "int8 is a run of its own");
    let report = replay(&bench, "one", &[])?.map_err(|e| anyhow::anyhow!("{e:?}"))?;
    ensure!(report["replayed"] == STEPS && report["weights_sha256"] == weights.as_str(), "{report}");
    let other = finish(&mut bench.resume("plain", &INT8))?;
    ensure!(
        other.code == Some(6) && other.stderr.contains("run numerics differ") && other.stderr.contains("rollout=int8"),
        "{other:?}"
    );
    Ok(())
}

#[test]
fn adapters_are_sampled_in_int8_too() -> Result<()> {
    let (_folder, bench) = bench()?;
    let lora = ["--set", "model.lora.rank=4", "--steps", "2"];
    let weights = hash(&run(&bench, "one", &[&INT8, &TIS, &lora])?)?;
    ensure!(hash(&run(&bench, "many", &[&INT8, &TIS, &lora, &["--processes"]])?)? == weights);
    Ok(())
}

#[test]
fn what_int8_cannot_go_with_is_refused_by_name() -> Result<()> {
    let (_folder, bench) = bench()?;
    let cases: [(&[&str], &str); 3] = [
        (&[], "training.correction.type"),
        (&["--set", r#"model.engine="candle""#], r#"model.engine = "native""#),
        (&["--set", r#"model.path="stub://x""#], "a stub's answers are scripted"),
    ];
    for (args, why) in cases {
        let refused = run(&bench, "refused", &[&INT8, if args.is_empty() { &[] } else { &TIS }, args])?;
        let place = "rollout.quantization";
        ensure!(
            refused.code == Some(2) && refused.stderr.contains(place) && refused.stderr.contains(why),
            "{args:?}: {refused:?}"
        );
    }
    Ok(())
}
