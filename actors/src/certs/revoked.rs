//! Hosts that were let go. What was certified for them, for their own places and for the workers that they ran, opens no door any more.
//!
//! Invariants
//! - **V1** the set only grows, and the place of a host is never given twice: a revocation needs no end, no clock and no order.
//! - **V2** a worker's certificate names the host that it was made for ([`bearer_name`]). A place that another host has after it is
//!   another certificate.
//! - **V3** it is on the disk before anybody is told: a file for each host in the folder `revoked` beside the certificates, so that
//!   several processes may add to it at once. Where it is there and cannot be read, nobody is let in.
use super::files::{io_error, private_dir};
use super::{CertError, Identity, name_of};
use cohort_protocol::{Role, RunId, WorkerId};
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The second name in the certificate of a worker that host `bearer` runs.
#[must_use]
pub fn bearer_name(run: RunId, bearer: u16) -> String {
    format!("of-{}", name_of(run, node(bearer)))
}

fn node(index: u16) -> WorkerId {
    WorkerId { role: Role::Node, index }
}

/// Takes away what was certified for a host. `false`: it was already.
///
/// # Errors
/// [`CertError::Io`].
pub fn revoke(dir: &Path, host: u16) -> Result<bool, CertError> {
    let folder = folder(dir);
    let path = folder.join(node(host).to_string());
    if path.exists() {
        return Ok(false);
    }
    private_dir(&folder)?;
    let written = File::create(&path).and_then(|file| file.sync_all()).and_then(|()| File::open(&folder)?.sync_all());
    written.map(|()| true).map_err(|source| io_error(&path, source))
}

/// The hosts whose certificates were taken away.
///
/// # Errors
/// [`CertError::Io`] where the folder is there and cannot be read.
pub fn revoked(dir: &Path) -> Result<BTreeSet<u16>, CertError> {
    let folder = folder(dir);
    let listed = || match fs::read_dir(&folder) {
        Ok(entries) => {
            let host = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("node-")?.parse().ok();
            entries.filter_map(|entry| entry.map(host).transpose()).collect()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    };
    listed().map_err(|source| io_error(&folder, source))
}

fn folder(dir: &Path) -> PathBuf {
    dir.join("revoked")
}

/// What a process knows of revocations: what the folder beside its own certificate says, read anew each time.
#[derive(Debug, Clone)]
pub(crate) struct Revocations {
    run: RunId,
    dir: Option<PathBuf>,
}

impl Revocations {
    /// Those that the process of this identity goes by; none where it was not read from a file.
    pub(crate) fn of(identity: &Identity) -> Self {
        Self { run: identity.run, dir: identity.file.as_deref().and_then(Path::parent).map(Path::to_owned) }
    }

    /// A process that knows of none.
    pub(crate) fn none(run: RunId) -> Self {
        Self { run, dir: None }
    }

    /// The run.
    pub(crate) fn run(&self) -> RunId {
        self.run
    }

    /// Whether there ever may be one.
    pub(crate) fn may_come(&self) -> bool {
        self.dir.is_some()
    }

    /// Whether a certificate (already verified against the authority) still opens doors.
    ///
    /// # Errors
    /// The reason and the remedy, for both ends.
    pub(crate) fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), String> {
        let Some(dir) = &self.dir else { return Ok(()) };
        // V3.
        let hosts = revoked(dir).map_err(|error| format!("which certificates are revoked cannot be read: {error}"))?;
        match hosts.into_iter().find(|host| is_of(certificate, self.run, *host)) {
            None => Ok(()),
            Some(host) => Err(format!(
                "{} was drained, its certificates are revoked, and those of its workers: join anew with a token of `cluster token RUN` \
                 and another --dir",
                node(host)
            )),
        }
    }
}

/// Whether a certificate was made for a host: for its own place, or for a worker that it runs.
fn is_of(certificate: &CertificateDer<'_>, run: RunId, host: u16) -> bool {
    let Ok(parsed) = ParsedCertificate::try_from(certificate) else { return false };
    [name_of(run, node(host)), bearer_name(run, host)].into_iter().any(|name| {
        let name = ServerName::try_from(name);
        name.is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::{RunAuthority, SigningKey};

    const RUN: RunId = RunId(0xfeed);

    #[test]
    fn a_host_loses_its_own_certificate_and_its_workers_and_nobody_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let authority = RunAuthority::open_or_create(dir.path(), RUN).unwrap();
        let worker = WorkerId { role: Role::Rollout, index: 3 };
        let made = |who, host| {
            let der = authority.certify_for(who, host, &SigningKey::generate().unwrap().public()).unwrap();
            CertificateDer::from(der)
        };
        let (host_1, host_2) = (made(node(1), 1), made(node(2), 2));
        let (worker_of_1, worker_of_2) = (made(worker, 1), made(worker, 2));
        let own = CertificateDer::from(authority.issue(worker).unwrap().chain()[0].to_vec());
        authority.issue_files(node(0)).unwrap();
        let revocations = Revocations::of(&Identity::load(dir.path(), RUN, node(0)).unwrap());
        let refused = || {
            let all = [&host_1, &worker_of_1, &host_2, &worker_of_2, &own];
            all.map(|certificate| revocations.check(certificate).is_err())
        };
        assert_eq!(refused(), [false; 5]);
        assert!(revoke(dir.path(), 1).unwrap());
        assert_eq!(refused(), [true, true, false, false, false], "the same place of another host is another certificate (V2)");
        assert!(!revoke(dir.path(), 1).unwrap() && revoke(dir.path(), 2).unwrap());
        assert_eq!(refused(), [true, true, true, true, false]);
        assert_eq!(revoked(dir.path()).unwrap(), BTreeSet::from([1, 2]), "and so says the next process");
        let why = revocations.check(&worker_of_1).unwrap_err();
        assert!(["node-1", "revoked", "cluster token", "--dir"].iter().all(|part| why.contains(part)), "{why}");
        // A certificate of an earlier renewal is no better.
        assert!(revocations.check(&made(worker, 1)).is_err());
        Revocations::none(RUN).check(&worker_of_1).unwrap();
    }

    #[test]
    fn a_list_that_cannot_be_read_lets_nobody_in() {
        let dir = tempfile::tempdir().unwrap();
        let authority = RunAuthority::open_or_create(dir.path(), RUN).unwrap();
        authority.issue_files(node(0)).unwrap();
        let identity = Identity::load(dir.path(), RUN, node(0)).unwrap();
        fs::write(dir.path().join("revoked"), "no folder").unwrap();
        let why = Revocations::of(&identity).check(&identity.chain()[0]).unwrap_err();
        assert!(why.contains("revoked"), "{why}");
        assert!(revoke(dir.path(), 1).is_err());
    }
}
