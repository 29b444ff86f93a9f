//! `cargo xtask docs`: pages that are generated from the code. Tests fail when a committed one is stale.
use anyhow::{Context, Result};
use std::path::Path;

pub(crate) fn run() -> Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    for (name, text) in [("config.md", cohort_cluster::config::docs()), ("cli.md", cohort_cluster::cli::docs())] {
        let path = docs.join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
