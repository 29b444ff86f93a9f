//! Models that are part of the binary.

/// The files of an embedded model, as they are in a Hugging Face directory.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedModel {
    /// config.json.
    pub config: &'static [u8],
    /// model.safetensors.
    pub weights: &'static [u8],
    /// tokenizer.json.
    pub tokenizer: &'static [u8],
    /// tokenizer_config.json, with the chat template.
    pub tokenizer_config: &'static [u8],
}

/// The embedded model of a name.
#[must_use]
pub fn embedded(name: &str) -> Option<EmbeddedModel> {
    match name {
        "order-desk" => order_desk(),
        _ => None,
    }
}

#[cfg(has_order_desk)]
#[expect(clippy::unnecessary_wraps, reason = "the other build has no files to give")]
fn order_desk() -> Option<EmbeddedModel> {
    Some(EmbeddedModel {
        config: include_bytes!("../assets/order-desk/config.json"),
        weights: include_bytes!("../assets/order-desk/model.safetensors"),
        tokenizer: include_bytes!("../assets/order-desk/tokenizer.json"),
        tokenizer_config: include_bytes!("../assets/order-desk/tokenizer_config.json"),
    })
}

#[cfg(not(has_order_desk))]
const fn order_desk() -> Option<EmbeddedModel> {
    None
}
