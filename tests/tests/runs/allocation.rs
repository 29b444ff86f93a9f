//! Processes that a scheduler started together, with nothing but its variables to tell them apart, make one run.
use super::bench;
use anyhow::{Context, Result, ensure};
use cohort_tests::launch::{Bench, GROUPS, PATIENCE, Running, finish, start, until, wait};
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;

/// The head node generates nothing, so that the run needs the other one.
const NOBODY: [&str; 2] = ["--workers", "rollout=0"];

fn slurm(command: &mut Command, rank: &str) {
    let variables = [("JOB_ID", "17"), ("STEP_ID", "0"), ("NTASKS", "2"), ("NODEID", "0"), ("JOB_NODELIST", "localhost")];
    command.envs(variables.map(|(name, value)| (format!("SLURM_{name}"), value))).env("SLURM_PROCID", rank);
}

/// The secret that the head node leaves for the other.
fn secret(folder: &Path) -> Result<String> {
    let text = until("an invitation", PATIENCE, || Ok(std::fs::read_to_string(folder.join("invitation.toml")).ok()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("secret = ")).context("no secret")?;
    Ok(line.trim_matches('"').to_owned())
}

fn say_nothing_of(secret: &str, folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            say_nothing_of(secret, &path)?;
        } else {
            let text = std::fs::read(&path)?;
            ensure!(!text.windows(secret.len()).any(|part| part == secret.as_bytes()), "{}", path.display());
        }
    }
    Ok(())
}

/// Both processes of a run under `name`, the one that joins first.
fn together(bench: &Bench, name: &str, args: &[&str], place: &dyn Fn(&mut Command, &str)) -> Result<[Running; 2]> {
    let one = |rank| {
        let mut command = bench.launch(name, &[&NOBODY, args].concat());
        place(&mut command, rank);
        start(&mut command)
    };
    let joins = one("1")?;
    Ok([one("0")?, joins])
}

#[test]
fn tasks_that_slurm_starts_make_one_run_with_the_weights_of_one_host() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &[]))?.weights()?;
    let listen = ["--set", "cluster.listen=127.0.0.1:0"];
    let [head, joins] = together(&bench, "slurm", &listen, &slurm)?;
    let (run, secret) = (bench.run_dir("slurm"), secret(&bench.run_dir("slurm"))?);
    let ended = wait(head, PATIENCE)?;
    assert_eq!(ended.weights()?, reference);
    bench.balanced("slurm", 4 * GROUPS)?;
    let left = wait(joins, PATIENCE)?;
    ensure!(left.code == Some(0), "{left:?}");
    ensure!(ended.stderr.contains("rank 0, which is the head node"), "{}", ended.stderr);
    ensure!(
        left.stderr.contains("rank 1, which joins the head node") && left.stderr.contains("SLURM_PROCID=1"),
        "{}",
        left.stderr
    );
    ensure!(!run.join("invitation.toml").exists(), "it is taken away");
    ensure!(!ended.stderr.contains(&secret) && !left.stderr.contains(&secret));
    say_nothing_of(&secret, &run)?;
    // In the same environment, on purpose by itself.
    let mut alone = bench.launch("alone", &["--alone"]);
    slurm(&mut alone, "0");
    assert_eq!(finish(&mut alone)?.weights()?, reference);
    Ok(())
}

#[test]
fn ranks_meet_at_the_masters_port_in_a_folder_of_their_own() -> Result<()> {
    let (folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &[]))?.weights()?;
    let free = |port: &u16| (0..4).all(|n| UdpSocket::bind(("0.0.0.0", port + n)).is_ok());
    let first = u16::try_from(20_000 + std::process::id() % 20_000)?;
    let port = (first..first + 3000).step_by(4).find(free).context("no free ports")?.to_string();
    let place = |command: &mut Command, rank: &str| {
        command.envs([("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2")]);
        command.envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)]);
    };
    let meet = folder.path().join("meet");
    let [head, joins] = together(&bench, "ranks", &["--meet", meet.to_str().context("no text")?], &place)?;
    let ended = wait(head, PATIENCE)?;
    assert_eq!(ended.weights()?, reference);
    let left = wait(joins, PATIENCE)?;
    ensure!(left.code == Some(0), "{left:?}");
    ensure!(left.stderr.contains(&format!("127.0.0.1:{port}")), "{}", left.stderr);
    // What does not fit together is named before anything is begun.
    let mut wrong = bench.launch("wrong", &NOBODY);
    place(&mut wrong, "2");
    let refused = finish(&mut wrong)?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("RANK=\"2\" contradicts WORLD_SIZE=2"), "{refused:?}");
    ensure!(!bench.run_dir("wrong").exists());
    Ok(())
}

/// A task whose head node never comes does not wait for ever.
#[test]
fn who_is_never_invited_says_so() -> Result<()> {
    let (_folder, bench) = bench()?;
    let mut command = bench.launch("nobody", &["--set", "cluster.join_patience_s=1"]);
    slurm(&mut command, "1");
    let ended = finish(&mut command)?;
    ensure!(ended.code == Some(7) && ended.stderr.contains("has left no invitation in"), "{ended:?}");
    ensure!(!bench.run_dir("nobody").exists(), "it makes no run of its own");
    Ok(())
}
