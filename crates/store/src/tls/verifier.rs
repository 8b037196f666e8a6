//! What a server must show to be believed.

use std::sync::Arc;

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::crypto::{
    CryptoProvider, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    self, CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

/// Judges a server's certificate.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) trust: Trust,
}

/// Which servers are believed. That a server has the key of its certificate is checked in any case.
#[derive(Debug)]
pub(super) enum Trust {
    /// Those that webpki believes, and one more case that Go's TLS accepts and people therefore have: the server's
    /// certificate is, byte for byte, one that the user named as an authority. Whether it is marked as one, and who
    /// signed it, does not matter then; its name and its time are checked all the same.
    Authorities {
        webpki: Arc<WebPkiServerVerifier>,
        roots: Arc<RootCertStore>,
        given: Vec<CertificateDer<'static>>,
    },
    /// All of them (`insecure-skip-tls-verify`).
    Anyone,
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
        let Trust::Authorities {
            webpki,
            roots,
            given,
        } = &self.trust
        else {
            return Ok(ServerCertVerified::assertion());
        };
        let result =
            webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        if result.as_ref().is_err_and(is_about_the_purpose)
            && self.is_for_any_purpose(end_entity, intermediates, roots, now)
        {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        let named = given
            .iter()
            .any(|root| root.as_ref() == end_entity.as_ref());
        if named && result.as_ref().is_err_and(is_about_the_issuer) {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        result
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The purpose "any", which Go takes for a server's too.
const ANY_PURPOSE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];

impl Verifier {
    /// Returns whether an authority vouches for the certificate, for any purpose.
    fn is_for_any_purpose(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        roots: &RootCertStore,
        now: UnixTime,
    ) -> bool {
        let Ok(cert) = webpki::EndEntityCert::try_from(end_entity) else {
            return false;
        };
        let verified = cert.verify_for_usage(
            self.provider.signature_verification_algorithms.all,
            &roots.roots,
            intermediates,
            now,
            webpki::KeyUsage::required_if_present(ANY_PURPOSE),
            None,
            None,
        );
        verified.is_ok()
    }
}

/// Returns whether webpki found that the certificate is for something else than a server.
fn is_about_the_purpose(error: &rustls::Error) -> bool {
    use CertificateError::{InvalidPurpose, InvalidPurposeContext};
    matches!(
        error,
        rustls::Error::InvalidCertificate(InvalidPurpose | InvalidPurposeContext { .. })
    )
}

/// Returns whether webpki found fault with who vouches for the certificate: it looks at the time before that,
/// and one that it cannot read at all fails again where the name is checked.
fn is_about_the_issuer(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(error) = error else {
        return false;
    };
    matches!(
        error,
        CertificateError::UnknownIssuer
            | CertificateError::BadSignature
            | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }
            // "An authority used as a server" has no variant of its own.
            | CertificateError::Other(_)
    )
}
