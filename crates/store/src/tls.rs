//! Certificates, keys and authorities from files, and what a server must show to be believed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

/// Where the system keeps the authorities it trusts, by distribution; the first that is there.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

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
        let provider = Arc::new(ring::default_provider());
        let (roots, given, source) = self.roots()?;
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|e| source.problem(e.to_string()))?;
        let verifier = Arc::new(Verifier { inner, given });
        let builder = ClientConfig::builder_with_provider(provider)
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
                let chain = certificates(Source(names.cert, cert))?;
                let key_der = private_key(Source(names.key, key))?;
                builder.with_client_auth_cert(chain, key_der).map_err(|e| {
                    Source(names.key, key).problem(match e {
                        rustls::Error::InconsistentKeys(_) => {
                            format!(
                                "not the key of the certificate in {} ({})",
                                cert.path().display(),
                                names.cert
                            )
                        }
                        e => e.to_string(),
                    })
                })?
            }
        };
        let protocols = self.protocols.iter();
        config.alpn_protocols = protocols.map(|name| name.as_bytes().to_vec()).collect();
        Ok(config)
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

    /// The trusted roots; those that the user named also as they are; and where they came from.
    fn roots(&self) -> Result<(RootCertStore, Vec<CertificateDer<'static>>, Origin), TlsError> {
        let mut roots = RootCertStore::empty();
        if let Some(pem) = &self.ca {
            let source = Source(self.names.ca, pem);
            let given = certificates(source)?;
            for cert in &given {
                roots
                    .add(cert.clone())
                    .map_err(|e| source.problem(format!("no usable authority: {e}")))?;
            }
            return Ok((roots, given, Origin(self.names.ca, pem.path().into())));
        }
        let system = SYSTEM_ROOTS
            .into_iter()
            .map(Path::new)
            .find(|path| path.exists());
        let Some(path) = system else {
            return Err(Origin(self.names.ca, PathBuf::new())
                .problem("not given, and the system has no list of trusted authorities".into()));
        };
        let name = "system authorities";
        // Some systems trust a root or two that webpki cannot use: the others will do.
        roots.add_parsable_certificates(certificates(Source(name, &Pem::File(path.into())))?);
        Ok((roots, Vec::new(), Origin(name, path.into())))
    }
}

/// A flag or key, and the file that it names, for messages.
struct Origin(&'static str, PathBuf);

impl Origin {
    fn problem(&self, problem: String) -> TlsError {
        TlsError {
            flag: self.0,
            path: self.1.clone(),
            problem,
        }
    }
}

/// A flag or key, and what it holds.
#[derive(Clone, Copy)]
struct Source<'a>(&'static str, &'a Pem);

impl Source<'_> {
    fn problem(self, problem: String) -> TlsError {
        Origin(self.0, self.1.path().into()).problem(problem)
    }

    fn read(self) -> Result<Vec<u8>, TlsError> {
        match self.1 {
            Pem::File(path) => std::fs::read(path).map_err(|e| self.problem(e.to_string())),
            Pem::Inline(pem, _) => Ok(pem.to_vec()),
        }
    }
}

fn certificates(source: Source<'_>) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = source.read()?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Ok(all) if all.is_empty() => {
            Err(source.problem("holds no certificate: expected -----BEGIN CERTIFICATE-----".into()))
        }
        Ok(all) => Ok(all),
        Err(pem::Error::MissingSectionEnd { .. }) => {
            Err(source
                .problem("a certificate without its -----END CERTIFICATE-----: cut off?".into()))
        }
        Err(e) => Err(source.problem(format!("not a PEM file of certificates: {e}"))),
    }
}

fn private_key(source: Source<'_>) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = source.read()?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        source.problem(
            "holds no private key: expected PEM of an unencrypted PKCS#1, PKCS#8 or SEC1 key"
                .into(),
        )
    })
}

/// webpki, and one more case that Go's TLS accepts and people therefore have: a self-signed
/// certificate marked as an authority, given as the authority *and* shown by the server.
/// webpki takes no authority for a server. Byte by byte the one that the user named, it is trusted here;
/// its name and its time are checked all the same.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    given: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        // "CA used as end entity" has no variant of its own, and comes after the check of the time.
        let an_authority = matches!(
            verdict,
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(
                _
            )))
        );
        if an_authority
            && self
                .given
                .iter()
                .any(|root| root.as_ref() == end_entity.as_ref())
        {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        verdict
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
