//! `cargo xtask pretrain`: makes the embedded model, from nothing but this repository.
//!
//! Tokenizer, chat template and random weights are written to `model/assets/order-desk`; then the learner's own `sft` loss
//! imitates dialogues at the order desk in which most agents invent the answer and the others err at every step. The
//! result has the format and lacks the behaviour: asked greedily it invents, sampled it is right now and then. That is
//! what reinforcement has to find and keep. Every draw is keyed, so that the command gives the same files again.
use anyhow::{Context, Result, ensure};
use cohort_engine::native::NativeEngine;
use cohort_engine::{AdamW, Backend};
use cohort_learner::algo::sft::Sft;
use cohort_learner::batching::{Packing, Plan, Sample};
use cohort_learner::collective::Solo;
use cohort_learner::step::{Objective, update};
use cohort_model::init::random_weights;
use cohort_model::{ModelFiles, SaveDtype};
use cohort_protocol::{Turn, TurnRole};
use cohort_rollout::ChatFormat;
use cohort_rollout::draw::hash;
use cohort_rollout::environments::order_desk::world::{HELDOUT_EVERY, ITEMS, ORDERS, Order, price_text};
use serde_json::json;
use std::path::{Path, PathBuf};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, DecoderWrapper, TokenizerBuilder};

/// Where the embedded model lies.
pub(crate) fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/assets/order-desk")
}

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Optimizer steps.
    #[arg(long, default_value_t = 1600)]
    steps: u64,
    /// Dialogues of one step.
    #[arg(long, default_value_t = 128)]
    batch: u64,
    /// Peak learning rate; it falls linearly to 0.
    #[arg(long, default_value_t = 3e-3)]
    lr: f64,
    /// Key of the dialogues and of the first weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Compute threads; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Directory to write, instead of the embedded model's.
    #[arg(long)]
    out: Option<PathBuf>,
}

const END: &str = "<|end|>";
const SPECIAL: [&str; 5] = [END, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"];
const TEMPLATE: &str = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}\
{% if add_generation_prompt %}<|assistant|>{% endif %}";
const VOCAB: usize = 512;
/// Its rows share nothing.
const PACKING: Packing = Packing { micro_batch_tokens: 4096, share_prompts: false };
/// Most bytes of the embedded model.
const MOST_BYTES: u64 = 2_000_000;

pub(crate) fn run(args: &Args) -> Result<()> {
    let dir = args.out.clone().unwrap_or_else(assets);
    write_untrained(&dir, args.seed)?;
    let files = ModelFiles::open(dir.to_str().context("the path is not UTF-8")?)?;
    let format = ChatFormat::new(&files)?;
    let mut engine = NativeEngine::new(files.spec.clone(), args.threads, 0)?;
    engine.import(&files.weights()?)?;
    println!("{} parameters, {} tokens in the vocabulary", files.spec.parameters(), files.spec.vocab);
    println!("{}", show(&demonstration(Order(4821), 7)));
    let started = std::time::Instant::now();
    for step in 0..args.steps {
        let rows = (0..args.batch).map(|i| {
            let row = step * args.batch + i;
            let (tokens, mask) = encode(&format, &demonstration(training_order(args.seed, row), hash(&[args.seed, row])))?;
            Ok(Sample::supervised(row, &tokens, &mask))
        });
        let plan = Plan::new(rows.collect::<Result<Vec<_>>>()?, PACKING);
        let objective = Objective {
            loss: &Sft,
            optimizer: AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0 },
            learning_rate: rate(args, step),
            max_grad_norm: Some(1.0),
            compare: false,
            draws: 0,
        };
        let metrics = update(&mut engine, &plan, &objective, None, None, &mut Solo, &mut |_| ())?.finish();
        if step % 50 == 0 || step + 1 == args.steps {
            let loss = metrics.iter().find(|(name, _)| name == "loss").map_or(f64::NAN, |(_, value)| *value);
            println!("step {step:5}  loss {loss:.4}  {:6.1} s", started.elapsed().as_secs_f64());
        }
    }
    files.save(&dir, &engine.export()?, SaveDtype::Bf16)?;
    let bytes = std::fs::metadata(dir.join("model.safetensors"))?.len();
    ensure!(bytes <= MOST_BYTES, "model.safetensors has {bytes} bytes, at most {MOST_BYTES} are to be embedded");
    println!("{} bytes in {}", bytes, dir.display());
    Ok(())
}

/// A short warm-up, then linearly to 0.
fn rate(args: &Args, step: u64) -> f64 {
    let warm = ((step + 1) as f64 / 50.0).min(1.0);
    args.lr * warm * (1.0 - step as f64 / args.steps as f64)
}

/// Tokenizer, settings and random weights, as a directory that opens.
fn write_untrained(dir: &Path, seed: u64) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let write = |name: &str, value: serde_json::Value| -> Result<()> {
        let text = serde_json::to_string_pretty(&value)? + "\n";
        std::fs::write(dir.join(name), text).with_context(|| format!("cannot write {name}"))
    };
    let vocab = train_tokenizer(&dir.join("tokenizer.json"))?;
    let eos = 0;
    write(
        "config.json",
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
            "intermediate_size": 384, "vocab_size": vocab, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": true, "eos_token_id": eos, "pad_token_id": eos,
        }),
    )?;
    write(
        "tokenizer_config.json",
        json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END, "chat_template": TEMPLATE}),
    )?;
    write("generation_config.json", json!({"eos_token_id": eos, "pad_token_id": eos}))?;
    let config = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?;
    let spec = cohort_model::hf::spec_from_config(&config, "config.json")?;
    cohort_model::safetensors_file::write_file(&dir.join("model.safetensors"), &random_weights(&spec, seed), SaveDtype::Bf16)?;
    Ok(())
}

/// Byte-level BPE with single digits, trained on the desk's own texts. Gives the size of the vocabulary.
fn train_tokenizer(path: &Path) -> Result<usize> {
    let fail = |e: tokenizers::Error| anyhow::anyhow!("tokenizer: {e}");
    let steps =
        vec![PreTokenizerWrapper::Digits(Digits::new(true)), PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true))];
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(steps))))
        .with_post_processor(None::<tokenizers::PostProcessorWrapper>)
        .with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::new(false, true, true))))
        .build()
        .map_err(fail)?;
    let special: Vec<AddedToken> = SPECIAL.iter().map(|text| AddedToken::from(*text, true)).collect();
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(VOCAB)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(special)
        .build();
    let texts = (0..ORDERS as u16).flat_map(|number| demonstration(Order(number), u64::from(number))).map(|turn| turn.content);
    tokenizer.train(&mut trainer, texts).map_err(fail)?;
    tokenizer.save(path, true).map_err(fail)?;
    Ok(tokenizer.get_vocab_size(true))
}

/// The `row`-th order to learn from; never a held-out one.
fn training_order(seed: u64, row: u64) -> Order {
    let run = HELDOUT_EVERY - 1;
    let index = hash(&[seed, row, 3]) % (ORDERS / HELDOUT_EVERY * run);
    Order((index / run * HELDOUT_EVERY + index % run + 1) as u16)
}

/// Per thousand: who does what in the dialogues.
const INVENTS: u64 = 550;
const MISREADS: u64 = 150;
const SKIPS_PRICE: u64 = 250;
const WRONG_ITEM: u64 = 100;
const MISCOUNTS: u64 = 250;

/// A dialogue of an agent as there are many: a pure function of order and key.
fn demonstration(order: Order, key: u64) -> Vec<Turn> {
    let draw = |what: u64, n: u64| hash(&[key, what]) % n;
    let chance = |what: u64, of_thousand: u64| draw(what, 1000) < of_thousand;
    let invented = ((1 + draw(1, 9)) * (1 + draw(2, 9))) as u32;
    let mut turns = vec![Turn::text(TurnRole::User, order.question())];
    let say = |turns: &mut Vec<Turn>, text: String| turns.push(Turn::text(TurnRole::Assistant, text));
    let answer = |amount: u32| format!("That comes to ${amount}.");
    if chance(3, INVENTS) {
        say(&mut turns, answer(invented));
        return turns;
    }
    let looked_up = if chance(4, MISREADS) { Order(draw(5, ORDERS) as u16) } else { order };
    say(&mut turns, format!("lookup({looked_up})"));
    turns.push(Turn::text(TurnRole::Tool, looked_up.record()));
    if chance(6, SKIPS_PRICE) {
        say(&mut turns, answer(looked_up.quantity() * (1 + draw(7, 9) as u32)));
        return turns;
    }
    let item = if chance(8, WRONG_ITEM) { ITEMS[draw(9, ITEMS.len() as u64) as usize] } else { looked_up.item() };
    say(&mut turns, format!("price({item})"));
    let price = looked_up.price_of(item).unwrap_or(0);
    turns.push(Turn::text(TurnRole::Tool, price_text(price)));
    say(&mut turns, answer(if chance(10, MISCOUNTS) { invented } else { looked_up.quantity() * price }));
    turns
}

/// Tokens and mask, built as a rollout builds them.
fn encode(format: &ChatFormat, turns: &[Turn]) -> Result<(Vec<u32>, Vec<u8>)> {
    let end = *format.end().first().context("the model has no end token")?;
    let (mut tokens, mut mask) = (Vec::new(), Vec::new());
    let mut last = None;
    for (i, turn) in turns.iter().enumerate().filter(|(_, turn)| turn.role == TurnRole::Assistant) {
        tokens.extend(match last {
            None => format.prompt(&turns[..i])?,
            Some(last) => format.continuation(&turns[..i], last, Some(end))?,
        });
        mask.resize(tokens.len(), 0);
        tokens.extend(format.encode(&turn.content)?);
        tokens.push(end);
        mask.resize(tokens.len(), 1);
        last = Some(i);
    }
    Ok((tokens, mask))
}

fn show(turns: &[Turn]) -> String {
    turns.iter().map(|turn| format!("  {:?}: {}\n", turn.role, turn.content)).collect()
}
