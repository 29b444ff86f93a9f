//! Relative paths, made absolute where they were said (K4).
use super::origin::Origin;
use super::tree::{Node, Value};
use std::path::{Path, PathBuf};

/// Keys that hold a path.
const PATHS: [&[&str]; 6] = [
    &["model", "path"],
    &["model", "lora", "adapter"],
    &["agent", "constraint", "file"],
    &["environment", "path"],
    &["environment", "heldout_path"],
    &["cluster", "run_root"],
];

/// Makes them absolute. URLs (`builtin://`, `hf://`, `stub://`, `random://`) stay as they are; what nobody said too.
pub(super) fn make_absolute(tree: &mut Node) {
    for keys in PATHS {
        let path: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        let Some(node) = tree.get_mut(&path) else { continue };
        let Value::String(path) = &node.value else { continue };
        // `run_root` is where the user works, not where the configuration lies.
        let folder = if keys.last() == Some(&"run_root") { None } else { node.origin.folder() };
        if let Some(absolute) = absolute(path, folder, &node.origin) {
            node.value = Value::String(absolute);
        }
    }
}

fn absolute(path: &str, folder: Option<&PathBuf>, origin: &Origin) -> Option<String> {
    let said = !matches!(origin, Origin::Default | Origin::Profile(_));
    if path.is_empty() || path.contains("://") || Path::new(path).is_absolute() || !said {
        return None;
    }
    let joined = folder.map_or_else(|| PathBuf::from(path), |folder| folder.join(path));
    // Lexical: the file may not exist yet, and its own reader names it if it does not.
    std::path::absolute(joined).ok().map(|p| p.display().to_string())
}
