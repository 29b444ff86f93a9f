//! The command line as users meet it.
use super::*;

/// Runs a command in this process.
fn cluster(arguments: &[&str]) -> (u8, String, String) {
    let parsed = Cli::try_parse_from([&["cluster"], arguments].concat());
    let mut out = Vec::new();
    let (exit, message) = match parsed {
        Ok(cli) => match dispatch(cli.command, &mut out) {
            Ok(code) => (code, String::new()),
            Err(error) => (error.exit as u8, error.message),
        },
        Err(error) => (if error.use_stderr() { Exit::Usage as u8 } else { 0 }, error.to_string()),
    };
    (exit, String::from_utf8(out).unwrap(), message)
}

fn refused(arguments: &[&str]) -> (u8, String) {
    let (exit, out, message) = cluster(arguments);
    assert_eq!(out, "", "a refused command prints nothing on stdout");
    (exit, message)
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

/// The help of the subcommands stands in `docs/cli.md`, which a test compares.
#[test]
fn the_overview_fits_a_screen() {
    let help = Cli::command().term_width(100).render_help().to_string();
    insta::assert_snapshot!(help, @r"
    Train language-model agents by reinforcement learning, as a system of supervised actors

    Usage: cluster <COMMAND>

    Commands:
      launch       Train a policy; without a file, the embedded order desk [alias: train]
      evaluate     Held-out reward of a checkpoint, or a talk with it
      generate     Complete prompts from a JSONL file
      score        Log-probs of given tokens under a model
      sample       Generate and score groups of training prompts into a file, without a learner
      learn        Train on the groups of a file, without rollout workers
      rollouts     Show the groups of a step side by side: turns, tool calls, rewards, advantages
      init         Write a configuration or a reward plug-in to start from
      doctor       Check this machine: what works, what does not, what to do about it
      status       What a run and each of its actors is doing
      join         Take part, with this host's workers, in a run that another host launched
      keep         Keep a run's ledger with other hosts, and run it while this one leads them
      token        Write a token with which other hosts join a run
      certs        Who in a run has which certificate and until when; or new ones for all
      scale        Change how many workers a running run has
      pause        Begin no further groups in a running run; what has begun is finished
      resume       Begin groups again in a paused run
      drain        Let a running run finish what is in hand, save and end; or let one host leave
      stop         End a running run now; it can be resumed
      chaos        Kill processes of a running run at random, and say what that costs
      audit        Prove that every group was consumed once, dropped with a reason, or is in flight
      replay       Take a run's steps again from its ledger, to the same weights
      hash         Hashes of a checkpoint's weights, optimizer, random state and data cursor
      export       Write a model, adapters merged, as a directory that transformers loads
      inspect      What a model is: architecture, size, tokenizer, memory
      version      Version, build and kernel path
      completions  Write a completion script for a shell
      help         Print this message or the help of the given subcommand(s)

    Options:
      -h, --help     Print help
      -V, --version  Print version

    `cluster launch` needs nothing else: it trains a small embedded agent in about a minute.
    ");
}

#[test]
fn bad_command_lines_end_in_2_and_say_what_is_wrong() {
    for (arguments, wanted) in [
        (
            vec!["launch", "--dry-run", "--workers", "rollout=0"],
            vec!["cluster.rollout", "nobody could ever generate", "--workers rollout=0"],
        ),
        (
            vec!["launch", "--dry-run", "--workers", "learner=2"],
            vec!["2 learner ranks cannot share 1 logical shards", "set training.logical_shards = 2"],
        ),
        (vec!["launch", "--dry-run", "--workers", "rolout=2"], vec!["did you mean rollout?"]),
        (
            vec!["launch", "--dry-run", "--steps", "-5"],
            vec!["`training.steps` must be a whole number from 0", "found -5", "--steps -5"],
        ),
        (vec!["launch", "--dry-run", "--set", "training.lerning_rate=1"], vec!["did you mean `training.learning_rate`?"]),
        (vec!["launch", "--dry-run", "--set", "training.learning_rate=fast"], vec!["must be a number", "the string \"fast\""]),
        (
            vec!["launch", "--dry-run", "--set", "profile=bold"],
            vec!["`profile` cannot be \"bold\"", "conservative, balanced, aggressive, experimental"],
        ),
        (vec!["launch", "--dry-run", "--set", "rewards.parts.0.type=exact_mach"], vec!["exact_match"]),
        (vec!["launch", "no-such.toml"], vec!["cannot read the configuration no-such.toml"]),
        (vec!["launch", "a.toml", "--resume", "runs/x"], vec!["cannot be used with"]),
        (vec!["launch", "--clean"], vec!["--run-dir"]),
        (vec!["lunch"], vec!["launch"]),
        (vec!["generate", "--model", "random://tiny", "--input", "x", "--temperature", "0"], vec!["above 0"]),
    ] {
        let (exit, message) = refused(&arguments);
        assert_eq!(exit, Exit::Usage as u8, "{arguments:?}: {message}");
        for wanted in wanted {
            assert!(message.contains(wanted), "{arguments:?}: {message}");
        }
    }
}

#[test]
fn bad_models_end_in_3() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = dir.path().join("broken.gguf");
    std::fs::write(&gguf, b"GGUF but no more").unwrap();
    for model in ["/no/such/model", gguf.to_str().unwrap(), "ftp://x", "builtin://other"] {
        let (exit, message) = refused(&["inspect", model]);
        assert_eq!(exit, Exit::Model as u8, "{message}");
        assert!(message.contains(model.trim_start_matches("ftp")), "{message}");
    }
    let (exit, message) = refused(&["launch", "--dry-run", "--set", "model.path=/no/such/model"]);
    assert_eq!(exit, Exit::Model as u8);
    assert!(message.contains("/no/such/model") && message.contains("--set model.path=/no/such/model"), "{message}");
}

#[test]
fn missing_runs_and_checkpoints_end_in_5() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().to_str().unwrap();
    for arguments in [
        vec!["audit", run],
        vec!["status", run],
        vec!["launch", "--resume", run],
        vec!["hash", "/no/such/checkpoint"],
        vec!["rollouts", run, "--step", "1"],
    ] {
        let (exit, message) = refused(&arguments);
        assert_eq!(exit, Exit::RunDirectory as u8, "{arguments:?}: {message}");
        assert!(message.contains(arguments[1].trim_start_matches("--resume")), "{message}");
    }
}

#[test]
fn a_dry_run_prints_a_configuration_that_reads_back() {
    let (exit, printed, message) =
        cluster(&["launch", "--dry-run", "--seed", "7", "--set", "training.steps=3", "--set", "model.path=random://tiny"]);
    assert_eq!(exit, Exit::Success as u8, "{message}");
    for wanted in
        ["# --seed 7", "# --set training.steps=3", "# (embedded)/order-desk.toml:", "# default", "# memory: learner needs "]
    {
        assert!(printed.contains(wanted), "{wanted} in {printed}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("printed.toml");
    std::fs::write(&file, &printed).unwrap();
    let again = crate::config::Resolved::load(&crate::config::Inputs { files: vec![file], ..Default::default() }).unwrap();
    assert_eq!((again.config.training.seed, again.config.training.steps), (7, 3));
}

#[test]
fn reports_are_one_line_of_json() {
    for arguments in [
        vec!["version", "--json"],
        vec!["inspect", "random://tiny?seed=3", "--weights", "--json"],
        vec!["launch", "--dry-run", "--set", "model.path=random://tiny", "--json"],
        vec!["doctor", "--set", "model.path=random://tiny", "--json"],
    ] {
        let (_, out, message) = cluster(&arguments);
        assert_eq!(out.lines().count(), 1, "{arguments:?}: {out}{message}");
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert!(value.is_object());
    }
}

#[test]
fn completions_are_written_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (exit, script, _) = cluster(&["completions", shell]);
        assert_eq!(exit, Exit::Success as u8);
        assert!(script.contains("launch") && script.contains("audit"), "{shell}");
    }
}

#[test]
fn init_writes_once() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("desk");
    let target = target.to_str().unwrap();
    let (exit, out, _) = cluster(&["init", target]);
    assert_eq!(exit, Exit::Success as u8);
    assert!(out.contains("cluster launch"));
    assert_eq!(std::fs::read_to_string(format!("{target}/order-desk.toml")).unwrap(), crate::config::EMBEDDED);
    let (exit, message) = refused(&["init", target]);
    assert_eq!(exit, Exit::Io as u8);
    assert!(message.contains("exists already"));
}
