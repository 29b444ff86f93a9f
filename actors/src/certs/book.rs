//! What an authority has issued: a line of JSON a certificate, in `issued.jsonl` beside its key. The last line of a place is
//! what the place has.
use super::CertError;
use super::files::{io_error, write_private};
use cohort_protocol::WorkerId;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// Whose.
    pub place: WorkerId,
    /// SHA-256 of the certificate, 64 hex digits.
    pub fingerprint: String,
    /// Valid from, in seconds since the Unix epoch.
    pub from: u64,
    /// Valid until, in seconds since the Unix epoch.
    pub until: u64,
}

impl Issued {
    pub(super) fn of(place: WorkerId, der: &[u8], from: SystemTime, until: SystemTime) -> Self {
        let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut fingerprint = String::with_capacity(64);
        for byte in digest(&SHA256, der).as_ref() {
            // A string takes every write.
            let _ = write!(fingerprint, "{byte:02x}");
        }
        Self { place, fingerprint, from: seconds(from), until: seconds(until) }
    }
}

/// The certificate that each place was given last, in the order of places.
///
/// # Errors
/// [`CertError::Io`] where the file cannot be read. One that is not there says that nothing was issued.
pub fn issued(dir: &Path) -> Result<Vec<Issued>, CertError> {
    let path = file(dir);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(io_error(&path, source)),
    };
    // A line that is none was cut short by a crash, before its certificate left.
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Issued>(line).ok());
    let last: BTreeMap<(u8, u16), Issued> = lines.map(|line| ((line.place.role as u8, line.place.index), line)).collect();
    Ok(last.into_values().collect())
}

/// Notes a certificate, before it leaves.
pub(super) fn note(dir: &Path, issued: &Issued) -> Result<(), CertError> {
    let path = file(dir);
    let append = || {
        let mut line = serde_json::to_vec(issued)?;
        line.push(b'\n');
        OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?.write_all(&line)
    };
    append().map_err(|source| io_error(&path, source))
}

/// Keeps one line a place, so that the file does not grow with every launch.
pub(super) fn compact(dir: &Path) -> Result<(), CertError> {
    let last = issued(dir)?;
    let lines: Result<Vec<String>, _> = last.iter().map(serde_json::to_string).collect();
    let lines = lines.map_err(|error| io_error(&file(dir), error.into()))?;
    let text: String = lines.into_iter().flat_map(|line| [line, "\n".to_owned()]).collect();
    write_private(&file(dir), &text)
}

fn file(dir: &Path) -> PathBuf {
    dir.join("issued.jsonl")
}
