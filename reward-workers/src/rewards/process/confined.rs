//! From a part's keys to what its child may do, and from what went wrong to the key that helps.
use super::ProcessConfig;
use cohort_actors::confine::{self, Confinement};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What a confined child may do, apart from the program, which is looked up at each start.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    confiner: confine::Confiner,
    network: bool,
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    pass_env: Vec<String>,
    limits: confine::Limits,
}

impl Terms {
    /// Checks the keys; `None` for a child that is not confined.
    pub(super) fn new(
        config: &ProcessConfig,
        working_dir: &Path,
        memory: Option<u64>,
        confiner: &confine::Confiner,
    ) -> Result<Option<Self>, String> {
        if !config.confine {
            return Self::none(config).map(|()| None);
        }
        if let Some(missing) = confine::support().missing() {
            return Err(format!("{missing}. Use a newer kernel; or set confine = false for a program that you trust"));
        }
        if config.processes == 0 {
            return Err("processes = 0: the program itself is one, and its threads count".to_owned());
        }
        let scratch = config.scratch_mib.checked_mul(1 << 20).filter(|bytes| *bytes > 0);
        let scratch = scratch.ok_or_else(|| format!("scratch_mib = {}: from 1 to what a disk can hold", config.scratch_mib))?;
        let home = std::env::var_os("HOME").and_then(|home| PathBuf::from(home).canonicalize().ok());
        let folder = working_dir.canonicalize().map_err(|e| format!("working_dir = {}: {e}", working_dir.display()))?;
        if home.is_some_and(|home| home.starts_with(&folder)) || folder == Path::new("/") {
            return Err(format!(
                "working_dir = {}: a confined program reads its folder, and this is or holds the home folder; give it one of its own",
                working_dir.display()
            ));
        }
        Ok(Some(Self {
            confiner: confiner.clone(),
            network: config.network,
            read: absolute("read", &config.read, working_dir)?,
            write: absolute("write", &config.write, working_dir)?,
            pass_env: config.pass_env.clone(),
            limits: confine::Limits { processes: config.processes, memory, scratch },
        }))
    }

    /// Keys that would silently do nothing.
    fn none(config: &ProcessConfig) -> Result<(), String> {
        let plain = ProcessConfig::new([""]);
        let set = [
            ("network", config.network),
            ("read", !config.read.is_empty()),
            ("write", !config.write.is_empty()),
            ("pass_env", !config.pass_env.is_empty()),
            ("processes", config.processes != plain.processes),
            ("scratch_mib", config.scratch_mib != plain.scratch_mib),
        ];
        match set.into_iter().find(|(_, set)| *set) {
            Some((key, _)) => Err(format!("{key} says what a confined program may do, but confine = false: remove one of them")),
            None => Ok(()),
        }
    }

    /// The command that runs the program confined, streams and folder apart.
    pub(super) fn command(&self, program: PathBuf, args: &[String], working_dir: &Path) -> Result<std::process::Command, String> {
        let mut confinement = Confinement::new(program, args.to_vec(), working_dir.to_owned(), self.limits);
        (confinement.read, confinement.write) = (self.read.clone(), self.write.clone());
        confinement.network = self.network;
        let mut command = self.confiner.command(&confinement)?;
        let passed = self.pass_env.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
        command.envs(passed);
        Ok(command)
    }
}

fn absolute(key: &str, paths: &[PathBuf], folder: &Path) -> Result<Vec<PathBuf>, String> {
    let one = |path: &PathBuf| match folder.join(path) {
        path if path.exists() => Ok(path),
        path => Err(format!("{key} = [{:?}]: there is no such file or folder", path.display().to_string())),
    };
    paths.iter().map(one).collect()
}

/// The limits, for errors.
#[derive(Debug)]
pub(super) struct Limits {
    memory_mib: u64,
    processes: u32,
    scratch_mib: u64,
    confined: bool,
}

impl Limits {
    pub(super) fn of(config: &ProcessConfig) -> Self {
        let &ProcessConfig { memory_mib, processes, scratch_mib, confine: confined, .. } = config;
        Self { memory_mib, processes, scratch_mib, confined }
    }

    /// Adds the key that an error is about.
    pub(super) fn explain(&self, error: &mut String) {
        let says = |words: &[&str]| words.iter().any(|word| error.contains(word));
        let key = if self.memory_mib > 0 && says(&["MemoryError", "MiB of memory"]) {
            format!("; its memory cap is memory_mib = {}", self.memory_mib)
        } else if self.confined && says(&["processes and threads at once"]) {
            format!("; its limit is processes = {}", self.processes)
        } else if self.confined && says(&["in its scratch folder", "File too large"]) {
            format!("; its limit is scratch_mib = {}", self.scratch_mib)
        } else if self.confined && says(&["Permission denied", "Operation not permitted", "PermissionError"]) {
            "; it runs confined: read = [..], write = [..] and network = true allow more, confine = false everything".to_owned()
        } else {
            return;
        };
        error.push_str(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse(folder: &Path, change: impl FnOnce(&mut ProcessConfig)) -> String {
        let mut config = ProcessConfig::new(["x"]);
        change(&mut config);
        Terms::new(&config, folder, None, &confine::Confiner::default()).err().unwrap_or_default()
    }

    #[test]
    fn keys_of_confinement_mean_nothing_without_it() {
        let folder = tempfile::tempdir().unwrap();
        let open = |change: fn(&mut ProcessConfig)| {
            refuse(folder.path(), |c| {
                c.confine = false;
                change(c);
            })
        };
        assert_eq!(open(|_| {}), "");
        assert!(open(|c| c.network = true).starts_with("network says"));
        assert!(open(|c| c.processes = 3).contains("confine = false: remove one of them"));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_key() {
        if confine::support().missing().is_some() {
            eprintln!("SKIPPED: keys of confinement: this kernel has none");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(refuse(folder.path(), |_| {}), "");
        assert!(refuse(folder.path(), |c| c.read = vec!["none".into()]).contains("read = ["));
        assert!(refuse(folder.path(), |c| c.processes = 0).starts_with("processes = 0"));
        assert!(refuse(folder.path(), |c| c.scratch_mib = 0).starts_with("scratch_mib = 0"));
        assert!(refuse(Path::new("/"), |_| {}).contains("give it one of its own"));
        if let Some(home) = std::env::var_os("HOME").filter(|home| Path::new(home).is_dir()) {
            assert!(refuse(Path::new(&home), |_| {}).contains("the home folder"));
        }
    }

    #[test]
    fn an_error_names_the_key_that_it_is_about() {
        let limits = Limits::of(&ProcessConfig::new(["x"]));
        for (error, key) in [
            ("MemoryError", "memory_mib = 4096"),
            ("confined: more than 256 processes and threads at once", "processes = 256"),
            ("more than 256 MiB in its scratch folder", "scratch_mib = 256"),
            ("PermissionError: [Errno 13] Permission denied", "read = [..]"),
        ] {
            let mut told = error.to_owned();
            limits.explain(&mut told);
            assert!(told.contains(key), "{told}");
        }
        let mut other = "KeyError".to_owned();
        limits.explain(&mut other);
        assert_eq!(other, "KeyError");
    }
}
