//! A chat template, which comes with a model's files, over a short conversation.
#![no_main]
use cohort_model::chat::ChatContext;
use cohort_model::{ChatMessage, ChatTemplate};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &str| {
    let tools = serde_json::json!([{ "name": "add", "parameters": { "a": 1 } }]);
    let context = ChatContext { bos_token: Some("<s>".into()), eos_token: None, tools: Some(tools) };
    let Ok(template) = ChatTemplate::new(source, context) else { return };
    let messages = [ChatMessage::new("system", "a"), ChatMessage::new("assistant", "b"), ChatMessage::new("user", "c\nd")];
    for prompt in [true, false] {
        // Refused or rendered, within its limits.
        drop(template.render(&messages, prompt));
    }
    drop(template.continuation(&messages, 1, None));
});
