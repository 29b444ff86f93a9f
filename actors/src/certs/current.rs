//! The certificate that a process shows: the one that lies in its file at the time of the handshake. Whoever renews it replaces
//! the file; connections that stand are not touched.
use super::facts::Facts;
use super::files::read_own;
use super::{CertError, Identity};
use cohort_protocol::WorkerId;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{Error, SignatureScheme};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// What tells a file from the one before it in its place.
type Stamp = (u64, i64, i64);

/// Gives the present certificate to every handshake.
pub(crate) struct Current {
    who: WorkerId,
    provider: Arc<CryptoProvider>,
    file: Option<PathBuf>,
    held: Mutex<Held>,
}

struct Held {
    key: Arc<CertifiedKey>,
    stamp: Option<Stamp>,
}

impl Current {
    /// Begins with `identity`; follows the file that it was read from, if it was.
    pub(crate) fn of(identity: &Identity, provider: Arc<CryptoProvider>) -> Result<Arc<Self>, Error> {
        let key = Arc::new(CertifiedKey::from_der(identity.chain(), identity.key(), &provider)?);
        let file = identity.file.clone();
        // The file may have been replaced since: the first handshake looks.
        Ok(Arc::new(Self { who: identity.who, provider, file, held: Mutex::new(Held { key, stamp: None }) }))
    }

    /// What the certificate that is shown now says of itself.
    pub(crate) fn facts(&self) -> Option<Facts> {
        Facts::read(self.key().cert.first()?)
    }

    fn key(&self) -> Arc<CertifiedKey> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &self.file
            && let Some(stamp) = stamp(file)
            && held.stamp != Some(stamp)
        {
            held.stamp = Some(stamp);
            match self.read(file) {
                Ok(key) => held.key = Arc::new(key),
                // What it has may still be good.
                Err(why) => tracing::warn!(target: "cohort::transport", who = %self.who, why, "certificate_not_read"),
            }
        }
        held.key.clone()
    }

    fn read(&self, file: &Path) -> Result<CertifiedKey, String> {
        let (certificate, key) = read_own(file).map_err(|error: CertError| error.to_string())?;
        let read = CertifiedKey::from_der(vec![certificate], key.into(), &self.provider);
        read.map_err(|error| format!("{}: {error}", file.display()))
    }
}

/// Files are replaced whole, by another one.
fn stamp(file: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current").field("who", &self.who).field("file", &self.file).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key())
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.key())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
