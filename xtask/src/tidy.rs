//! `cargo xtask tidy`: the rules of the house that a compiler does not check. Each rule is one function; all run, every
//! breach is printed with its place, any breach fails.
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which crates of the workspace each crate may depend on: the four floors, every arrow down.
const MAY_DEPEND: &[(&str, &[&str])] = &[
    ("cohort-protocol", &[]),
    ("cohort-kernels", &[]),
    ("cohort-model", &["cohort-kernels"]),
    ("cohort-engine", &["cohort-kernels", "cohort-model"]),
    ("cohort-actors", &["cohort-protocol"]),
    ("cohort-rollout", &["cohort-protocol", "cohort-actors", "cohort-kernels", "cohort-model", "cohort-engine"]),
    ("cohort-reward-workers", &["cohort-protocol", "cohort-actors", "cohort-kernels", "cohort-model", "cohort-engine"]),
    ("cohort-learner", &["cohort-protocol", "cohort-actors", "cohort-kernels", "cohort-model", "cohort-engine"]),
    (
        "cohort-cluster",
        &[
            "cohort-protocol",
            "cohort-actors",
            "cohort-kernels",
            "cohort-model",
            "cohort-engine",
            "cohort-rollout",
            "cohort-reward-workers",
            "cohort-learner",
        ],
    ),
];

/// Code lines past which a file is looked at, and past which it fails.
const WARN_LINES: usize = 400;
const FAIL_LINES: usize = 800;

/// File names that say nothing about what is inside.
const NAMELESS: &[&str] = &["utils.rs", "util.rs", "common.rs", "helpers.rs", "misc.rs"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

struct Report {
    breaches: Vec<String>,
    warnings: Vec<String>,
}

/// Runs every rule over the checkout that this binary was built from.
pub(crate) fn run() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask stands in the workspace")?.to_path_buf();
    let mut report = Report { breaches: Vec::new(), warnings: Vec::new() };
    dependencies(&root, &mut report)?;
    let files = rust_files(&root)?;
    for file in &files {
        let text = std::fs::read_to_string(root.join(file)).with_context(|| file.display().to_string())?;
        file_rules(file, &text, &mut report);
    }
    rooms(&root, &mut report);
    for warning in &report.warnings {
        eprintln!("warning: {warning}");
    }
    for breach in &report.breaches {
        eprintln!("error: {breach}");
    }
    if report.breaches.is_empty() {
        println!("tidy: {} files, 0 breaches, {} warnings", files.len(), report.warnings.len());
        return Ok(());
    }
    bail!("{} breaches of the rules in STYLE", report.breaches.len())
}

fn dependencies(root: &Path, report: &mut Report) -> Result<()> {
    let out = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root)
        .output()
        .context("cargo metadata")?;
    let metadata: Metadata = serde_json::from_slice(&out.stdout).context("output of cargo metadata")?;
    let allowed: BTreeMap<&str, &[&str]> = MAY_DEPEND.iter().copied().collect();
    for package in metadata.packages.iter().filter(|p| metadata.workspace_members.contains(&p.id)) {
        let Some(may) = allowed.get(package.name.as_str()) else { continue };
        for dependency in package.dependencies.iter().filter(|d| d.kind.as_deref() != Some("dev")) {
            if dependency.name.starts_with("cohort-") && !may.contains(&dependency.name.as_str()) {
                report
                    .breaches
                    .push(format!("{} depends on {}: arrows go down one floor or more", package.name, dependency.name));
            }
        }
    }
    Ok(())
}

fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(root)
        .output()
        .context("git ls-files")?;
    let text = String::from_utf8(out.stdout).context("file names")?;
    Ok(text.lines().map(PathBuf::from).filter(|p| root.join(p).exists()).collect())
}

fn file_rules(file: &Path, text: &str, report: &mut Report) {
    let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let place = file.display();
    if NAMELESS.contains(&name) {
        report.breaches.push(format!("{place}: a file is named for what is inside"));
    }
    let code = text.lines().filter(|l| !l.trim().is_empty() && !l.trim_start().starts_with("//")).count();
    if code > FAIL_LINES {
        report.breaches.push(format!("{place}: {code} code lines, at most {FAIL_LINES}"));
    } else if code > WARN_LINES {
        report.warnings.push(format!("{place}: {code} code lines; is there a second idea in it?"));
    }
    let path = file.to_string_lossy();
    if path.starts_with("xtask/") {
        return;
    }
    for (number, line) in text.lines().enumerate() {
        let at = number + 1;
        let code = line.trim_start();
        if code.starts_with("//") {
            continue;
        }
        if code.contains("feature = \"cuda\"") && !(path.starts_with("kernels/") || path.starts_with("engine/")) {
            report.breaches.push(format!("{place}:{at}: cfg(feature = \"cuda\") stands only in kernels/ and engine/"));
        }
        if (code.contains("unsafe {") || code.contains("unsafe fn")) && !unsafe_allowed(&path) {
            report.breaches.push(format!("{place}:{at}: unsafe stands only in kernels/, the mapping file and process glue"));
        }
        if code.contains("SystemTime::now") && !wall_clock_allowed(&path, text, number) {
            report
                .breaches
                .push(format!("{place}:{at}: only actors/src/wall.rs reads the wall clock; deadlines are of the monotonic one"));
        }
        if code.contains("todo!(") || code.contains("unimplemented!(") {
            report.breaches.push(format!("{place}:{at}: unfinished code"));
        }
        if code.contains("bincode::") && path.as_ref() != "protocol/src/codec.rs" && !code.contains("bincode::{Decode, Encode}") {
            report.breaches.push(format!("{place}:{at}: only protocol/src/codec.rs knows the codec"));
        }
    }
}

/// The clock's one home, and tests: whole files of them, and what stands behind `mod tests` in others.
fn wall_clock_allowed(path: &str, text: &str, line: usize) -> bool {
    let is_test = path.split('/').any(|part| part == "tests" || part == "tests.rs");
    let tests_begin = text.lines().position(|line| line.starts_with("mod tests {"));
    path == "actors/src/wall.rs" || is_test || tests_begin.is_some_and(|begin| line > begin)
}

fn unsafe_allowed(path: &str) -> bool {
    path.starts_with("kernels/")
}

/// Each role crate has the same five rooms.
fn rooms(root: &Path, report: &mut Report) {
    for role in ["rollout", "reward-workers", "learner"] {
        for room in ["lib.rs", "config.rs", "actor.rs", "state.rs", "error.rs"] {
            let path = root.join(role).join("src").join(room);
            if !path.exists() {
                report.breaches.push(format!("{role}/src/{room} is missing: role crates have the same five rooms"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaches(path: &str, text: &str) -> Vec<String> {
        let mut report = Report { breaches: Vec::new(), warnings: Vec::new() };
        file_rules(Path::new(path), text, &mut report);
        report.breaches
    }

    #[test]
    fn each_rule_can_fail() {
        assert_eq!(breaches("learner/src/utils.rs", "").len(), 1);
        assert_eq!(breaches("learner/src/a.rs", &"let a = 1;\n".repeat(FAIL_LINES + 1)).len(), 1);
        assert_eq!(breaches("learner/src/a.rs", "#[cfg(feature = \"cuda\")]").len(), 1);
        assert_eq!(breaches("learner/src/a.rs", "let x = unsafe { y() };").len(), 1);
        assert_eq!(breaches("learner/src/a.rs", "todo!()").len(), 1);
        assert_eq!(breaches("cluster/src/a.rs", "let at = SystemTime::now();").len(), 1);
        assert_eq!(breaches("actors/src/wall.rs", "let at = SystemTime::now();").len(), 0);
        assert_eq!(breaches("cluster/src/a.rs", "mod tests {\n    let at = SystemTime::now();\n}").len(), 0);
        assert_eq!(breaches("kernels/src/a.rs", "let x = unsafe { y() };").len(), 0);
    }
}
