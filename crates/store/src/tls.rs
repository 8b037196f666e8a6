//! Certificates, keys and authorities from files, and what a server must show to be believed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};
use tracing::warn;

use pem::{Origin, Source, certificates, private_key};
use verifier::{Trust, Verifier};

mod algorithms;
mod pem;
mod validity;
mod verifier;

/// A file that TLS needs and cannot use.
#[derive(Debug, thiserror::Error)]
#[error("{flag} {path}: {problem}", path = path.display())]
pub struct TlsError {
    flag: &'static str,
    path: PathBuf,
    problem: String,
}

/// What TLS is made of. Files are read again at every connect, so that certificates can be renewed
/// under a running daemon.
#[derive(Clone, Debug)]
pub(crate) struct TlsFiles {
    pub key: Option<Pem>,
    pub cert: Option<Pem>,
    /// Without one the system's authorities are trusted.
    pub ca: Option<Pem>,
    pub names: &'static Names,
    /// What we speak, in order of preference (ALPN).
    pub protocols: &'static [&'static str],
    /// The server is not verified (`insecure-skip-tls-verify`).
    pub insecure: bool,
}

/// What the three are called where the user wrote them: flags, or keys of a file.
#[derive(Debug)]
pub(crate) struct Names {
    pub key: &'static str,
    pub cert: &'static str,
    pub ca: &'static str,
}

/// PEM text.
#[derive(Clone)]
pub(crate) enum Pem {
    /// In a file of its own.
    File(PathBuf),
    /// Written out in this file.
    Inline(Arc<[u8]>, PathBuf),
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path().display())
    }
}

impl Pem {
    fn path(&self) -> &Path {
        match self {
            Pem::File(path) | Pem::Inline(_, path) => path,
        }
    }
}

/// Returns the first end among the certificates of a file; `None` if none can be read.
pub(crate) fn first_end(pem: &Pem) -> Option<SystemTime> {
    let found = certificates(Source("", pem)).ok()?.usable;
    let ends = found.iter().filter_map(|der| validity::not_after(der));
    ends.min()
}

impl TlsFiles {
    /// The system's authorities and nothing else.
    pub(crate) fn system(protocols: &'static [&'static str]) -> TlsFiles {
        TlsFiles {
            key: None,
            cert: None,
            ca: None,
            names: &Names {
                key: "key",
                cert: "certificate",
                ca: "authority",
            },
            protocols,
            insecure: false,
        }
    }

    pub(crate) fn any(&self) -> bool {
        self.key.is_some() || self.cert.is_some() || self.ca.is_some()
    }

    /// Reads the files: TLS 1.2 or 1.3, the server verified always, ourselves identified
    /// where there is a certificate.
    ///
    /// # Errors
    /// A file that cannot be read or holds no PEM, a key or certificate without the other, or one
    /// that does not belong to the other.
    pub(crate) fn load(&self) -> Result<ClientConfig, TlsError> {
        let provider = algorithms::provider();
        let (verifier, source) = self.verifier(&provider)?;
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| source.problem(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let names = self.names;
        let mut config = match (&self.cert, &self.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), None) => {
                return Err(Source(names.cert, cert)
                    .problem(format!("a certificate needs its key: add {}", names.key)));
            }
            (None, Some(key)) => {
                return Err(Source(names.key, key)
                    .problem(format!("a key needs its certificate: add {}", names.cert)));
            }
            (Some(cert), Some(key)) => {
                builder.with_client_cert_resolver(self.identity(&provider, cert, key)?)
            }
        };
        let protocols = self.protocols.iter();
        config.alpn_protocols = protocols.map(|name| name.as_bytes().to_vec()).collect();
        Ok(config)
    }

    /// What judges the server's certificate, and where its authorities came from.
    fn verifier(
        &self,
        provider: &Arc<CryptoProvider>,
    ) -> Result<(Arc<dyn ServerCertVerifier>, Origin), TlsError> {
        let verifier = |trust| {
            Arc::new(Verifier {
                provider: provider.clone(),
                trust,
            })
        };
        if self.insecure {
            let source = Origin(self.names.ca, PathBuf::new());
            return Ok((verifier(Trust::Anyone), source));
        }
        let (roots, given, source) = self.roots()?;
        let roots = Arc::new(roots);
        let webpki = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| source.problem(e.to_string()))?;
        let trust = Trust::Authorities {
            webpki,
            roots,
            given,
        };
        Ok((verifier(trust), source))
    }

    /// Which flag a failed handshake is about, and its file: the rest of a message.
    pub(crate) fn hint(&self, error: &std::io::Error) -> String {
        let error = error
            .get_ref()
            .and_then(|e| e.downcast_ref::<rustls::Error>());
        let named = |flag: &str, pem: &Pem| format!("{flag} {}", pem.path().display());
        let Names { cert, ca, .. } = self.names;
        match error {
            Some(rustls::Error::InvalidCertificate(_)) => match &self.ca {
                Some(pem) => format!("; it is checked against {}", named(ca, pem)),
                None => format!(
                    "; it is checked against the system's authorities, for there is no {ca}"
                ),
            },
            Some(rustls::Error::AlertReceived(_)) => match &self.cert {
                Some(pem) => format!("; it was shown {}", named(cert, pem)),
                None => format!("; it was shown no certificate, for there is no {cert}"),
            },
            _ => String::new(),
        }
    }

    /// Describes a failed handshake: what is wrong, and what follows for the settings.
    pub(crate) fn explain(&self, error: &std::io::Error) -> String {
        let text = explanation(error).unwrap_or_else(|| error.to_string());
        format!("{text}{}", self.hint(error))
    }

    /// Reads the files, as [`TlsFiles::load`] does, and warns of what is skipped in them: once, at the start.
    ///
    /// # Errors
    /// As [`TlsFiles::load`].
    pub(crate) fn check(&self) -> Result<(), TlsError> {
        self.load()?;
        let files = [(self.names.ca, &self.ca), (self.names.cert, &self.cert)];
        for (name, pem) in files {
            let Some(pem) = pem else { continue };
            for problem in certificates(Source(name, pem))?.skipped {
                let path = pem.path().display();
                warn!("{name} {path}: {problem}: skipped; the others in the file are used");
            }
        }
        Ok(())
    }

    /// What we show to a server that asks who we are. The certificate is not looked into: it is the server
    /// that judges it, and version 1 (`openssl x509 -req` without extensions) is good enough for Go's.
    fn identity(
        &self,
        provider: &CryptoProvider,
        cert: &Pem,
        key: &Pem,
    ) -> Result<Arc<dyn ResolvesClientCert>, TlsError> {
        let (cert, key) = (Source(self.names.cert, cert), Source(self.names.key, key));
        let chain = certificates(cert)?.usable;
        let der = private_key(key)?;
        let signer = provider.key_provider.load_private_key(der);
        let signer = signer.map_err(|e| {
            key.problem(format!(
                "not a key that can be used: {e}; expected RSA of 1024 to 8192 bits, ECDSA on P-256, P-384 or P-521, or Ed25519"
            ))
        })?;
        let public = signer.public_key();
        let public = public.as_deref().and_then(pem::public_key_bits);
        if let (Some(public), Some(own)) = (public, chain.first()) {
            let belongs = own.windows(public.len()).any(|part| part == public);
            if !belongs {
                let Source(flag, file) = cert;
                let path = file.path().display();
                return Err(
                    key.problem(format!("not the key of the certificate in {path} ({flag})"))
                );
            }
        }
        let identity = CertifiedKey::new(chain, signer);
        Ok(Arc::new(SingleCertAndKey::from(identity)))
    }

    /// The trusted roots; those that the user named also as they are; and where they came from.
    fn roots(&self) -> Result<(RootCertStore, Vec<CertificateDer<'static>>, Origin), TlsError> {
        let mut roots = RootCertStore::empty();
        if let Some(pem) = &self.ca {
            let source = Source(self.names.ca, pem);
            let given = certificates(source)?.usable;
            // One that webpki cannot use does not disable the others.
            let refusals = given
                .iter()
                .filter_map(|cert| roots.add(cert.clone()).err())
                .collect::<Vec<_>>();
            if let (true, Some(refusal)) = (roots.is_empty(), refusals.first()) {
                return Err(source.problem(format!("no usable authority: {refusal}")));
            }
            return Ok((roots, given, Origin(self.names.ca, pem.path().into())));
        }
        // As Go's programs: from SSL_CERT_FILE and SSL_CERT_DIR, or where distributions keep them.
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            let reasons = system.errors.iter().map(|e| format!(" ({e})"));
            let reasons: String = reasons.take(3).collect();
            return Err(Origin(self.names.ca, PathBuf::new()).problem(format!(
                "not given, and the system has no list of trusted authorities{reasons}"
            )));
        }
        Ok((
            roots,
            Vec::new(),
            Origin("system authorities", PathBuf::new()),
        ))
    }
}

/// Says what a failed handshake means where rustls' words do not, or change with every try.
fn explanation(error: &std::io::Error) -> Option<String> {
    use rustls::CertificateError as Cert;
    const NOT_TLS: &str = "does the server speak TLS? If not, its address begins with http://";
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        return Some(format!("the server ended the connection: {NOT_TLS}"));
    }
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let invalid = |reason: String| Some(format!("invalid peer certificate: {reason}"));
    let date = |time: &rustls::pki_types::UnixTime| {
        let time = std::time::UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs()))?;
        // Later years cannot be written so.
        let written = time < std::time::UNIX_EPOCH + Duration::from_secs(253_402_300_800);
        written.then(|| humantime::format_rfc3339_seconds(time).to_string())
    };
    match error {
        rustls::Error::InvalidMessage(_) => Some(format!("{error}: {NOT_TLS}")),
        rustls::Error::InvalidCertificate(Cert::UnknownIssuer) => {
            invalid("the authority that signed it is not trusted (UnknownIssuer)".into())
        }
        rustls::Error::InvalidCertificate(Cert::ExpiredContext { not_after, .. }) => {
            invalid(format!("it expired at {}", date(not_after)?))
        }
        rustls::Error::InvalidCertificate(Cert::NotValidYetContext { not_before, .. }) => {
            invalid(format!(
                "it is not valid before {}: is the clock of this host right?",
                date(not_before)?
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn the_end_of_a_file_is_its_first_certificate_to_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let mut text = String::new();
        // UTCTime until 2049, GeneralizedTime from then on.
        for year in [2060, 2031] {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(vec!["a".into()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            text += &params.self_signed(&key).unwrap().pem();
            std::fs::write(&path, &text).unwrap();
            let end = first_end(&Pem::File(path.clone())).unwrap();
            let years = end.duration_since(UNIX_EPOCH).unwrap().as_secs_f64() / 31_556_952.0;
            assert!((years - f64::from(year - 1970)).abs() < 0.01, "{years}");
        }
        for cut in [0, 1, 40, text.len() / 3] {
            std::fs::write(&path, &text[..cut]).unwrap();
            assert_eq!(first_end(&Pem::File(path.clone())), None);
        }
        for garbage in [&[0x30_u8, 0x82, 0xff, 0xff][..], &[0x30, 0], &[]] {
            assert_eq!(validity::not_after(garbage), None);
        }
    }
}
