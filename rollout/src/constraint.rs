//! `[agent.constraint]`: the grammar that every assistant turn must follow, by llguidance.
//!
//! Invariants
//! - **G1** a turn starts anew: what a grammar allows is a function of it and of the tokens of the turn alone. Each turn gets
//!   its own copy of the compiled grammar with its caches, so no other turn can change an answer or use up a limit.
//! - **G2** an end token may come where the text is complete, and nothing else may where it cannot go on. Text that is cut by
//!   the token budget, the context or a stop text need not be complete.
//! - **G3** special tokens are no text: a grammar allows one only by its name.
use crate::{ConstraintConfig, RolloutError};
use cohort_engine::{Constraint, EngineError};
use cohort_model::{ModelFiles, Tokenizer};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// A grammar, compiled for one vocabulary.
pub struct Grammar {
    start: Mutex<Matcher>,
    end: Arc<[u32]>,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

impl Grammar {
    /// Compiles a constraint for a model's vocabulary.
    ///
    /// Errors: [`RolloutError::Config`] for a file that cannot be read, a grammar that cannot be compiled or followed, and a
    /// model whose vocabulary is not byte-level or which has no end token.
    pub fn compile(config: &ConstraintConfig, model: &ModelFiles) -> Result<Self, RolloutError> {
        let environment = vocabulary(&model.tokenizer, &model.eos)
            .map_err(|why| refused(format!("{} cannot be constrained: {why}", model.source)))?;
        let grammar = grammar(config).map_err(refused)?;
        let parser = ParserFactory::new_simple(&environment).and_then(|mut factory| {
            factory.quiet().limits_mut().verbose_errors = false;
            factory.create_parser(grammar)
        });
        let start = Matcher::new(parser);
        // The first mask finds what compiles and still allows no text.
        if let Err(why) = start.deep_clone().compute_mask() {
            let kind = config.name();
            return Err(refused(format!("the {kind} cannot be followed: {why}; mend it or leave agent.constraint out")));
        }
        Ok(Self { start: Mutex::new(start), end: model.eos.clone().into() })
    }

    /// The constraint of one turn.
    #[must_use]
    pub fn begin(&self) -> Box<dyn Constraint> {
        let matcher = self.start.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        Box::new(Turn { matcher, end: self.end.clone() })
    }
}

/// A turn that follows a grammar.
struct Turn {
    matcher: Matcher,
    end: Arc<[u32]>,
}

impl Constraint for Turn {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), EngineError> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|e| failed(&e))?;
        for (token, logit) in logits.iter_mut().enumerate() {
            if token >= allowed.len() || !allowed.get(token) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    fn push(&mut self, token: u32) -> Result<(), EngineError> {
        if self.end.contains(&token) {
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(|e| failed(&e))
    }
}

fn failed(error: &dyn fmt::Display) -> EngineError {
    EngineError::Input(format!("the constraint's grammar: {error}"))
}

fn refused(problem: String) -> RolloutError {
    RolloutError::Config { place: "agent.constraint", problem }
}

/// The grammar of a section, and what is wrong with it where it cannot be read.
fn grammar(config: &ConstraintConfig) -> Result<TopLevelGrammar, String> {
    match config {
        ConstraintConfig::JsonSchema { schema, file } => {
            let (text, place) = text("schema", schema.as_ref(), file.as_deref())?;
            let schema = serde_json::from_str(&text).map_err(|e| format!("{place} is no JSON: {e}"))?;
            Ok(TopLevelGrammar::from_json_schema(schema))
        }
        ConstraintConfig::Regex { pattern } => Ok(TopLevelGrammar::from_regex(pattern)),
        ConstraintConfig::Lark { grammar, file } => {
            Ok(TopLevelGrammar::from_lark(text("grammar", grammar.as_ref(), file.as_deref())?.0))
        }
    }
}

/// What stands in a key or in the file that is named instead, with its place.
fn text(key: &str, inline: Option<&String>, file: Option<&Path>) -> Result<(String, String), String> {
    match (inline, file) {
        (Some(text), None) => Ok((text.clone(), key.to_owned())),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
            Ok((text, path.display().to_string()))
        }
        _ => Err(format!("give one of {key} and file")),
    }
}

/// The vocabulary as bytes.
fn vocabulary(tokenizer: &Tokenizer, end: &[u32]) -> Result<TokEnv, String> {
    let Some(first) = end.first() else { return Err("it names no end token".into()) };
    let size = u32::try_from(tokenizer.vocab_size()).map_err(|e| e.to_string())?;
    if let Some(id) = end.iter().find(|id| **id >= size) {
        return Err(format!("its end token {id} is not in its tokenizer"));
    }
    let mut words = Vec::with_capacity(size as usize);
    for token in 0..size {
        let special = tokenizer.is_special(token).then(|| tokenizer.token(token)).flatten();
        words.push(match special {
            Some(name) => [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat(),
            None => tokenizer.token_bytes(token).ok_or("its vocabulary is not byte-level")?.to_vec(),
        });
    }
    let trie = TokTrie::from(&TokRxInfo::new(size, *first), &words).with_eos_tokens(end);
    Ok(Arc::new(ApproximateTokEnv::new(trie)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_engine::native::NativeEngine;
    use cohort_engine::{
        Backend, Completion, Decoding, DrawKey, EngineHandle, EngineOptions, Finish, PackedBatch, PackedSequence, Penalties,
        Truncation,
    };
    use serde_json::Value;

    const SCHEMA: &str = r##"{
        "type": "object", "additionalProperties": false, "required": ["name", "size", "tags"],
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "size": {"type": "integer", "minimum": -20, "maximum": 300},
            "kind": {"enum": ["a", "b\u00e9", null, 1.5]},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 3}
        },
        "$defs": {"tag": {"anyOf": [{"const": "x"}, {"type": "boolean"}]}},
        "x-guidance": {"whitespace_flexible": false}
    }"##;

    fn model() -> ModelFiles {
        ModelFiles::open("random://tiny").unwrap()
    }

    fn schema(text: &str) -> ConstraintConfig {
        ConstraintConfig::JsonSchema { schema: Some(text.into()), file: None }
    }

    fn engine(files: &ModelFiles, options: EngineOptions, kv_bytes: usize) -> EngineHandle {
        let (spec, weights) = (files.spec.clone(), files.weights().unwrap());
        let make = move || {
            let mut engine = NativeEngine::new(spec, 2, kv_bytes)?;
            engine.import(&weights)?;
            Ok(Box::new(engine) as Box<dyn Backend>)
        };
        EngineHandle::start(make, options).unwrap()
    }

    fn decoding(files: &ModelFiles, grammar: &Grammar, sample: u16) -> Decoding {
        Decoding {
            greedy: sample == 0,
            constraint: Some(grammar.begin()),
            penalties: Penalties { presence: f32::from(sample % 3) / 4.0, ..Penalties::OFF },
            truncation: Truncation { top_p: if sample.is_multiple_of(2) { 0.9 } else { 1.0 }, ..Truncation::OFF },
            stop_ids: files.eos.clone(),
            ..Decoding::plain(1.0, 160, DrawKey { seed: 3, group: 1, sample })
        }
    }

    /// Two turns of each sample, all at once.
    async fn turns(engine: &EngineHandle, files: &ModelFiles, grammar: &Grammar, samples: u16) -> Vec<[Completion; 2]> {
        let tasks: Vec<_> = (0..samples)
            .map(|sample| {
                let mut session = engine.session();
                let (first, second) = (decoding(files, grammar, sample), decoding(files, grammar, sample));
                tokio::spawn(async move {
                    let first = session.generate(&[257, 65, 66, u32::from(sample)], first).await.unwrap();
                    [first, session.generate(&[10, 257], second).await.unwrap()]
                })
            })
            .collect();
        let mut out = Vec::new();
        for task in tasks {
            out.push(task.await.unwrap());
        }
        out
    }

    #[tokio::test]
    async fn every_completion_of_a_random_model_is_valid_and_its_log_probs_are_the_learners() {
        let files = model();
        let grammar = Grammar::compile(&schema(SCHEMA), &files).unwrap();
        let roomy = engine(&files, EngineOptions::default(), 64 << 20);
        let made = turns(&roomy, &files, &grammar, 12).await;
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        let (mut sequences, mut stored) = (Vec::new(), Vec::new());
        for (sample, turns) in made.iter().enumerate() {
            let mut tokens = vec![257, 65, 66, sample as u32];
            for (index, turn) in turns.iter().enumerate() {
                let (end, body) = turn.tokens.split_last().unwrap();
                assert_eq!((turn.finish, files.eos.contains(end)), (Finish::Stop, true), "it ends when the text is complete");
                let text = files.tokenizer.decode(body, false).unwrap();
                let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
                assert!(jsonschema::is_valid(&schema, &value), "{text}");
                if index == 1 {
                    tokens.extend([10, 257]);
                }
                let start = tokens.len() as u32;
                tokens.extend(&turn.tokens);
                let targets: Vec<u32> = (start..tokens.len() as u32).collect();
                sequences.push(PackedSequence { tokens: tokens.clone(), targets, temperature: 1.0, shared: 0 });
                stored.extend(&turn.logp);
                assert!(turn.logp.iter().zip(&turn.logp_sampled).filter(|(free, drawn)| free != drawn).count() > 5);
            }
        }
        let batch = PackedBatch { sequences };
        let learned = roomy.with_backend(move |backend| backend.forward(&batch, false)).await.unwrap().unwrap();
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&learned.logp), bits(&stored));

        // Room for few at a time, prompts cut, memory given up: the same tokens and log-probs.
        let options = EngineOptions { max_running: 3, max_step_tokens: 3, ..EngineOptions::default() };
        assert_eq!(turns(&engine(&files, options, 1 << 20), &files, &grammar, 12).await, made);
    }

    #[tokio::test]
    async fn a_regular_expression_and_a_grammar_are_followed_to_their_end() {
        let files = model();
        let engine = engine(&files, EngineOptions::default(), 64 << 20);
        let lark = "start: \"<\" WORD (\",\" WORD)? \">\"\nWORD: /[a-d]{1,3}/";
        let pattern = "(yes|no) \u{20ac}[0-9]{3}";
        for (config, pattern) in [
            (ConstraintConfig::Regex { pattern: pattern.into() }, pattern),
            (ConstraintConfig::Lark { grammar: Some(lark.into()), file: None }, "<[a-d]{1,3}(,[a-d]{1,3})?>"),
        ] {
            let whole = regex::Regex::new(&format!("^({pattern})$")).unwrap();
            let grammar = Grammar::compile(&config, &files).unwrap();
            for sample in 0..6 {
                let done = engine.session().generate(&[257, 65], decoding(&files, &grammar, sample)).await.unwrap();
                let text = files.tokenizer.decode(&done.tokens[..done.tokens.len() - 1], false).unwrap();
                assert_eq!(done.finish, Finish::Stop);
                assert!(whole.is_match(&text), "{text}");
            }
        }
    }

    #[test]
    fn special_tokens_are_no_text_and_the_end_comes_when_all_is_said() {
        let files = model();
        let grammar = Grammar::compile(&ConstraintConfig::Regex { pattern: "ab?".into() }, &files).unwrap();
        let mut turn = grammar.begin();
        let allowed = |turn: &mut Box<dyn Constraint>| {
            let mut logits = vec![0.0; files.spec.vocab];
            turn.mask(&mut logits).unwrap();
            (0..logits.len() as u32).filter(|t| logits[*t as usize] == 0.0).collect::<Vec<_>>()
        };
        let end = files.eos.clone();
        assert_eq!(allowed(&mut turn), [u32::from(b'a')]);
        turn.push(u32::from(b'a')).unwrap();
        assert_eq!(allowed(&mut turn), [&[u32::from(b'b')], &end[..]].concat());
        turn.push(u32::from(b'b')).unwrap();
        assert_eq!(allowed(&mut turn), end);
        assert!(turn.push(u32::from(b'c')).is_err());
        let anything = Grammar::compile(&ConstraintConfig::Regex { pattern: "(.|\n)*".into() }, &files).unwrap();
        assert!(allowed(&mut anything.begin()).iter().all(|t| !files.tokenizer.is_special(*t) || end.contains(t)));
    }

    #[test]
    fn what_cannot_be_followed_is_refused_with_its_place() {
        let files = model();
        for (config, says) in [
            (schema("{"), "schema is no JSON"),
            (schema(r#"{"type": "nonsense"}"#), "the JSON schema cannot be followed"),
            (schema(r#"{"allOf": [{"type": "string"}, {"type": "integer"}]}"#), "the JSON schema cannot be followed"),
            (ConstraintConfig::Regex { pattern: "(".into() }, "the regular expression cannot be followed"),
            (ConstraintConfig::Lark { grammar: Some("start: missing".into()), file: None }, "the grammar cannot be followed"),
            (ConstraintConfig::JsonSchema { schema: None, file: None }, "give one of schema and file"),
            (ConstraintConfig::Lark { grammar: None, file: Some("/nowhere/g.lark".into()) }, "/nowhere/g.lark: No such file"),
        ] {
            let error = Grammar::compile(&config, &files).unwrap_err().to_string();
            assert!(error.starts_with("agent.constraint: ") && error.contains(says), "{error}");
        }
    }
}
