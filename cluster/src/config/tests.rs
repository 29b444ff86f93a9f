//! The machinery on a small configuration of its own.
use super::*;
use proptest::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use units::{Bytes, Span};

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Small {
    /// Name.
    name: String,
    /// Training.
    train: Train,
    /// Graders.
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Train {
    /// Steps of the run.
    steps: u32,
    /// Peak learning rate.
    learning_rate: f64,
    /// Temperature.
    temperature: f32,
    /// Longest wait.
    wait: Span,
    /// Memory.
    memory: Bytes,
    /// Objective.
    loss: Loss,
    /// Texts that end a turn.
    stop: Vec<String>,
    /// Seed, if any.
    seed: Option<u64>,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            steps: 100,
            learning_rate: 5e-6,
            temperature: 0.7,
            wait: Span(std::time::Duration::from_secs(10)),
            memory: Bytes(64 << 20),
            loss: Loss::Grpo { clip: 0.2, beta: 0.0 },
            stop: vec![],
            seed: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Loss {
    /// Clipped.
    Grpo {
        /// Clip.
        #[serde(default)]
        clip: f64,
        /// KL.
        #[serde(default)]
        beta: f64,
    },
    /// Cross-entropy.
    Sft {},
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Part {
    /// Its share.
    weight: f64,
}

fn tree(files: &[(&str, &str)], sets: &[&str]) -> Result<Node, ConfigError> {
    let mut tree = defaults::<Small>()?;
    for (name, text) in files {
        let source = Source { name: (*name).to_owned(), text: (*text).to_owned(), folder: None };
        tree.merge(Node::parse(&Arc::new(source))?);
    }
    let sets = sets.iter().map(|&s| s.to_owned()).collect();
    tree.merge(overrides(&Inputs { sets, ..Inputs::default() })?);
    Ok(tree)
}

fn load(files: &[(&str, &str)], sets: &[&str]) -> Result<Small, ConfigError> {
    read(&tree(files, sets)?)
}

fn refusal(text: &str, sets: &[&str]) -> String {
    load(&[("run.toml", text)], sets).unwrap_err().to_string()
}

#[test]
fn later_layers_win_key_by_key() {
    let a = "name = 'a'\n[train]\nsteps = 1\nlearning_rate = 1e-3\nstop = ['x', 'y']\n";
    let b = "[train]\nsteps = 2\nstop = ['z']\n";
    let small = load(&[("a.toml", a), ("b.toml", b)], &["train.steps=3", "name=hf://org/name"]).unwrap();
    assert_eq!((small.train.steps, small.train.learning_rate, small.name.as_str()), (3, 1e-3, "hf://org/name"));
    assert_eq!(small.train.stop, ["z"], "lists are replaced as a whole");
}

#[test]
fn a_changed_type_takes_the_older_keys_away() {
    let a = ("a.toml", "train.loss = { type = 'grpo', clip = 0.3 }");
    assert_eq!(load(&[a], &["train.loss.beta=0.1"]).unwrap().train.loss, Loss::Grpo { clip: 0.3, beta: 0.1 });
    assert_eq!(load(&[a], &["train.loss.type=sft"]).unwrap().train.loss, Loss::Sft {});
    let (one, other) = ("train.loss.clip=0.5", "train.loss.type=grpo");
    for sets in [[one, other], [other, one]] {
        let small = load(&[("a.toml", "train.loss = { type = 'sft' }")], &sets).unwrap();
        assert_eq!(small.train.loss, Loss::Grpo { clip: 0.5, beta: 0.0 }, "the order of --set does not matter: {sets:?}");
    }
}

#[test]
fn set_reaches_into_lists_and_reads_toml() {
    let text = "[[parts]]\nweight = 1.0\n[[parts]]\nweight = 2.0\n";
    let small = load(&[("a.toml", text)], &["parts.1.weight=7", "train.stop=['a', 'b']", "train.wait=5m", "name=17"]).unwrap();
    assert_eq!(small.parts, [Part { weight: 1.0 }, Part { weight: 7.0 }]);
    assert_eq!(small.train.stop, ["a", "b"]);
    assert_eq!(small.train.wait.0.as_secs(), 300);
    assert_eq!(small.name, "17", "a number given for a string is taken as typed");
}

#[test]
fn refusals_name_place_value_and_way_out() {
    insta::assert_snapshot!(refusal("[train]\nlerning_rate = 1e-3\n", &[]), @r"
    unknown key `train.lerning_rate`; did you mean `train.learning_rate`?
      --> run.toml:2:1
      |
    2 | lerning_rate = 1e-3
      | ^^^^^^^^^^^^
    ");
    insta::assert_snapshot!(refusal("steps = 5", &[]), @r"
    unknown key `steps`; did you mean `train.steps`?
      --> run.toml:1:1
      |
    1 | steps = 5
      | ^^^^^
    ");
    insta::assert_snapshot!(refusal("[train]\n\nlearning_rate = 'fast'", &[]), @r#"
    `train.learning_rate` must be a number, found the string "fast"
      --> run.toml:3:17
      |
    3 | learning_rate = 'fast'
      |                 ^^^^^^
      = train.learning_rate: Peak learning rate. Default 5e-6.
    "#);
    insta::assert_snapshot!(refusal("[train]\nwait = 10", &[]), @r#"
    `train.wait` must be a length of time with its unit, as "10s", found 10
      --> run.toml:2:8
      |
    2 | wait = 10
      |        ^^
      = train.wait: Longest wait. Default "10s".
    "#);
    insta::assert_snapshot!(refusal("", &["train.steps=-3"]), @r"
    `train.steps` must be a whole number from 0 to 4294967295, found -3
      --> --set train.steps=-3
      = train.steps: Steps of the run. Default 100.
    ");
    insta::assert_snapshot!(refusal("[train.loss]\ntype = 'gpro'", &[]), @r#"
    `train.loss.type` cannot be "gpro"; did you mean "grpo"? known: grpo, sft
      --> run.toml:2:8
      |
    2 | type = 'gpro'
      |        ^^^^^^
    "#);
    insta::assert_snapshot!(refusal("[train]\nloss = { type = 'sft', clip = 0.2 }", &[]), @r#"
    unknown key `train.loss.clip` for this type; type = "grpo" has it
      --> run.toml:2:24
      |
    2 | loss = { type = 'sft', clip = 0.2 }
      |                        ^^^^
    "#);
    insta::assert_snapshot!(refusal("[train]\nloss = { clip = 'no' }", &[]), @r#"
    `train.loss.clip` must be a number, found the string "no"
      --> run.toml:2:17
      |
    2 | loss = { clip = 'no' }
      |                 ^^^^
      = train.loss.clip: Clip. Default 0.0.
    "#);
    insta::assert_snapshot!(refusal("[[parts]]\nweight = 1\n[[parts]]\n", &[]), @r"
    key `weight` is missing in `parts.1`
      --> run.toml:3:1
      |
    3 | [[parts]]
      | ^^^^^^^^^
    ");
    insta::assert_snapshot!(refusal("[train\nsteps = 3", &[]), @r"
    not valid TOML: unclosed table, expected `]`
      --> run.toml:1:7
      |
    1 | [train
      |       ^
    ");
    insta::assert_snapshot!(refusal("", &["train"]), @"cannot read `--set train`: it has no `=`; write `--set section.key=VALUE`");
}

#[test]
fn every_printed_value_has_its_origin() {
    let tree =
        tree(&[("run.toml", "name = 'x'\n[train]\nlearning_rate = 1e-6\n[[parts]]\nweight = 2")], &["train.steps=7"]).unwrap();
    let small: Small = read(&tree).unwrap();
    insta::assert_snapshot!(to_toml(&small, &tree).unwrap(), @r#"
    name = "x"            # run.toml:1

    [train]
    steps = 7             # --set train.steps=7
    learning_rate = 1e-6  # run.toml:3
    temperature = 0.7     # default
    wait = "10s"          # default
    memory = "64MiB"      # default
    stop = []             # default

    [train.loss]
    type = "grpo"         # default
    clip = 0.2            # default
    beta = 0.0            # default

    [[parts]]
    weight = 2.0          # run.toml:5
    "#);
}

#[test]
fn crlf_and_unicode_keep_their_columns() {
    let error = refusal("name = 'ä'\r\n[train]\r\nstepz = 1\r\n", &[]);
    assert!(error.contains("run.toml:3:1"), "{error}");
    let error = refusal("train = { stop = ['äöü'], stepz = 1 }", &[]);
    assert!(error.contains("run.toml:1:27"), "{error}");
}

fn small() -> impl Strategy<Value = Small> {
    let number = prop_oneof![any::<f64>().prop_filter("finite", |x| x.is_finite()), Just(0.0), Just(1e-7), Just(1e300)];
    let temperature = any::<f32>().prop_filter("finite", |x| x.is_finite());
    (
        ".*",
        0u32..,
        number,
        temperature,
        0u64..1 << 40,
        proptest::collection::vec(".*", 0..3),
        proptest::option::of(0..i64::MAX as u64),
    )
        .prop_map(|(name, steps, learning_rate, temperature, amount, stop, seed)| Small {
            name,
            train: Train {
                steps,
                learning_rate,
                temperature,
                wait: Span(std::time::Duration::from_micros(amount)),
                memory: Bytes(amount),
                loss: if steps % 2 == 0 { Loss::Sft {} } else { Loss::Grpo { clip: learning_rate, beta: 0.5 } },
                stop,
                seed,
            },
            parts: vec![Part { weight: learning_rate }; (steps % 3) as usize],
        })
}

proptest! {
    /// K3: what is printed reads back as an equal configuration, with or without the tree it came from.
    #[test]
    fn printed_configurations_read_back(small in small()) {
        let printed = to_toml(&small, &Node::empty()).unwrap();
        let tree = tree(&[("printed.toml", &printed)], &[]).unwrap();
        let back: Small = read(&tree).unwrap();
        prop_assert_eq!(&back, &small);
        prop_assert_eq!(load(&[("again.toml", &to_toml(&back, &tree).unwrap())], &[]).unwrap(), small);
    }

    /// Any text is either read or refused, never a panic.
    #[test]
    fn any_text_is_read_or_refused(text in ".{0,80}", set in ".{0,40}") {
        let _either = load(&[("any.toml", &text)], &[&set]);
    }
}

/// The configurations that the repository ships, to be damaged.
fn shipped() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let folders = ["basic/lora-8gb", "basic/order-desk", "basic/smollm2", "ci"].map(|folder| root.join(folder));
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
    let texts: Vec<String> = files.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    assert!(texts.len() >= 4);
    texts
}

/// What tempts a reader of numbers, strings and tables.
const TEMPTING: [&str; 16] = [
    "\"",
    "'''",
    "[",
    "]]",
    "=",
    "\n",
    "-1",
    "1e400",
    "nan",
    "99999999999999999999",
    "{ a = 1 }",
    "0",
    "true",
    "..",
    "\u{0}",
    "\"\\uD800\"",
];

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200, rng_seed: proptest::test_runner::RngSeed::Fixed(11), ..ProptestConfig::default()
    })]
    /// The whole configuration from a damaged file: read, or refused; what is read is printed and read again (K3).
    #[test]
    fn a_damaged_configuration_is_read_or_refused(
        seed in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..TEMPTING.len(), 0usize..12), 1..5),
    ) {
        let mut text: Vec<char> = seed.get(&shipped()).chars().collect();
        for (at, put, gone) in edits {
            let at = at.index(text.len());
            text.splice(at..(at + gone).min(text.len()), TEMPTING[put].chars());
        }
        let source = |text: String| vec![Source { name: "damaged.toml".into(), text, folder: None }];
        // Whoever says nothing means the folder of work, which a printed configuration names.
        let inputs = Inputs { sets: vec!["cluster.run_root=/runs".into()], ..Inputs::default() };
        match Resolved::from_sources(source(text.into_iter().collect()), &inputs) {
            Ok(resolved) => {
                let printed = resolved.to_toml().unwrap();
                let again = Resolved::from_sources(source(printed), &inputs).unwrap();
                prop_assert_eq!(again.config, resolved.config);
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}

#[test]
fn a_key_of_many_parts_is_refused_and_does_not_end_the_stack() {
    let deep = format!("{}a=1", "a.".repeat(100_000));
    assert!(Node::parse_set(&deep).unwrap_err().to_string().contains("at most"));
    let nested = format!("a = {}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(load(&[("nested.toml", &nested)], &[]).is_err());
    assert!(load(&[("dotted.toml", &format!("{}a = 1", "a.".repeat(100_000)))], &[]).is_err());
}
