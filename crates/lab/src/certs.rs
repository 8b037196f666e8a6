//! Certificates as people make them for etcd: one authority, one server, one client, in files
//! named as cfssl names them.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::Error;
use crate::error::Doing;

/// Writes `ca.pem`, `etcd.pem`, `etcd-key.pem`, `flanneld.pem` and `flanneld-key.pem` into `dir`. The
/// server's is good for `names` (host names and addresses), the client's for user `flanneld`.
pub(crate) fn write(dir: &Path, names: &[String]) -> Result<(), Error> {
    let bad = |e: rcgen::Error| Error::Bad(format!("make certificates: {e}"));
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "lab CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca =
        CertifiedIssuer::self_signed(params, KeyPair::generate().map_err(bad)?).map_err(bad)?;
    put(dir, "ca.pem", &ca.pem())?;

    let both = [
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    for (name, names, usages) in [("etcd", names, &both[..]), ("flanneld", &[], &both[1..])] {
        let mut params = CertificateParams::new(names).map_err(bad)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = usages.to_vec();
        let key = KeyPair::generate().map_err(bad)?;
        let cert = params.signed_by(&key, &ca).map_err(bad)?;
        put(dir, &format!("{name}.pem"), &cert.pem())?;
        put(dir, &format!("{name}-key.pem"), &key.serialize_pem())?;
    }
    Ok(())
}

fn put(dir: &Path, name: &str, text: &str) -> Result<(), Error> {
    let path = dir.join(name);
    std::fs::write(&path, text).doing(|| path.display().to_string())
}
