//! Certificates as people make them: one authority, and servers and clients that it vouches for, in
//! PEM files named as cfssl names them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::Error;
use crate::error::Doing;

/// What a certificate is good for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// A server that is a client too, as a member of etcd is.
    Server,
    /// A client only.
    Client,
}

/// A certificate authority and the directory of its files.
pub(crate) struct Authority {
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one; writes `ca.pem` and `ca-key.pem`.
    pub(crate) fn new(dir: &Path) -> Result<Authority, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "lab CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(bad)?;
        put(dir, "ca-key.pem", &key.serialize_pem())?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(bad)?;
        put(dir, "ca.pem", &issuer.pem())?;
        Ok(Authority {
            dir: dir.into(),
            issuer,
        })
    }

    /// Writes `NAME.pem` and `NAME-key.pem`: user `name`, and a server of `hosts` (names and addresses).
    pub(crate) fn issue(&self, name: &str, usage: Use, hosts: &[String]) -> Result<(), Error> {
        let mut params = CertificateParams::new(hosts).map_err(bad)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if usage == Use::Server {
            let server = ExtendedKeyUsagePurpose::ServerAuth;
            params.extended_key_usages.insert(0, server);
        }
        let key = KeyPair::generate().map_err(bad)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(bad)?;
        put(&self.dir, &format!("{name}.pem"), &cert.pem())?;
        put(&self.dir, &format!("{name}-key.pem"), &key.serialize_pem())
    }

    /// The authority's own certificate, DER.
    pub(crate) fn der(&self) -> Vec<u8> {
        self.issuer.der().to_vec()
    }

    /// The authority's own certificate, PEM.
    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }
}

/// Writes `ca.pem`, and what etcd and its clients need: `etcd.pem` and `flanneld.pem` with their
/// keys. The server's is good for `names`.
pub(crate) fn write_for_etcd(dir: &Path, names: &[String]) -> Result<(), Error> {
    let authority = Authority::new(dir)?;
    authority.issue("etcd", Use::Server, names)?;
    authority.issue("flanneld", Use::Client, &[])
}

/// Writes a key pair that signs tokens: `NAME-key.pem` and `NAME-pub.pem`.
pub(crate) fn write_signing_key(dir: &Path, name: &str) -> Result<(), Error> {
    let key = KeyPair::generate().map_err(bad)?;
    put(dir, &format!("{name}-key.pem"), &key.serialize_pem())?;
    put(dir, &format!("{name}-pub.pem"), &key.public_key_pem())
}

fn bad(e: rcgen::Error) -> Error {
    Error::Bad(format!("make certificates: {e}"))
}

fn put(dir: &Path, name: &str, text: &str) -> Result<(), Error> {
    let path = dir.join(name);
    let mode = if name.ends_with("-key.pem") {
        0o600
    } else {
        0o644
    };
    let write = || {
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
    };
    write().doing(|| path.display().to_string())
}
