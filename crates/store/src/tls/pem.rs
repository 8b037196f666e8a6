//! Certificates and keys out of PEM files, and messages about those files.

use std::path::PathBuf;

use p521::pkcs8::spki::SubjectPublicKeyInfoRef;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Pem, TlsError};

/// A flag or key, and the file that it names, for messages.
pub(super) struct Origin(pub &'static str, pub PathBuf);

impl Origin {
    pub(super) fn problem(&self, problem: String) -> TlsError {
        TlsError {
            flag: self.0,
            path: self.1.clone(),
            problem,
        }
    }
}

/// A flag or key, and what it holds.
#[derive(Clone, Copy)]
pub(super) struct Source<'a>(pub &'static str, pub &'a Pem);

impl Source<'_> {
    pub(super) fn problem(self, problem: String) -> TlsError {
        Origin(self.0, self.1.path().into()).problem(problem)
    }

    fn read(self) -> Result<Vec<u8>, TlsError> {
        match self.1 {
            Pem::File(path) => std::fs::read(path).map_err(|e| self.problem(e.to_string())),
            Pem::Inline(pem, _) => Ok(pem.to_vec()),
        }
    }
}

/// What a file of certificates holds.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    pub usable: Vec<CertificateDer<'static>>,
    /// Blocks that cannot be read: the others are used all the same.
    pub skipped: Vec<String>,
}

const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
/// What old programs of OpenSSL's write.
const OLD_LABEL: &str = "X509 CERTIFICATE-----";

/// Reads all certificates of a file.
///
/// # Errors
/// The file cannot be read, or there is no certificate in it that can.
pub(super) fn certificates(source: Source<'_>) -> Result<Certificates, TlsError> {
    let mut pem = source.read()?;
    if let Ok(text) = std::str::from_utf8(&pem)
        && text.contains(OLD_LABEL)
    {
        pem = text.replace(OLD_LABEL, "CERTIFICATE-----").into_bytes();
    }
    let mut found = Certificates::default();
    let starts: Vec<usize> = pem
        .windows(BEGIN.len())
        .enumerate()
        .filter(|(_, window)| *window == BEGIN)
        .map(|(at, _)| at)
        .collect();
    for (i, start) in starts.iter().enumerate() {
        // A block without an end must not take the next one with it.
        let end = starts.get(i + 1).copied().unwrap_or(pem.len());
        match CertificateDer::from_pem_slice(&pem[*start..end]) {
            Ok(certificate) => found.usable.push(certificate),
            Err(pem::Error::MissingSectionEnd { .. }) => found.skipped.push(format!(
                "certificate {} has no -----END CERTIFICATE-----: cut off?",
                i + 1
            )),
            Err(error) => found
                .skipped
                .push(format!("certificate {} is not PEM: {error}", i + 1)),
        }
    }
    match (found.usable.is_empty(), found.skipped.first()) {
        (false, _) => Ok(found),
        (true, Some(problem)) => Err(source.problem(problem.clone())),
        (true, None) => {
            Err(source.problem("holds no certificate: expected -----BEGIN CERTIFICATE-----".into()))
        }
    }
}

/// Reads the private key of a file.
pub(super) fn private_key(source: Source<'_>) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = source.read()?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        source.problem(
            "holds no private key: expected PEM of an unencrypted PKCS#1, PKCS#8 or SEC1 key"
                .into(),
        )
    })
}

/// Returns the key itself out of a SubjectPublicKeyInfo: its envelope may be written in more than one way.
pub(super) fn public_key_bits(spki: &[u8]) -> Option<&[u8]> {
    let spki = SubjectPublicKeyInfoRef::try_from(spki).ok()?;
    spki.subject_public_key.as_bytes()
}
