//! What a launch may do to a folder and to a run that is there already.
use super::bench;
use anyhow::{Result, ensure};
use cohort_tests::launch::{GROUPS, finish};

#[test]
fn clean_takes_away_what_a_run_wrote_and_nothing_else() -> Result<()> {
    let (_folder, bench) = bench()?;
    let (mine, run) = (bench.run_dir("mine"), bench.run_dir("run"));
    std::fs::create_dir(&mine)?;
    std::fs::write(mine.join("thesis.txt"), "years of work")?;
    let refused = finish(&mut bench.launch("mine", &["--clean"]))?;
    ensure!(refused.code == Some(5) && refused.stderr.contains("holds no run"), "{refused:?}");
    ensure!(std::fs::read_dir(&mine)?.count() == 1, "nothing was touched");
    let refused = finish(&mut bench.launch("mine", &[]))?;
    ensure!(refused.code == Some(5) && !refused.stderr.contains("--resume"), "{refused:?}");

    finish(&mut bench.launch("run", &["--steps", "2"]))?.weights()?;
    std::fs::write(run.join("notes.txt"), "mine")?;
    finish(&mut bench.launch("run", &["--clean", "--steps", "1"]))?;
    bench.balanced("run", GROUPS)?;
    ensure!(std::fs::read_to_string(run.join("notes.txt"))? == "mine" && !run.join("checkpoints/step-2").exists());
    Ok(())
}

#[test]
fn a_resume_takes_more_workers_and_steps_and_refuses_what_is_the_runs_own() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("whole", &["--steps", "6"]))?.weights()?;
    finish(&mut bench.launch("short", &["--steps", "3"]))?.weights()?;
    for (flag, value, key) in [
        ("--seed", "7", "training.seed is 42 in the run and 7 now"),
        ("--set", "training.learning_rate=0.5", "training.learning_rate is 0.01 in the run and 0.5 now"),
        ("--set", "training.group_size=8", "training.group_size"),
        ("--set", "environment.heldout=3", "environment.heldout"),
        ("--steps", "2", "training.steps"),
    ] {
        let refused = finish(&mut bench.resume("short", &[flag, value]))?;
        ensure!(refused.code == Some(6) && refused.stderr.contains(key), "{flag} {value}: {refused:?}");
    }
    // The children of this launch read its settings, not those of the launch before.
    let options =
        ["--processes", "--workers", "rollout=2", "--steps", "6", "--threads", "2", "--set", "training.checkpoint.every=1"];
    let longer = finish(&mut bench.resume("short", &options))?;
    assert_eq!(longer.weights()?, reference, "3 steps and 3 more are the run of 6");
    assert_eq!(longer.number("steps")?, 6);
    bench.balanced("short", 6 * GROUPS)?;
    let status = bench.status("short")?.unwrap_or_default();
    ensure!(
        status["actors"].as_array().is_some_and(|a| a.iter().any(|a| a["name"] == "rollout-1" && !a["pid"].is_null())),
        "{status}"
    );
    ensure!(bench.run_dir("short").join("checkpoints/step-5").exists(), "the learner saved as this launch says");

    let config = bench.run_dir("short").join("config.toml");
    let text = std::fs::read_to_string(&config)?;
    ensure!(text.contains("rollout = 2") && text.contains("steps = 6"), "the next launch goes on from here: {text}");
    std::fs::write(&config, text.replace("seed = 42", "seed = 43"))?;
    let refused = finish(&mut bench.resume("short", &[]))?;
    ensure!(refused.code == Some(6) && refused.stderr.contains("changed by hand"), "{refused:?}");
    Ok(())
}

#[test]
fn a_value_that_is_not_finite_ends_either_kind_of_run_with_its_own_code() -> Result<()> {
    let (_folder, bench) = bench()?;
    for (name, tier) in [("one", "--threads=1"), ("many", "--processes")] {
        let ended = finish(
            &mut bench.launch(name, &["--set", "training.learning_rate=1e38", "--set", "training.max_grad_norm=0", tier]),
        )?;
        ensure!(ended.code == Some(9) && ended.stderr.contains("learning_rate"), "{tier}: {ended:?}");
    }
    Ok(())
}
