//! The run's own certificate authority. The node agent makes it once per run and issues a certificate to each process
//! it starts, and new ones while the run goes on; nothing outside the run is trusted and nothing inside it works elsewhere.
//!
//! Invariants
//! - **C1** a certificate names one place of one run ([`name_of`]); the peer's claim is checked against it, in both
//!   directions.
//! - **C2** keys are files of mode 0600 in a directory of mode 0700 and are written whole or not at all.
//! - **C3** certificates end after [`LIFETIME`] and are renewed every [`RENEWAL`], by replacing a file: a process shows what
//!   lies in its file at the time of a handshake (`current`), and no connection that stands is touched.
//! - **C4** a certificate is noted in `issued.jsonl` before it leaves the authority (`book`).
//! - **C5** what was certified for a host that was let go opens no door, from then on (`revoked`).
//!
//! Files in the directory: `ca.pem`, `ca.key`, `issued.jsonl`, the folder `revoked`, and for each place (`rollout-0`) `PLACE.pem`, certificate and key in
//! one, and `PLACE.secret`, which outlives renewals. Only the agent needs `ca.key`. A host that joins makes its keys itself and
//! sends the public halves ([`SigningKey`], [`RunAuthority::certify`]): no private key travels.
mod book;
mod current;
mod facts;
mod files;
mod revoked;

pub use book::{Issued, issued};
pub(crate) use current::Current;
pub(crate) use facts::{Facts, minute};
pub(crate) use revoked::Revocations;
pub use revoked::{bearer_name, revoke, revoked};

use files::{io_error, pem_block, private_dir, read_certificate, read_own, read_secret, secret_file, write_private};

use crate::wall;
use cohort_protocol::{RunId, WorkerId};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use ring::hmac;
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::ParsedCertificate;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use thiserror::Error;

/// How long a certificate is valid: a place that was taken away is good for no longer.
pub const LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often every place takes a new one. A host may be out of reach for two of three.
pub const RENEWAL: Duration = Duration::from_secs(10 * 24 * 3600);
/// Clocks of a cluster's nodes may differ by this much.
pub const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// Certificates could not be made, read or used.
#[derive(Debug, Error)]
pub enum CertError {
    /// A file or directory.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that is not what its name says; issue the certificates anew.
    #[error("{path}: not a usable PEM file: {why}; delete the directory to have the certificates issued anew", path = path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A public key of another kind.
    #[error("the public key for {name} is none: {len} bytes, first {first:#04x}; an uncompressed P-256 point has 65, first 0x04")]
    PublicKey {
        /// For whom.
        name: String,
        /// Its length.
        len: usize,
        /// Its first byte.
        first: u8,
    },
    /// The generator refused.
    #[error("cannot issue a certificate for {name}: {source}")]
    Issue {
        /// For whom.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
}

/// The name in the certificate of `who` in `run`.
#[must_use]
pub fn name_of(run: RunId, who: WorkerId) -> String {
    format!("{who}.run-{:016x}.cohort.internal", run.0)
}

/// Makes certificates for the processes of one run.
pub struct RunAuthority {
    run: RunId,
    dir: PathBuf,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// What a process needs to prove who it is and to check its peers.
pub struct Identity {
    run: RunId,
    who: WorkerId,
    authority: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
    /// Stays the same over renewals.
    secret: [u8; 32],
    /// Where it was read from.
    file: Option<PathBuf>,
}

/// A private key that stays where it was made.
pub struct SigningKey(KeyPair);

impl SigningKey {
    /// A new one.
    pub fn generate() -> Result<Self, CertError> {
        KeyPair::generate().map(Self).map_err(|source| CertError::Issue { name: "a new key".into(), source })
    }

    /// The public half: an uncompressed point on P-256, 65 bytes.
    #[must_use]
    pub fn public(&self) -> Vec<u8> {
        self.0.public_key_raw().to_vec()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").finish_non_exhaustive()
    }
}

/// A key whose private half is elsewhere.
struct PublicKey(Vec<u8>);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl RunAuthority {
    /// The authority of `run` in `dir`: the one that is there, or a new one.
    pub fn open_or_create(dir: &Path, run: RunId) -> Result<Self, CertError> {
        let authority = if dir.join("ca.key").exists() { Self::open(dir, run) } else { Self::create(dir, run) }?;
        book::compact(dir)?;
        Ok(authority)
    }

    fn create(dir: &Path, run: RunId) -> Result<Self, CertError> {
        private_dir(dir)?;
        let issue = |source| CertError::Issue { name: authority_name(run), source };
        let key = KeyPair::generate().map_err(issue)?;
        let params = authority_params(run);
        let certificate = params.self_signed(&key).map_err(issue)?;
        write_private(&dir.join("ca.pem"), &certificate.pem())?;
        // The key last: a directory with a key is complete.
        write_private(&dir.join("ca.key"), &key.serialize_pem())?;
        let certificate = certificate.der().clone();
        Ok(Self { run, dir: dir.to_owned(), certificate, issuer: Issuer::new(params, key) })
    }

    fn open(dir: &Path, run: RunId) -> Result<Self, CertError> {
        let certificate = read_certificate(&dir.join("ca.pem"))?;
        let path = dir.join("ca.key");
        let pem = fs::read_to_string(&path).map_err(|source| io_error(&path, source))?;
        let key = KeyPair::from_pem(&pem).map_err(|e| CertError::Pem { path, why: e.to_string() })?;
        Ok(Self { run, dir: dir.to_owned(), certificate, issuer: Issuer::new(authority_params(run), key) })
    }

    /// A certificate for one process, in memory.
    pub fn issue(&self, who: WorkerId) -> Result<Identity, CertError> {
        let now = wall::now();
        self.issue_for(&name_of(self.run, who), who, now - CLOCK_SKEW, now + LIFETIME)
    }

    /// A certificate, DER, for a key that was made elsewhere. That the asker has its private half shows at its first
    /// handshake.
    pub fn certify(&self, who: WorkerId, public_key: &[u8]) -> Result<Vec<u8>, CertError> {
        self.certify_names(who, public_key, vec![name_of(self.run, who)])
    }

    /// As [`Self::certify`], for a worker that host `bearer` runs: what is certified for it ends with that host ([`revoke`]).
    pub fn certify_for(&self, who: WorkerId, bearer: u16, public_key: &[u8]) -> Result<Vec<u8>, CertError> {
        self.certify_names(who, public_key, vec![name_of(self.run, who), bearer_name(self.run, bearer)])
    }

    fn certify_names(&self, who: WorkerId, public_key: &[u8], names: Vec<String>) -> Result<Vec<u8>, CertError> {
        let name = name_of(self.run, who);
        if public_key.len() != 65 || public_key[0] != 4 {
            let first = public_key.first().copied().unwrap_or_default();
            return Err(CertError::PublicKey { name, len: public_key.len(), first });
        }
        let now = wall::now();
        let (from, until) = (now - CLOCK_SKEW, now + LIFETIME);
        let certificate = self.sign(names, &PublicKey(public_key.to_vec()), from, until)?;
        book::note(&self.dir, &Issued::of(who, &certificate, from, until))?;
        Ok(certificate.to_vec())
    }

    /// The authority's certificate, PEM: public.
    #[must_use]
    pub fn pem(&self) -> String {
        pem_block("CERTIFICATE", &self.certificate)
    }

    /// Issues a certificate for a process and leaves it in the directory for [`Identity::load`]. A process that runs with the one
    /// before shows the new one from its next handshake on.
    pub fn issue_files(&self, who: WorkerId) -> Result<(), CertError> {
        self.issue(who)?.save_own(&self.dir)
    }

    pub(crate) fn issue_for(
        &self,
        name: &str,
        who: WorkerId,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Identity, CertError> {
        let key = KeyPair::generate().map_err(|source| CertError::Issue { name: name.to_owned(), source })?;
        let certificate = self.sign(vec![name.to_owned()], &key, not_before, not_after)?;
        book::note(&self.dir, &Issued::of(who, &certificate, not_before, not_after))?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let secret = first_secret(&key);
        Ok(Identity { run: self.run, who, authority: self.certificate.clone(), certificate, key, secret, file: None })
    }

    fn sign(
        &self,
        names: Vec<String>,
        key: &impl PublicKeyData,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<CertificateDer<'static>, CertError> {
        let name = names.first().cloned().unwrap_or_default();
        let issue = |source| CertError::Issue { name: name.clone(), source };
        let mut params = CertificateParams::new(names).map_err(issue)?;
        params.distinguished_name = distinguished_name(&name);
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer).map_err(issue)?.der().clone())
    }
}

impl fmt::Debug for RunAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunAuthority").field("run", &self.run).field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads what [`RunAuthority::issue_files`] left for `who`.
    pub fn load(dir: &Path, run: RunId, who: WorkerId) -> Result<Self, CertError> {
        let authority = read_certificate(&dir.join("ca.pem"))?;
        let file = dir.join(format!("{who}.pem"));
        let (certificate, key) = read_own(&file)?;
        let secret = read_secret(&secret_file(dir, who))?;
        Ok(Self { run, who, authority, certificate, key, secret, file: Some(file) })
    }

    /// A key with the certificate that [`RunAuthority::certify`] made for it; `authority` is the authority's own, PEM.
    pub fn assemble(
        run: RunId,
        who: WorkerId,
        authority: &str,
        certificate: Vec<u8>,
        key: &SigningKey,
    ) -> Result<Self, CertError> {
        let authority = authority_of(authority)?;
        let key = PrivatePkcs8KeyDer::from(key.0.serialize_der());
        let secret = first_secret(&key);
        Ok(Self { run, who, authority, certificate: CertificateDer::from(certificate), key, secret, file: None })
    }

    /// Leaves it in a directory for [`Identity::load`], with the authority's certificate.
    pub fn save(&self, dir: &Path) -> Result<(), CertError> {
        private_dir(dir)?;
        write_private(&dir.join("ca.pem"), &pem_block("CERTIFICATE", &self.authority))?;
        self.save_own(dir)
    }

    fn save_own(&self, dir: &Path) -> Result<(), CertError> {
        let who = self.who;
        let secret = secret_file(dir, who);
        if !secret.exists() {
            let hex: String = self.secret.iter().map(|byte| format!("{byte:02x}")).collect();
            write_private(&secret, &hex)?;
        }
        // One file, so that nobody reads the key of one with the certificate of another.
        let (certificate, key) = (&self.certificate, self.key.secret_pkcs8_der());
        write_private(&dir.join(format!("{who}.pem")), &(pem_block("CERTIFICATE", certificate) + &pem_block("PRIVATE KEY", key)))
    }

    /// Whose it is.
    #[must_use]
    pub fn who(&self) -> WorkerId {
        self.who
    }

    /// The run it is good for.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.run
    }

    pub(crate) fn authority(&self) -> CertificateDer<'static> {
        self.authority.clone()
    }

    /// Trusts another authority than its own issuer.
    #[cfg(test)]
    pub(crate) fn trust(&mut self, authority: CertificateDer<'static>) {
        self.authority = authority;
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone()]
    }

    /// A secret of 32 bytes that a restart of the same place finds again, with whatever certificate.
    pub(crate) fn derive_secret(&self, purpose: &str) -> [u8; 32] {
        keyed(&self.secret, purpose)
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("run", &self.run).field("who", &self.who).finish_non_exhaustive()
    }
}

/// Checks that a certificate (already verified against the authority) is that of `who` in `run`.
pub(crate) fn proves(certificate: &CertificateDer<'_>, run: RunId, who: WorkerId) -> Result<(), String> {
    let name = ServerName::try_from(name_of(run, who)).map_err(|e| e.to_string())?;
    let parsed = ParsedCertificate::try_from(certificate).map_err(|e| e.to_string())?;
    verify_server_name(&parsed, &name).map_err(|e| e.to_string())
}

fn authority_name(run: RunId) -> String {
    format!("authority of run {:016x}", run.0)
}

/// Always the same for a run, so that certificates issued after a restart chain to the authority on the disk.
fn authority_params(run: RunId) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(&authority_name(run));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Of a place that has none yet.
fn first_secret(key: &PrivatePkcs8KeyDer<'_>) -> [u8; 32] {
    keyed(key.secret_pkcs8_der(), "secret of a place")
}

fn keyed(key: &[u8], purpose: &str) -> [u8; 32] {
    let mut secret = [0; 32];
    secret.copy_from_slice(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), purpose.as_bytes()).as_ref());
    secret
}

/// The authority's certificate from its PEM text, as a token carries it.
pub(crate) fn authority_of(pem: &str) -> Result<CertificateDer<'static>, CertError> {
    let path = || PathBuf::from("the token's authority");
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| CertError::Pem { path: path(), why: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_protocol::Role;
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    const RUN: RunId = RunId(0xfeed);
    const WORKER: WorkerId = WorkerId { role: Role::Rollout, index: 3 };

    #[test]
    fn a_certificate_proves_one_place_of_one_run() {
        let dir = tempfile::tempdir().unwrap();
        let identity = RunAuthority::open_or_create(dir.path(), RUN).unwrap().issue(WORKER).unwrap();
        assert_eq!(name_of(RUN, WORKER), "rollout-3.run-000000000000feed.cohort.internal");
        assert_eq!(proves(&identity.certificate, RUN, WORKER), Ok(()));
        proves(&identity.certificate, RunId(1), WORKER).unwrap_err();
        proves(&identity.certificate, RUN, WorkerId { index: 4, ..WORKER }).unwrap_err();
        proves(&identity.certificate, RUN, WorkerId { role: Role::Learner, index: 3 }).unwrap_err();
    }

    #[test]
    fn files_are_private_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("tls");
        let authority = RunAuthority::open_or_create(&dir, RUN).unwrap();
        authority.issue_files(WORKER).unwrap();
        authority.issue_files(WORKER).unwrap();
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        }
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["ca.key", "ca.pem", "issued.jsonl", "rollout-3.pem", "rollout-3.secret"]);
        let loaded = Identity::load(&dir, RUN, WORKER).unwrap();
        assert_eq!(proves(&loaded.certificate, RUN, WORKER), Ok(()));
        assert_eq!(loaded.authority, authority.certificate);
    }

    #[test]
    fn a_renewal_is_another_key_with_the_same_secret_and_the_book_has_the_last_one() {
        let dir = tempfile::tempdir().unwrap();
        let authority = RunAuthority::open_or_create(dir.path(), RUN).unwrap();
        let renew = || {
            authority.issue_files(WORKER).unwrap();
            Identity::load(dir.path(), RUN, WORKER).unwrap()
        };
        let (first, second) = (renew(), renew());
        assert_ne!(first.key.secret_pkcs8_der(), second.key.secret_pkcs8_der());
        assert_eq!(first.derive_secret("x"), second.derive_secret("x"));
        assert_ne!(first.derive_secret("x"), first.derive_secret("y"));
        authority.issue(WorkerId { index: 4, ..WORKER }).unwrap();
        // As a crash leaves it.
        Write::write_all(&mut OpenOptions::new().append(true).open(dir.path().join("issued.jsonl")).unwrap(), b"{\"pl").unwrap();
        let listed = issued(dir.path()).unwrap();
        assert_eq!(listed.iter().map(|i| i.place.index).collect::<Vec<_>>(), [3, 4]);
        let fingerprint = |identity: &Identity| {
            let now = SystemTime::now();
            Issued::of(WORKER, &identity.certificate, now, now).fingerprint
        };
        assert_eq!(listed[0].fingerprint, fingerprint(&second));
        assert_eq!(listed[0].until - listed[0].from, (LIFETIME + CLOCK_SKEW).as_secs());
        RunAuthority::open_or_create(dir.path(), RUN).unwrap();
        assert_eq!(issued(dir.path()).unwrap(), listed);
        assert_eq!(fs::read_to_string(dir.path().join("issued.jsonl")).unwrap().lines().count(), 2, "one line a place");
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Identity::load(dir.path(), RUN, WORKER).unwrap_err();
        assert!(missing.to_string().contains("ca.pem"), "{missing}");
        fs::write(dir.path().join("ca.pem"), "nonsense").unwrap();
        let broken = Identity::load(dir.path(), RUN, WORKER).unwrap_err();
        assert!(matches!(broken, CertError::Pem { .. }), "{broken}");
    }

    #[test]
    fn pem_matches_the_generator() {
        let key = KeyPair::generate().unwrap();
        let squash = |s: &str| s.replace(['\r', '\n'], "");
        assert_eq!(squash(&pem_block("PRIVATE KEY", &key.serialize_der())), squash(&key.serialize_pem()));
    }
}
