//! `cluster init plugin --lang python DIR`: a reward of the user's own, with the one config that trains with it.
//!
//! Written: `my_reward.py` (the reward), `cohort_reward.py` (the SDK) and `my_reward.toml`, which launches as it is.
use crate::RewardError;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The Python SDK, one file.
pub const PYTHON_SDK: &str = include_str!("../../sdk/python/cohort_reward.py");
const PYTHON_REWARD: &str = include_str!("../../examples/plugins/python/my_reward.py");
const PYTHON_CONFIG: &str = include_str!("../../examples/plugins/python/my_reward.toml");

/// Languages that there is a scaffold for.
pub const LANGUAGES: [&str; 1] = ["python"];

/// Writes a plug-in into `dir`, which is made if need be. Returns the files, the config last.
///
/// Errors: [`RewardError::Config`] for an unknown language, [`RewardError::File`] where a file exists already (nothing
/// is written then) or cannot be written.
pub fn init_plugin(dir: &Path, lang: &str) -> Result<Vec<PathBuf>, RewardError> {
    let files = match lang {
        "python" => [("my_reward.py", PYTHON_REWARD), ("cohort_reward.py", PYTHON_SDK), ("my_reward.toml", PYTHON_CONFIG)],
        other => {
            let why = format!("{other:?} is not supported; there is {}", LANGUAGES.join(", "));
            return Err(RewardError::config("--lang", why));
        }
    };
    let error = |what, path: &Path, why: String| RewardError::File { what, path: path.display().to_string(), why };
    let files: Vec<(PathBuf, &str)> = files.into_iter().map(|(name, text)| (dir.join(name), text)).collect();
    if let Some((taken, _)) = files.iter().find(|(path, _)| path.symlink_metadata().is_ok()) {
        return Err(error("write", taken, "it exists already; choose another folder or move the file away".to_owned()));
    }
    fs::create_dir_all(dir).map_err(|e| error("make", dir, e.to_string()))?;
    for (path, text) in &files {
        // Refuses a file that appeared since the look above.
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|e| error("write", path, e.to_string()))?;
    }
    Ok(files.into_iter().map(|(path, _)| path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_three_files_and_overwrites_none() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("new/plugin");
        let files = init_plugin(&target, "python").unwrap();
        let names: Vec<_> = files.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["my_reward.py", "cohort_reward.py", "my_reward.toml"]);
        fs::remove_file(&files[0]).unwrap();
        let error = init_plugin(&target, "python").unwrap_err().to_string();
        assert!(error.contains("cohort_reward.py") && error.contains("exists already"), "{error}");
        assert!(!files[0].exists(), "nothing is written where a file is in the way");
        assert!(init_plugin(&target, "cobol").unwrap_err().to_string().contains("there is python"));
    }
}
