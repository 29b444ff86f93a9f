//! Where log lines go: a file of the launch in the run directory, or the stderr of a worker process, which its agent has
//! redirected to one.
use crate::config::{LogFormat, LoggingConfig};
use crate::ledger::RunPaths;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Logs of this launch go to `logs/attempt-N/cluster.log`; gives its path.
///
/// A program that logs already (a test, an embedding program) keeps its own subscriber.
pub fn to_run(config: &LoggingConfig, paths: &RunPaths) -> io::Result<PathBuf> {
    let mut attempt = 1;
    let folder = loop {
        let folder = paths.logs(attempt);
        match std::fs::create_dir_all(paths.root().join("logs")).and_then(|()| std::fs::create_dir(&folder)) {
            Ok(()) => break folder,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
            Err(error) => return Err(error),
        }
    };
    let path = folder.join("cluster.log");
    let file: File = OpenOptions::new().append(true).create(true).open(&path)?;
    start(config, Mutex::new(file));
    Ok(path)
}

/// Logs of this process go to stderr.
pub fn to_stderr(config: &LoggingConfig) {
    start(config, io::stderr);
}

fn start<W>(config: &LoggingConfig, writer: W)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // `Config::check` has refused filters that cannot be read.
    let filter = EnvFilter::try_new(&config.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    // A line that a full disk refuses is lost: saying so on stderr, which may be the same file, would end the process.
    let lines = lines.log_internal_errors(false);
    let begun = match config.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    // An error says that a subscriber is there already; it stays.
    drop(begun);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_launch_has_a_folder_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let paths = RunPaths::new(dir.path());
        let first = to_run(&LoggingConfig::default(), &paths).unwrap();
        let second = to_run(&LoggingConfig::default(), &paths).unwrap();
        assert_eq!(first, paths.logs(1).join("cluster.log"));
        assert_eq!(second, paths.logs(2).join("cluster.log"));
    }
}
