//! Looks whether the embedded model's files are in the tree; without them the crate builds and says so when asked.
use std::path::Path;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(has_order_desk)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=assets/order-desk");
    let files = ["model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"];
    if files.iter().all(|file| Path::new("assets/order-desk").join(file).is_file()) {
        println!("cargo::rustc-cfg=has_order_desk");
    }
}
