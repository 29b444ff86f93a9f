//! The files of a run's certificates: what is read from them, and how they are written.
use super::CertError;
use cohort_protocol::WorkerId;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub(super) fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, CertError> {
    let pem = fs::read(path).map_err(|source| io_error(path, source))?;
    CertificateDer::from_pem_slice(&pem).map_err(|e| CertError::Pem { path: path.to_owned(), why: e.to_string() })
}

/// A place's certificate and key.
pub(super) fn read_own(path: &Path) -> Result<(CertificateDer<'static>, PrivatePkcs8KeyDer<'static>), CertError> {
    let pem = fs::read(path).map_err(|source| io_error(path, source))?;
    let bad = |e: rustls::pki_types::pem::Error| CertError::Pem { path: path.to_owned(), why: e.to_string() };
    Ok((CertificateDer::from_pem_slice(&pem).map_err(bad)?, PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(bad)?))
}

pub(super) fn secret_file(dir: &Path, who: WorkerId) -> PathBuf {
    dir.join(format!("{who}.secret"))
}

pub(super) fn read_secret(path: &Path) -> Result<[u8; 32], CertError> {
    let text = fs::read_to_string(path).map_err(|source| io_error(path, source))?;
    let byte = |i: usize| text.get(2 * i..2 * i + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    let bytes: Option<Vec<u8>> = (0..32).map(byte).collect();
    let secret = bytes.and_then(|bytes| bytes.try_into().ok());
    secret.ok_or_else(|| CertError::Pem { path: path.to_owned(), why: "it does not begin with 64 hex digits".into() })
}

pub(super) fn private_dir(dir: &Path) -> Result<(), CertError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| io_error(dir, source))?;
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(|source| io_error(dir, source))
}

/// Whole or not at all, readable by the owner only.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), CertError> {
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let write = || {
        // A left-over of a killed process with our id may have other permissions.
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| io_error(path, source))
}

pub(super) fn pem_block(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for triple in line.chunks(3) {
            let word = triple.iter().fold(0u32, |w, &b| w << 8 | u32::from(b)) << (8 * (3 - triple.len()));
            for i in 0..4 {
                let six = (word >> (18 - 6 * i)) as usize & 63;
                text.push(if i <= triple.len() { char::from(ALPHABET[six]) } else { '=' });
            }
        }
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

pub(super) fn io_error(path: &Path, source: io::Error) -> CertError {
    CertError::Io { path: path.to_owned(), source }
}
