//! The program as scripts use it: a small run through the real binary, then every report about it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn cluster(dir: &Path, arguments: &[&str]) -> Ran {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_cluster")).current_dir(dir).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) }
}

/// Runs a command that must succeed.
fn good(dir: &Path, arguments: &[&str]) -> String {
    let ran = cluster(dir, arguments);
    assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.err);
    ran.out
}

fn json(dir: &Path, arguments: &[&str]) -> Value {
    let out = good(dir, arguments);
    assert_eq!(out.lines().count(), 1, "{arguments:?} prints one line: {out}");
    serde_json::from_str(&out).unwrap()
}

/// Runs a command that must be refused with this code; gives what it says.
fn refused(dir: &Path, code: i32, arguments: &[&str]) -> String {
    let ran = cluster(dir, arguments);
    assert_eq!(ran.code, code, "{arguments:?}: {}{}", ran.out, ran.err);
    assert!(ran.err.contains("error: "), "{}", ran.err);
    assert!(!ran.err.contains("panicked"), "{}", ran.err);
    ran.err
}

/// Every field that `docs/cli.md` promises, of the kind that scripts read: "name:kind name:kind".
fn shaped(value: &Value, fields: &str) {
    for field in fields.split_whitespace() {
        let (name, kind) = field.split_once(':').unwrap();
        let found = &value[name];
        let hex = |s: &str| s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
        let fits = match kind {
            "string" => found.is_string(),
            "count" => found.is_u64(),
            "number" => found.is_number(),
            "array" => found.is_array(),
            "object" => found.is_object(),
            "hash" => found.as_str().is_some_and(hex),
            other => panic!("no kind {other}"),
        };
        assert!(fits, "{name} is no {kind} in {value}");
    }
}

const CONFIG: &str = r#"
[model]
path = "random://tiny?seed=5"
[agent]
max_new_tokens = 12
[environment]
type = "prompts"
path = "prompts.jsonl"
heldout = 3
max_turns = 1
[training]
steps = 3
groups_per_step = 2
group_size = 4
learning_rate = 1e-2
schedule = "constant"
warmup_ratio = 0.0
eval = { every = 0, samples = 2, greedy = true }
checkpoint = { every = 1, keep = 5 }
[[rewards.parts]]
type = "random"
draw = "uniform"
[cluster]
threads = 1
"#;

fn workplace() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = (0..12).map(|i| format!("{{\"prompt\": \"What is {i} + 1?\", \"answer\": {}}}\n", i + 1)).collect();
    std::fs::write(dir.path().join("prompts.jsonl"), rows).unwrap();
    std::fs::write(dir.path().join("run.toml"), CONFIG).unwrap();
    let path = dir.path().to_owned();
    (dir, path)
}

#[test]
fn a_run_and_every_report_about_it() {
    let (_keep, dir) = workplace();
    let report = json(&dir, &["launch", "run.toml", "--run-dir", "r", "--json"]);
    shaped(
        &report,
        "run_dir:string steps:count reward_first5:number reward_last5:number heldout_before:number heldout_after:number \
         heldout_greedy_before:number heldout_greedy_after:number heldout_rise:object rollout_tokens_per_s:number \
         train_tokens_per_s:number max_logprob_diff:number logprob_tokens_compared:count weights_sha256:hash restarts:count \
         wall_s:number",
    );
    assert_eq!((report["steps"].as_u64(), report["max_logprob_diff"].as_f64()), (Some(3), Some(0.0)));
    assert!(report["logprob_tokens_compared"].as_u64() > Some(0));

    let hashes = json(&dir, &["hash", "r/checkpoints/step-3", "--json"]);
    shaped(&hashes, "weights:hash optimizer:hash rng:hash cursor:hash");
    assert_eq!(hashes["weights"], report["weights_sha256"]);
    assert_eq!(json(&dir, &["hash", "r", "--json"]), hashes, "a run directory stands for its newest checkpoint");
    assert_ne!(json(&dir, &["hash", "r/checkpoints/step-1", "--json"])["weights"], hashes["weights"]);

    let audit = json(&dir, &["audit", "r", "--json"]);
    let expected =
        serde_json::json!({ "unit": "group", "generated": 6, "consumed": 6, "dropped": {}, "in_flight": 0, "balanced": true });
    expected.as_object().unwrap().iter().for_each(|(k, v)| assert_eq!(&audit[k], v, "{k}"));

    let status = json(&dir, &["status", "r", "--json"]);
    shaped(&status, "phase:string epoch:count step:count steps:count updated_ms:count elapsed_s:number actors:array");
    for actor in status["actors"].as_array().unwrap() {
        shaped(actor, "name:string role:string pid:count state:string restarts:count");
        assert!(actor["lease"].is_null() || actor["lease"].is_string(), "{actor}");
    }

    let evaluated = json(&dir, &["evaluate", "r", "--json"]);
    shaped(
        &evaluated,
        "checkpoint:string weights_sha256:hash prompts:count samples:count heldout:number heldout_greedy:number parts:object",
    );
    assert_eq!(evaluated["weights_sha256"], report["weights_sha256"]);
    assert_eq!(evaluated["heldout"], report["heldout_after"], "the same draws as the run's own evaluation");
    assert_eq!(evaluated["heldout_greedy"], report["heldout_greedy_after"]);
    assert!(good(&dir, &["evaluate", "r", "--message", "hello"]).contains("agent"));
    json(&dir, &["evaluate", "r", "--json", "--prompts", "2", "--top-p", "0.8", "--presence-penalty", "-0.5"]);
    let said = refused(&dir, 2, &["evaluate", "r", "--top-p", "1.5"]);
    assert!(said.contains("agent.top_p") && said.contains("--top-p 1.5") && said.contains("at most 1"), "{said}");

    scores_are_the_stored_bits(&dir);
    refusals_about_a_run(&dir);
}

/// What `rollouts` exports, scored with the checkpoint of its version, gives the stored log-probs to the bit.
fn scores_are_the_stored_bits(dir: &Path) {
    let mut compared = 0;
    for (step, model) in [("1", "random://tiny?seed=5"), ("3", "r/checkpoints/step-2")] {
        let export = json(dir, &["rollouts", "r", "--step", step, "--json"]);
        shaped(&export, "run_dir:string step:count version:count groups:array");
        assert_eq!(export["version"].as_u64(), Some(step.parse::<u64>().unwrap() - 1));
        shaped(&export["groups"][0], "group_id:count step:count item:object trajectories:array");
        shaped(
            &export["groups"][0]["trajectories"][0],
            "trajectory_id:string turns:array turn_rewards:array total_reward:number breakdown:object advantage:number \
             token_ids:array mask:array logp:array logp_sampled:array temperature:number spans:array finish_reason:string \
             episode_length:count metadata:object",
        );
        assert!(export["groups"][0]["item"]["prompt"].is_string());
        std::fs::write(dir.join("export.json"), export.to_string()).unwrap();
        let scored = good(dir, &["score", "--model", model, "--input", "export.json"]);
        let mut scored = scored.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        for trajectory in export["groups"].as_array().unwrap().iter().flat_map(|g| g["trajectories"].as_array().unwrap()) {
            let row = scored.next().unwrap();
            assert_eq!(row["id"], trajectory["trajectory_id"]);
            let bits =
                |v: &Value| v.as_array().unwrap().iter().map(|x| (x.as_f64().unwrap() as f32).to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&row["logprobs"]), bits(&trajectory["logp"]), "entries outside the mask are 0 in both");
            compared += trajectory["mask"].as_array().unwrap().iter().filter(|m| m.as_u64() == Some(1)).count();
        }
        assert!(scored.next().is_none());
    }
    assert!(compared > 100, "{compared} tokens");
    let text = good(dir, &["rollouts", "r", "--step", "2"]);
    assert!(text.contains("advantage") && text.contains("What is"), "{text}");
}

fn refusals_about_a_run(dir: &Path) {
    let said = refused(dir, 5, &["launch", "run.toml", "--run-dir", "r"]);
    assert!(said.contains("--resume") && said.contains("--clean"), "{said}");
    let said = refused(dir, 6, &["launch", "--resume", "r", "--set", "training.micro_batch_tokens=99"]);
    assert!(said.contains("micro_batch_tokens=4096") && said.contains("micro_batch_tokens=99"), "{said}");
    let said = refused(dir, 4, &["rollouts", "r", "--step", "9"]);
    assert!(said.contains("steps 1 to 3 are committed"), "{said}");
    let again = json(dir, &["launch", "--resume", "r", "--json"]);
    assert_eq!(again["steps"], 3);
    good(dir, &["launch", "run.toml", "--run-dir", "r", "--clean", "--steps", "1", "--json"]);
    assert_eq!(json(dir, &["audit", "r", "--json"])["consumed"], 2);
}

#[test]
fn generate_answers_in_order_whatever_the_batch() {
    let (_keep, dir) = workplace();
    let rows: String = (0..40)
        .map(|i| match i % 3 {
            0 => format!("{{\"id\": {i}, \"prompt\": \"{}\"}}\n", "word ".repeat(1 + i % 7)),
            1 => format!("{{\"id\": \"{i}\", \"messages\": [{{\"role\": \"user\", \"content\": \"n {i}\"}}]}}\n"),
            _ => format!("{{\"id\": [{i}], \"prompt_ids\": [1, 2, {i}], \"more\": true}}\n"),
        })
        .collect();
    std::fs::write(dir.join("in.jsonl"), rows).unwrap();
    let base = ["generate", "--model", "random://tiny", "--input", "in.jsonl", "--max-new-tokens", "9"];
    let with = |more: &[&str]| good(&dir, &[&base, more].concat());
    let out = with(&[]);
    let rows: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let ids: Vec<String> = rows.iter().map(|r| r["id"].to_string().replace(['"', '[', ']'], "")).collect();
    assert_eq!(ids, (0..40).map(|i| i.to_string()).collect::<Vec<_>>());
    for row in &rows {
        shaped(row, "text:string token_ids:array logprobs:array sampled_logprobs:array finish_reason:string token_sha256:hash");
        assert_eq!(row["token_ids"].as_array().map(Vec::len), row["logprobs"].as_array().map(Vec::len));
        assert_eq!(row["sampled_logprobs"], row["logprobs"], "nothing is truncated");
    }
    assert_eq!(with(&["--batch", "1", "--threads", "1"]), out, "bits do not depend on the batch or on threads");
    assert_ne!(with(&["--seed", "7"]), out);
    let greedy = with(&["--greedy"]);
    assert_eq!(with(&["--greedy", "--seed", "7"]), greedy);
    assert_ne!(greedy, out);

    let narrow =
        ["--top-k", "40", "--top-p", "0.9", "--min-p", "0.01", "--repetition-penalty", "1.1", "--presence-penalty", "0.2"];
    let narrowed = with(&narrow);
    assert_ne!(narrowed, out);
    assert_eq!(with(&[&narrow[..], &["--batch", "1", "--threads", "1"]].concat()), narrowed);
    for line in narrowed.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        assert_ne!(row["sampled_logprobs"], row["logprobs"]);
    }
    assert!(refused(&dir, 2, &[&base[..], &["--top-p", "1.5"]].concat()).contains("--top-p 1.5: must be above 0 and at most 1"));

    std::fs::write(dir.join("s.json"), r#"{"type": "array", "items": {"enum": [1, true]}, "maxItems": 2}"#).unwrap();
    let constrained = with(&["--json-schema", "s.json"]);
    for row in constrained.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        if row["finish_reason"] == "stop" {
            let value: Value = serde_json::from_str(row["text"].as_str().unwrap()).unwrap();
            assert!(value.as_array().unwrap().iter().all(|v| *v == 1 || *v == true), "{value}");
        }
    }
    assert!(constrained.contains("\"stop\""));
    assert!(refused(&dir, 2, &[&base[..], &["--regex", "("]].concat()).contains("the regular expression cannot be followed"));
    refused(&dir, 2, &[&base[..], &["--regex", "a", "--json-schema", "s.json"]].concat());
    refused(&dir, 2, &[&base[..], &["--regex", "a", "--ignore-eos"]].concat());

    // Token by token: every row as before, after exactly its tokens.
    let mut streamed: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in with(&["--stream", "--batch", "3"]).lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        streamed.entry(value["id"].to_string()).or_default().push(value);
    }
    for row in &rows {
        let mut events = streamed.remove(&row["id"].to_string()).unwrap();
        assert_eq!(events.pop().as_ref(), Some(row));
        let of = |key: &str| Value::from(events.iter().map(|e| e[key].clone()).collect::<Vec<_>>());
        assert_eq!((of("token_id"), of("logprob")), (row["token_ids"].clone(), row["logprobs"].clone()));
    }
    assert!(streamed.is_empty());

    let long = with(&["--ignore-eos"]);
    for line in long.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        assert_eq!((row["token_ids"].as_array().map(Vec::len), row["finish_reason"].as_str()), (Some(9), Some("length")));
    }

    // What was generated scores as it was drawn.
    let triples: String = rows
        .iter()
        .filter(|r| r["id"].is_array())
        .map(|r| {
            let (id, completion) = (&r["id"], &r["token_ids"]);
            format!("{{\"id\": {id}, \"prompt_ids\": [1, 2, {}], \"completion_ids\": {completion}}}\n", id[0])
        })
        .collect();
    std::fs::write(dir.join("triples.jsonl"), triples).unwrap();
    let scored = good(&dir, &["score", "--model", "random://tiny", "--dtype", "f32", "--input", "triples.jsonl"]);
    for (line, drawn) in scored.lines().zip(rows.iter().filter(|r| r["id"].is_array())) {
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()["logprobs"], drawn["logprobs"]);
    }
}

#[test]
fn bad_data_is_named_by_file_and_line() {
    let (_keep, dir) = workplace();
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    write("bad.jsonl", "{\"prompt\": \"a\"}\n\n{\"prompt\": \n");
    let said = refused(&dir, 4, &["launch", "run.toml", "--set", "environment.path=bad.jsonl", "--run-dir", "x"]);
    assert!(said.contains("bad.jsonl:3"), "{said}");
    assert!(!dir.join("x").exists(), "a refused launch leaves nothing behind");
    write("empty.jsonl", "\n");
    refused(&dir, 4, &["launch", "run.toml", "--set", "environment.path=empty.jsonl", "--run-dir", "x"]);

    write("in.jsonl", "{\"id\": 1, \"prompt\": \"a\"}\n{\"id\": 2}\n");
    let generate = ["generate", "--model", "random://tiny", "--input", "in.jsonl"];
    assert!(refused(&dir, 4, &generate).contains("in.jsonl:2: a row has one of"));
    write("in.jsonl", &format!("{{\"id\": 1, \"prompt\": \"{}\"}}\n", "x".repeat(2000)));
    let said = refused(&dir, 4, &generate);
    assert!(said.contains("in.jsonl:1: 2000 tokens do not fit the model's context of 1024"), "{said}");
    write("in.jsonl", "{\"id\": 1, \"prompt_ids\": [1, 999999]}\n");
    assert!(refused(&dir, 4, &generate).contains("token id 999999 at 1 is past the vocabulary of 272"));
    write("in.jsonl", "{\"id\": 1, \"prompt_ids\": [], \"completion_ids\": [4]}\n");
    let said = refused(&dir, 4, &["score", "--model", "random://tiny", "--input", "in.jsonl"]);
    assert!(said.contains("the first token has nothing before it"), "{said}");
    assert!(refused(&dir, 3, &["generate", "--model", "stub://x", "--input", "in.jsonl"]).contains("no model behind it"));
}

#[test]
fn models_that_cannot_be_had_leave_no_run_behind() {
    let (_keep, dir) = workplace();
    std::fs::write(dir.join("cut.gguf"), b"GGUF\x03\0\0\0\x10").unwrap();
    std::fs::create_dir(dir.join("hf")).unwrap();
    std::fs::write(dir.join("hf/config.json"), r#"{"architectures":["MambaForCausalLM"],"model_type":"mamba"}"#).unwrap();
    for (model, says) in [
        ("nowhere/at-all", "nowhere/at-all"),
        ("cut.gguf", "cut.gguf"),
        ("hf", "MambaForCausalLM"),
        ("hf://org/absent", "check the network and the id"),
        ("hf://no-name", "an id has the form org/name"),
        ("hf://openai/gpt-oss-20b", "gpt-oss"),
    ] {
        // A hub that refuses connections stands for a machine without a network.
        let ran = Command::new(env!("CARGO_BIN_EXE_cluster"))
            .current_dir(&dir)
            .args(["launch", "run.toml", "--run-dir", "x", "--set", &format!("model.path={model:?}")])
            .envs([("HF_ENDPOINT", "http://127.0.0.1:9"), ("HF_HOME", dir.join("hub").to_str().unwrap())])
            .output()
            .unwrap();
        let said = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(3), "{model}: {said}");
        assert!(said.starts_with("error: ") && said.contains(says) && !said.contains("panicked"), "{model}: {said}");
        assert!(!dir.join("x").exists(), "{model}: a refused launch leaves nothing behind");
    }
}

#[test]
fn configuration_errors_show_the_line() {
    let (_keep, dir) = workplace();
    std::fs::write(dir.join("typo.toml"), CONFIG.replace("learning_rate", "lerning_rate")).unwrap();
    let said = refused(&dir, 2, &["launch", "typo.toml"]);
    assert!(said.contains("did you mean `training.learning_rate`?") && said.contains("typo.toml:15:1"), "{said}");
    std::fs::write(dir.join("part.toml"), CONFIG.replace("draw = \"uniform\"", "drew = \"uniform\"")).unwrap();
    let said = refused(&dir, 2, &["launch", "part.toml"]);
    assert!(said.contains("drew") && said.contains("part.toml:"), "{said}");
    let narrow = "agent.top_p=0.9";
    let said = refused(&dir, 2, &["launch", "run.toml", "--run-dir", "x", "--set", narrow]);
    assert!(said.contains("agent.top_p") && said.contains("--set") && said.contains("training.correction.type"), "{said}");
    let tis = "training.correction={type=\"tis\"}";
    good(&dir, &["launch", "run.toml", "--dry-run", "--run-dir", "x", "--set", narrow, "--set", tis]);
    for arguments in [["--steps", "-1"], ["--steps", "0"], ["--workers", "rollout=0"], ["--set", "agent.type=chatty"]] {
        refused(&dir, 2, &[&["launch", "run.toml", "--run-dir", "x"], &arguments[..]].concat());
        assert!(!dir.join("x").exists());
    }
}

#[test]
fn a_reward_of_ones_own_is_one_command_away() {
    let (_keep, dir) = workplace();
    let out = good(&dir, &["init", "plugin", "--lang", "python", "mine"]);
    assert!(out.contains("cluster launch mine/my_reward.toml"), "{out}");
    let toml: Vec<_> = std::fs::read_dir(dir.join("mine"))
        .unwrap()
        .filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|x| x == "toml"))
        .collect();
    assert_eq!(toml.len(), 1, "exactly one configuration");
    let shown = good(&dir, &["launch", "mine/my_reward.toml", "--dry-run", "--set", "model.path=random://tiny"]);
    assert!(shown.contains("mine/my_reward.toml:"), "{shown}");
}
