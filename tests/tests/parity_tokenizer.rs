//! SmolLM2's GGUF: its tokenizer against Hugging Face's on 1,000 strings, its chat template, its weights' digests.
use anyhow::{Context, Result};
use cohort_model::{ChatMessage, ModelFiles, SaveDtype};
use cohort_tests::golden::{smollm2, smollm2_prompts, smollm2_strings};
use std::time::Instant;

#[test]
fn a_thousand_hard_strings_have_the_reference_ids() -> Result<()> {
    let Some(model) = smollm2("a_thousand_hard_strings_have_the_reference_ids")? else { return Ok(()) };
    let strings = smollm2_strings()?;
    assert_eq!(strings.len(), 1000);
    let tokenizer = &model.tokenizer;
    for (text, want) in &strings {
        assert_eq!(&tokenizer.encode(text, false)?, want, "{text:?}");
        assert_eq!(&tokenizer.decode(want, false)?, text);
        let mut stream = tokenizer.detokenizer(false);
        let mut streamed = String::new();
        for id in want {
            streamed += &stream.push(*id)?;
        }
        assert_eq!(&(streamed + &stream.finish()?), text);
    }
    Ok(())
}

#[test]
fn the_chat_template_gives_the_reference_prompt() -> Result<()> {
    let Some(model) = smollm2("the_chat_template_gives_the_reference_prompt")? else { return Ok(()) };
    let golden = &smollm2_prompts()?[0];
    let chat = model.chat.as_ref().context("SmolLM2 has a chat template")?;
    let mut messages = vec![ChatMessage::new("user", "What is the capital of France?")];
    let text = chat.render(&messages, true)?;
    assert_eq!(text, golden.text);
    assert_eq!(model.tokenizer.encode(&text, false)?, golden.ids);
    assert_eq!((model.eos.clone(), model.bos), (vec![2], Some(1)));
    // What is appended after the sampled answer makes the same tokens as the whole conversation at once.
    let answer = model.tokenizer.decode(&golden.greedy, true)?;
    messages.push(ChatMessage::new("assistant", answer));
    messages.push(ChatMessage::new("user", "And of Spain?"));
    let end = model.tokenizer.token(2).context("end token")?;
    let tail = model.tokenizer.encode(&chat.continuation(&messages, 1, Some(&end))?, false)?;
    let whole = model.tokenizer.encode(&chat.render(&messages, true)?, false)?;
    assert_eq!([&golden.ids[..], &golden.greedy, &tail].concat(), whole);
    Ok(())
}

#[test]
fn the_weights_survive_a_directory() -> Result<()> {
    let Some(model) = smollm2("the_weights_survive_a_directory")? else { return Ok(()) };
    let start = Instant::now();
    let weights = model.weights()?;
    let load = start.elapsed();
    let parameters = model.spec.parameters();
    assert_eq!(parameters, 134_515_008);
    let start = Instant::now();
    let digest = weights.digest();
    let fast = start.elapsed();
    let start = Instant::now();
    let sha = weights.sha256();
    let slow = start.elapsed();
    let rate = |t: std::time::Duration| parameters as f64 * 4e-9 / t.as_secs_f64();
    eprintln!("SmolLM2: {load:?} to load; digest {:.1} GB/s, SHA-256 {:.1} GB/s", rate(fast), rate(slow));
    // The file's values, dequantized, in the canonical layout: a record of exactly these bits.
    assert_eq!(sha, "96ed9dad3b044b63e8d7ba6f0cf238e4064115845532550347e006e2c8697f74");
    let dir = tempfile::tempdir()?;
    model.save(dir.path(), &weights, SaveDtype::F32)?;
    let again = ModelFiles::open(dir.path().to_str().context("path")?)?;
    assert_eq!((again.spec.clone(), again.eos.clone(), again.bos), (model.spec.clone(), model.eos.clone(), model.bos));
    assert_eq!(again.weights()?.digest(), digest);
    assert_eq!(again.tokenizer.json(), model.tokenizer.json());
    Ok(())
}
