//! `cluster init`: something to start from.
use super::{CliError, Exit};
use crate::config::EMBEDDED;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Folder to write order-desk.toml into, made if need be
    #[arg(default_value = ".")]
    dir: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Write a reward of your own and the configuration that trains with it
    Plugin {
        /// Language of the plug-in
        #[arg(long, value_parser = cohort_reward_workers::scaffold::LANGUAGES)]
        lang: String,
        /// Folder to write into, made if need be
        dir: PathBuf,
    },
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    match &args.what {
        Some(What::Plugin { lang, dir }) => {
            let files = cohort_reward_workers::scaffold::init_plugin(dir, lang)?;
            for file in &files {
                writeln!(out, "wrote {}", file.display())?;
            }
            if let Some(config) = files.last() {
                writeln!(out, "\ntry it: cluster launch {}", config.display())?;
            }
        }
        None => {
            let file = args.dir.join("order-desk.toml");
            write_new(&file, EMBEDDED)?;
            writeln!(out, "wrote {}\n\ntry it: cluster launch {}", file.display(), file.display())?;
            writeln!(out, "all keys: docs/config.md; what they come to: cluster launch {} --dry-run", file.display())?;
        }
    }
    Ok(Exit::Success)
}

fn write_new(file: &Path, text: &str) -> Result<(), CliError> {
    if let Some(dir) = file.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(|e| CliError::io("make", dir, &e))?;
    }
    let mut new = OpenOptions::new().write(true).create_new(true).open(file).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            CliError::new(Exit::Io, format!("{} exists already; choose another folder or move the file away", file.display()))
        }
        _ => CliError::io("write", file, &e),
    })?;
    new.write_all(text.as_bytes()).map_err(|e| CliError::io("write", file, &e))
}
