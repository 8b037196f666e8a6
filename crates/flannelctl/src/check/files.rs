//! Certificates and keys: their dates, who signed them, who may read them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use flanneld::options::StoreChoice;
use x509_parser::pem::Pem;
use x509_parser::prelude::X509Certificate;

use super::report::Report;

const CERTS: &str = "certs";
const FILES: &str = "files";
const DAY: i64 = 86_400;
/// A certificate that ends sooner is told of, in days.
const SOON: i64 = 30;

/// The files that reach the store.
pub(crate) fn check(report: &mut Report, choice: &StoreChoice) {
    let StoreChoice::Etcd(settings) = choice else {
        return;
    };
    let secrets = [
        ("-etcd-keyfile", &settings.keyfile),
        ("-etcd-password-file", &settings.password_file),
    ];
    for (flag, path) in secrets {
        if let Some(path) = path {
            mode(report, flag, path);
        }
    }
    let authorities = settings.cafile.as_deref();
    let authorities = authorities.map(|path| dates(report, "-etcd-cafile", path));
    let own = settings.certfile.as_deref();
    let own = own.map(|path| (path, dates(report, "-etcd-certfile", path)));
    if let (Some(authorities), Some((path, own))) = (authorities, own) {
        chain(report, path, &own, &authorities);
    }
}

/// Who may read a secret.
fn mode(report: &mut Report, flag: &str, path: &Path) {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(found) => {
            let mode = found.permissions().mode() & 0o777;
            match mode & 0o077 {
                0 => report.ok(FILES, format!("{flag} {shown}: mode {mode:04o}")),
                _ => report.warn(
                    FILES,
                    format!("{flag} {shown}: mode {mode:04o}: others than its owner may read it"),
                    format!("chmod 0600 {shown}"),
                ),
            }
        }
        Err(e) => report.fail(
            FILES,
            format!("{flag} {shown}: {e}"),
            "put the file there, or mend the flag",
        ),
    }
}

/// Looks at the dates of every certificate in a file; returns them all.
fn dates(report: &mut Report, flag: &str, path: &Path) -> Vec<Pem> {
    let shown = path.display();
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) => {
            let cure = "put the file there, or mend the flag";
            report.fail(CERTS, format!("{flag} {shown}: {e}"), cure);
            return Vec::new();
        }
    };
    let blocks = Pem::iter_from_buffer(&bytes).flatten();
    let blocks: Vec<Pem> = blocks.filter(|pem| pem.label == "CERTIFICATE").collect();
    let mut readable = false;
    for pem in &blocks {
        if let Ok(certificate) = pem.parse_x509() {
            readable = true;
            date(report, &format!("{flag} {shown}"), &certificate);
        }
    }
    if !readable {
        let cure = "expected PEM: -----BEGIN CERTIFICATE-----";
        report.fail(CERTS, format!("{flag} {shown}: holds no certificate"), cure);
    }
    blocks
}

fn date(report: &mut Report, file: &str, certificate: &X509Certificate) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |d| d.as_secs() as i64);
    let validity = certificate.validity();
    let (from, to) = (validity.not_before, validity.not_after);
    let name = certificate.subject().to_string();
    let days = (to.timestamp() - now) / DAY;
    if from.timestamp() > now {
        report.fail(
            CERTS,
            format!("{file}: {name} is valid only from {from} on"),
            "is this host's clock right? (date)",
        );
    } else if to.timestamp() <= now {
        report.fail(
            CERTS,
            format!("{file}: {name} ended on {to}"),
            "issue a new one, and put it in its place: flanneld reads it at its next connection",
        );
    } else if days < SOON {
        report.warn(
            CERTS,
            format!("{file}: {name} ends in {days} days, on {to}"),
            "issue a new one, and put it in its place: flanneld reads it at its next connection",
        );
    } else {
        report.ok(CERTS, format!("{file}: {name}, valid for {days} days"));
    }
}

/// Whether the own certificate leads to one of the authorities, by way of those that stand behind
/// it in its file.
fn chain(report: &mut Report, path: &Path, own: &[Pem], authorities: &[Pem]) {
    let parse = |pem: &'_ Pem| pem.contents.clone();
    let own: Vec<Vec<u8>> = own.iter().map(parse).collect();
    let authorities: Vec<Vec<u8>> = authorities.iter().map(parse).collect();
    let Some(mut at) = own.first() else {
        return;
    };
    let shown = path.display();
    for _ in 0..=own.len() {
        if authorities
            .iter()
            .any(|root| root == at || signed(at, root))
        {
            report.ok(
                CERTS,
                format!("-etcd-certfile {shown}: signed by an authority of -etcd-cafile"),
            );
            return;
        }
        match own.iter().find(|next| *next != at && signed(at, next)) {
            Some(next) => at = next,
            None => break,
        }
    }
    report.warn(
        CERTS,
        format!("-etcd-certfile {shown}: not signed by an authority of -etcd-cafile"),
        "right if etcd trusts another authority for its clients (--trusted-ca-file); else issue it anew, \
         or append the intermediate certificates to the file",
    );
}

/// Whether `certificate` carries the signature of `issuer`, both in DER.
fn signed(certificate: &[u8], issuer: &[u8]) -> bool {
    let parse = |der| x509_parser::parse_x509_certificate(der).map(|(_, parsed)| parsed);
    match (parse(certificate), parse(issuer)) {
        (Ok(certificate), Ok(issuer)) => {
            certificate.issuer() == issuer.subject()
                && certificate
                    .verify_signature(Some(issuer.public_key()))
                    .is_ok()
        }
        _ => false,
    }
}
