//! `docs/cli.md`: what scripts may rely on, then the help of every subcommand, generated.
use super::Cli;
use clap::CommandFactory;

const HEAD: &str = include_str!("docs.md");

/// `docs/cli.md`, whole.
#[must_use]
pub fn docs() -> String {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut out = HEAD.to_owned();
    for sub in command.get_subcommands_mut().filter(|s| s.get_name() != "help" && !s.is_hide_set()) {
        let name = sub.get_name().to_owned();
        let help = sub.render_help().to_string();
        let help: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
        out.push_str(&format!("\n### cluster {name}\n\n```text\n{}\n```\n", help.join("\n")));
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_reference_is_the_generated_one() {
        let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md");
        let committed = std::fs::read_to_string(committed).unwrap_or_default();
        assert!(committed == super::docs(), "docs/cli.md is stale: run `cargo xtask docs`");
    }
}
