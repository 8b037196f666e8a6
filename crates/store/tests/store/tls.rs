//! TLS to etcd, with certificates made on the spot.

use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use store::{EtcdSettings, EtcdStore, Store};
use tempfile::TempDir;

use crate::etcd_server::{Etcd, Tls};
use crate::gate::Gate;
use crate::node::{CONFIG, Node, local, waits_for, within};
use crate::world::{PREFIX, settings};

/// Certificates in a directory: `ca`, `server`, `client`, and what a stranger has.
struct Pki {
    dir: TempDir,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Authority {
        issuer: Issuer::new(params, key),
        pem,
    }
}

fn server_params() -> CertificateParams {
    let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
    params
        .subject_alt_names
        .push(SanType::IpAddress("127.0.0.1".parse().unwrap()));
    // etcd uses its own certificate as a client, too, for its gateway.
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}

impl Pki {
    fn new() -> Pki {
        let pki = Pki {
            dir: TempDir::new().unwrap(),
        };
        let (ours, theirs) = (authority("ours"), authority("theirs"));
        pki.write("ca.pem", &ours.pem);
        pki.write("stranger-ca.pem", &theirs.pem);
        pki.issue("server", server_params(), &ours);
        pki.issue("client", client_params(), &ours);
        pki.issue("stranger", client_params(), &theirs);
        pki
    }

    fn issue(&self, name: &str, params: CertificateParams, by: &Authority) {
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &by.issuer).unwrap();
        self.write(&format!("{name}.pem"), &cert.pem());
        self.write(&format!("{name}-key.pem"), &key.serialize_pem());
        self.write(&format!("{name}-key.sec1"), &sec1(&key));
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.file(name), text).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.file(name).to_str().unwrap().into()
    }

    fn server(&self, cert: &str, ca: &str, mutual: bool) -> Etcd {
        let etcd = self.server_that_is_refused(cert, ca, mutual);
        etcd.put(&format!("{PREFIX}/config"), CONFIG);
        etcd
    }

    /// One whose certificate etcdctl does not accept either: nothing is written into it.
    fn server_that_is_refused(&self, cert: &str, ca: &str, mutual: bool) -> Etcd {
        Etcd::start_with(
            &[],
            Some(Tls {
                cert: self.text(&format!("{cert}.pem")),
                key: self.text(&format!("{cert}-key.pem")),
                ca: self.text(ca),
                mutual,
            }),
        )
    }
}

fn client_params() -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "node");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// A P-256 key as `openssl ecparam -genkey` writes it: the inner part of its PKCS#8 form.
fn sec1(key: &KeyPair) -> String {
    let der = key.serialize_der();
    // SEQUENCE { INTEGER 1, OCTET STRING (32 bytes) ... } in an OCTET STRING at the end.
    let start = der
        .windows(7)
        .position(|w| w[0] == 0x30 && w[2..] == [2, 1, 1, 4, 32])
        .unwrap();
    let inner = &der[start..start + 2 + usize::from(der[start + 1])];
    let base64 = base64(inner);
    let lines: Vec<&str> = base64
        .as_bytes()
        .chunks(64)
        .map(|c| std::str::from_utf8(c).unwrap())
        .collect();
    format!(
        "-----BEGIN EC PRIVATE KEY-----\n{}\n-----END EC PRIVATE KEY-----\n",
        lines.join("\n")
    )
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let n = three.iter().fold(0_u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - three.len()));
        for i in 0..4 {
            let digit = DIGITS[(n >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= three.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    text
}

/// The configuration can be read with these settings.
async fn reads(settings: EtcdSettings) {
    within(EtcdStore::new(settings).unwrap().config()).await;
}

/// It cannot, for a reason that has `text` in it.
async fn refused(settings: EtcdSettings, text: &str) {
    let mut store = EtcdStore::new(settings).unwrap();
    let status = store.status();
    tokio::select! {
        biased;
        _ = store.config() => panic!("it was read"),
        () = waits_for(&status, text) => {}
    }
}

#[test]
fn mutual_tls_lets_us_in_and_nobody_else() {
    local(async {
        let pki = Pki::new();
        let etcd = pki.server("server", "ca.pem", true);
        let with = |cert: &str, key: &str, ca: &str| EtcdSettings {
            certfile: Some(pki.file(cert)),
            keyfile: Some(pki.file(key)),
            cafile: Some(pki.file(ca)),
            ..settings(&etcd)
        };
        let store = EtcdStore::new(with("client.pem", "client-key.pem", "ca.pem")).unwrap();
        let mut node = Node::start(store, 1).await;
        node.until("own", |node| node.complete && node.own_key().is_some())
            .await;
        reads(with("client.pem", "client-key.sec1", "ca.pem")).await;
        // let a stranger in
        refused(
            with("stranger.pem", "stranger-key.pem", "ca.pem"),
            "ertificate",
        )
        .await;
        // believed a stranger
        refused(
            with("client.pem", "client-key.pem", "stranger-ca.pem"),
            "ertificate",
        )
        .await;
        let none = EtcdSettings {
            cafile: Some(pki.file("ca.pem")),
            ..settings(&etcd)
        };
        refused(none, "ertificate").await;
    });
}

#[test]
fn a_ca_alone_verifies_the_server() {
    local(async {
        let pki = Pki::new();
        let etcd = pki.server("server", "ca.pem", false);
        let with = |ca: Option<&str>| EtcdSettings {
            cafile: ca.map(|ca| pki.file(ca)),
            ..settings(&etcd)
        };
        reads(with(Some("ca.pem"))).await;
        refused(with(Some("stranger-ca.pem")), "ertificate").await;
        // the system's authorities know nothing of this server
        refused(with(None), "ertificate").await;
        let by_name = |host: &str| EtcdSettings {
            endpoints: etcd.url().replace("127.0.0.1", host),
            ..with(Some("ca.pem"))
        };
        reads(by_name("localhost")).await;
        let plain = EtcdSettings {
            endpoints: etcd.url().replace("https", "http"),
            ..settings(&etcd)
        };
        refused(plain, "http://127.0.0.1").await;
    });
}

#[test]
fn a_server_certificate_for_another_name_is_refused() {
    local(async {
        let pki = Pki::new();
        let ours = authority("names");
        pki.write("names-ca.pem", &ours.pem);
        let mut params = server_params();
        params.subject_alt_names = vec![SanType::DnsName("elsewhere.example".try_into().unwrap())];
        pki.issue("elsewhere", params, &ours);
        let etcd = Etcd::start_with(
            &[],
            Some(Tls {
                cert: pki.text("elsewhere.pem"),
                key: pki.text("elsewhere-key.pem"),
                ca: pki.text("names-ca.pem"),
                mutual: false,
            }),
        );
        etcd.ctl(&[
            "--insecure-skip-tls-verify",
            "put",
            &format!("{PREFIX}/config"),
            CONFIG,
        ]);
        refused(
            EtcdSettings {
                cafile: Some(pki.file("names-ca.pem")),
                ..settings(&etcd)
            },
            "ertificate",
        )
        .await;
    });
}

#[test]
fn a_self_signed_authority_that_is_the_server_is_believed() {
    local(async {
        let pki = Pki::new();
        let mut params = server_params();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        pki.write("self.pem", &params.self_signed(&key).unwrap().pem());
        pki.write("self-key.pem", &key.serialize_pem());
        let etcd = pki.server("self", "self.pem", false);
        reads(EtcdSettings {
            cafile: Some(pki.file("self.pem")),
            ..settings(&etcd)
        })
        .await;
        refused(
            EtcdSettings {
                cafile: Some(pki.file("ca.pem")),
                ..settings(&etcd)
            },
            "ertificate",
        )
        .await;
        let other_name = Gate::at("127.0.0.2", etcd.port()).await;
        let elsewhere = EtcdSettings {
            endpoints: format!("https://127.0.0.2:{}", other_name.port),
            cafile: Some(pki.file("self.pem")),
            ..settings(&etcd)
        };
        refused(elsewhere, "ertificate").await;
    });
}

#[test]
fn renewed_certificates_are_used_without_a_restart() {
    local(async {
        let pki = Pki::new();
        let etcd = pki.server("server", "ca.pem", true);
        std::fs::copy(pki.file("stranger.pem"), pki.file("live.pem")).unwrap();
        std::fs::copy(pki.file("stranger-key.pem"), pki.file("live-key.pem")).unwrap();
        let mut store = EtcdStore::new(EtcdSettings {
            certfile: Some(pki.file("live.pem")),
            keyfile: Some(pki.file("live-key.pem")),
            cafile: Some(pki.file("ca.pem")),
            ..settings(&etcd)
        })
        .unwrap();
        let status = store.status();
        let replaced = async {
            waits_for(&status, "alert").await;
            // One after the other, as a script would: in between they do not belong together.
            std::fs::copy(pki.file("client.pem"), pki.file("live.pem")).unwrap();
            waits_for(&status, "live.pem").await;
            std::fs::copy(pki.file("client-key.pem"), pki.file("live-key.pem")).unwrap();
        };
        within(async { tokio::join!(store.config(), replaced) }).await;
    });
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let pki = Pki::new();
    pki.write("empty.pem", "");
    pki.write(
        "broken.pem",
        "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n",
    );
    openssl(&pki, "genrsa -out weak.pem 512");
    pki.write("cut.pem", &pki_text(&pki, "client.pem")[..200]);
    let missing = pki.text("no-such-file.pem");
    let cases: [([Option<&str>; 3], &str, &str); 11] = [
        (
            [Some("client.pem"), None, None],
            "-etcd-certfile",
            "-etcd-keyfile",
        ),
        (
            [None, Some("client-key.pem"), None],
            "-etcd-keyfile",
            "-etcd-certfile",
        ),
        (
            [Some("client.pem"), Some("stranger-key.pem"), None],
            "-etcd-keyfile",
            "client.pem",
        ),
        (
            [Some("client.pem"), Some("no-such-file.pem"), None],
            "-etcd-keyfile",
            &missing,
        ),
        (
            [Some("client.pem"), Some("weak.pem"), None],
            "-etcd-keyfile",
            "1024 to 8192",
        ),
        (
            [Some("client.pem"), Some("client.pem"), None],
            "-etcd-keyfile",
            "PKCS#8",
        ),
        (
            [Some("empty.pem"), Some("client-key.pem"), None],
            "-etcd-certfile",
            "empty.pem",
        ),
        (
            [Some("cut.pem"), Some("client-key.pem"), None],
            "-etcd-certfile",
            "cut.pem",
        ),
        (
            [None, None, Some("empty.pem")],
            "-etcd-cafile",
            "BEGIN CERTIFICATE",
        ),
        (
            [None, None, Some("broken.pem")],
            "-etcd-cafile",
            "broken.pem",
        ),
        (
            [None, None, Some("client-key.pem")],
            "-etcd-cafile",
            "client-key.pem",
        ),
    ];
    for ([cert, key, ca], flag, also) in cases {
        let error = EtcdStore::new(EtcdSettings {
            endpoints: "https://127.0.0.1:1".into(),
            prefix: PREFIX.into(),
            certfile: cert.map(|name| pki.file(name)),
            keyfile: key.map(|name| pki.file(name)),
            cafile: ca.map(|name| pki.file(name)),
            ..EtcdSettings::default()
        });
        let error = error.err().expect("taken").to_string();
        assert!(
            error.starts_with(flag) && error.contains(also),
            "{flag} {also}: {error}"
        );
    }
}

fn pki_text(pki: &Pki, name: &str) -> String {
    std::fs::read_to_string(pki.file(name)).unwrap()
}

/// Runs OpenSSL in the directory of the certificates.
fn openssl(pki: &Pki, args: &str) {
    let output = std::process::Command::new("openssl")
        .args(args.split(' '))
        .current_dir(pki.dir.path())
        .output()
        .expect("openssl cannot be run: install openssl");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {args}: {errors}");
}

/// Makes an authority, a server's and a client's certificate with OpenSSL; `key` are options of `genpkey`, and
/// `hash` signs.
fn openssl_pki(pki: &Pki, key: &str, hash: &str) {
    for name in ["ca", "server", "client"] {
        openssl(pki, &format!("genpkey {key} -out {name}-key.pem"));
    }
    let extensions = "subjectAltName=IP:127.0.0.1,DNS:localhost";
    openssl(
        pki,
        &format!("req -x509 -new -{hash} -key ca-key.pem -subj /CN=ca -out ca.pem"),
    );
    pki.write("server.ext", extensions);
    for name in ["server", "client"] {
        openssl(
            pki,
            &format!("req -new -{hash} -key {name}-key.pem -subj /CN={name} -out {name}.csr"),
        );
        let ext = if name == "server" {
            " -extfile server.ext"
        } else {
            // Without extensions OpenSSL 3 makes a certificate of version 1.
            ""
        };
        openssl(
            pki,
            &format!(
                "x509 -req -{hash} -in {name}.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -out {name}.pem{ext}"
            ),
        );
    }
}

fn empty_pki() -> Pki {
    Pki {
        dir: TempDir::new().unwrap(),
    }
}

async fn serves(pki: &Pki, etcd: &Etcd) {
    let mut store = EtcdStore::new(EtcdSettings {
        certfile: Some(pki.file("client.pem")),
        keyfile: Some(pki.file("client-key.pem")),
        cafile: Some(pki.file("ca.pem")),
        ..settings(etcd)
    })
    .unwrap();
    within(store.config()).await;
}

#[test]
fn a_client_certificate_of_version_1_is_shown() {
    local(async {
        let pki = empty_pki();
        openssl_pki(
            &pki,
            "-algorithm EC -pkeyopt ec_paramgen_curve:P-256",
            "sha256",
        );
        let etcd = pki.server("server", "ca.pem", true);
        serves(&pki, &etcd).await;
        // And one that does not belong to the key is still reported, with its file.
        let error = EtcdStore::new(EtcdSettings {
            certfile: Some(pki.file("client.pem")),
            keyfile: Some(pki.file("server-key.pem")),
            ..settings(&etcd)
        });
        let error = error.err().expect("taken").to_string();
        assert!(
            error.contains("server-key.pem") && error.contains("client.pem (-etcd-certfile)"),
            "{error}"
        );
    });
}

#[test]
fn p521_is_spoken_by_everybody() {
    for hash in ["sha512", "sha256"] {
        local(async {
            let pki = empty_pki();
            openssl_pki(&pki, "-algorithm EC -pkeyopt ec_paramgen_curve:P-521", hash);
            let etcd = pki.server("server", "ca.pem", true);
            serves(&pki, &etcd).await;
            openssl(&pki, "ec -in client-key.pem -out sec1.pem");
            std::fs::rename(pki.file("sec1.pem"), pki.file("client-key.pem")).unwrap();
            serves(&pki, &etcd).await;
        });
    }
}

#[test]
fn rsa_of_more_than_4096_bits_is_spoken_by_everybody() {
    local(async {
        let pki = empty_pki();
        openssl_pki(
            &pki,
            "-algorithm RSA -pkeyopt rsa_keygen_bits:4224",
            "sha256",
        );
        let etcd = pki.server("server", "ca.pem", true);
        serves(&pki, &etcd).await;
        openssl(&pki, "rsa -traditional -in client-key.pem -out pkcs1.pem");
        std::fs::rename(pki.file("pkcs1.pem"), pki.file("client-key.pem")).unwrap();
        serves(&pki, &etcd).await;
    });
}

#[test]
fn rsa_of_1024_bits_is_spoken_by_everybody() {
    for hash in ["sha256", "sha512"] {
        local(async {
            let pki = empty_pki();
            openssl_pki(&pki, "-algorithm RSA -pkeyopt rsa_keygen_bits:1024", hash);
            let etcd = pki.server("server", "ca.pem", true);
            serves(&pki, &etcd).await;
            // Not because any signature would do.
            openssl(
                &pki,
                "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out ca-key.pem",
            );
            openssl(
                &pki,
                "req -x509 -new -key ca-key.pem -subj /CN=ca -out other.pem",
            );
            let other = EtcdSettings {
                certfile: Some(pki.file("client.pem")),
                keyfile: Some(pki.file("client-key.pem")),
                cafile: Some(pki.file("other.pem")),
                ..settings(&etcd)
            };
            refused(other, "invalid peer certificate").await;
        });
    }
}

#[test]
fn a_certificate_for_any_purpose_is_a_servers_too() {
    local(async {
        let (pki, ours) = (Pki::new(), authority("ours too"));
        let mut params = server_params();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
        pki.write("any-ca.pem", &ours.pem);
        pki.issue("any", params.clone(), &ours);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        pki.issue("code", params, &ours);
        let asks = |etcd: &Etcd, ca: &str| EtcdSettings {
            cafile: Some(pki.file(ca)),
            ..settings(etcd)
        };
        let etcd = pki.server("any", "any-ca.pem", false);
        reads(asks(&etcd, "any-ca.pem")).await;
        refused(asks(&etcd, "stranger-ca.pem"), "invalid peer certificate").await;
        let etcd = pki.server_that_is_refused("code", "any-ca.pem", false);
        refused(asks(&etcd, "any-ca.pem"), "extended key usage").await;
    });
}

#[test]
fn a_certificate_out_of_its_time_is_one_reason_and_not_one_each_second() {
    local(async {
        let (pki, ours) = (Pki::new(), authority("ours too"));
        pki.write("time-ca.pem", &ours.pem);
        for (name, years, text) in [
            ("old", (2001, 2002), "it expired at 2002-01-01T00:00:00Z"),
            (
                "new",
                (2801, 2802),
                "it is not valid before 2801-01-01T00:00:00Z: is the clock",
            ),
        ] {
            let mut params = server_params();
            params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
            params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
            pki.issue(name, params, &ours);
            let etcd = pki.server_that_is_refused(name, "time-ca.pem", false);
            let settings = EtcdSettings {
                cafile: Some(pki.file("time-ca.pem")),
                ..settings(&etcd)
            };
            refused(settings, text).await;
        }
    });
}

#[test]
fn what_a_server_refuses_after_the_handshake_is_named() {
    local(async {
        let pki = Pki::new();
        let etcd = pki.server("server", "ca.pem", true);
        let stranger = EtcdSettings {
            certfile: Some(pki.file("stranger.pem")),
            keyfile: Some(pki.file("stranger-key.pem")),
            cafile: Some(pki.file("ca.pem")),
            ..settings(&etcd)
        };
        refused(stranger, "; it was shown -etcd-certfile").await;
        let nothing = EtcdSettings {
            cafile: Some(pki.file("ca.pem")),
            ..settings(&etcd)
        };
        refused(
            nothing,
            "; it was shown no certificate, for there is no -etcd-certfile",
        )
        .await;
        // A server without TLS.
        let plain = Etcd::start();
        let tls = EtcdSettings {
            endpoints: plain.url().replace("http://", "https://"),
            cafile: Some(pki.file("ca.pem")),
            ..settings(&plain)
        };
        refused(tls, "does the server speak TLS?").await;
    });
}

#[test]
fn an_authority_in_a_block_of_the_old_name_is_read() {
    local(async {
        let pki = Pki::new();
        let pem = pki_text(&pki, "ca.pem").replace(" CERTIFICATE", " X509 CERTIFICATE");
        pki.write("old-ca.pem", &pem);
        let etcd = pki.server("server", "ca.pem", false);
        let old = EtcdSettings {
            cafile: Some(pki.file("old-ca.pem")),
            ..settings(&etcd)
        };
        reads(old).await;
    });
}

#[test]
fn the_very_certificate_that_was_named_is_believed() {
    local(async {
        let pki = Pki::new();
        // Signed by somebody whom nobody named.
        let stranger = authority("unknown");
        pki.issue("leaf", server_params(), &stranger);
        let etcd = pki.server("leaf", "leaf.pem", false);
        let at = |url: String| EtcdSettings {
            endpoints: url,
            cafile: Some(pki.file("leaf.pem")),
            ..settings(&etcd)
        };
        let mut store = EtcdStore::new(at(etcd.url())).unwrap();
        within(store.config()).await;
        let elsewhere = Gate::at("127.0.0.2", etcd.port()).await;
        let url = format!("https://127.0.0.2:{}", elsewhere.port);
        refused(at(url), "ertificate").await;
        let mut old = server_params();
        old.not_after = rcgen::date_time_ymd(2020, 1, 1);
        pki.issue("old", old, &stranger);
        let expired = Etcd::start_with(
            &[],
            Some(Tls {
                cert: pki.text("old.pem"),
                key: pki.text("old-key.pem"),
                ca: pki.text("old.pem"),
                mutual: false,
            }),
        );
        let settings = EtcdSettings {
            cafile: Some(pki.file("old.pem")),
            ..settings(&expired)
        };
        refused(settings, "ertificate").await;
    });
}

#[test]
fn a_damaged_authority_does_not_disable_the_others() {
    local(async {
        let pki = Pki::new();
        let good = pki_text(&pki, "ca.pem");
        let damaged = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
        let cut = &pki_text(&pki, "stranger-ca.pem")[..200];
        pki.write(
            "bundle.pem",
            &format!("# ours\n{damaged}{cut}\n{good}{cut}"),
        );
        let etcd = pki.server("server", "ca.pem", false);
        let mut store = EtcdStore::new(EtcdSettings {
            cafile: Some(pki.file("bundle.pem")),
            ..settings(&etcd)
        })
        .unwrap();
        within(store.config()).await;
    });
}

/// Set in a second run of this program, whose environment is its own.
const CHILD: &str = "STORE_TESTS_ENDPOINT";

#[test]
fn ssl_cert_file_names_the_systems_authorities() {
    if let Ok(endpoints) = std::env::var(CHILD) {
        local(async {
            let mut store = EtcdStore::new(EtcdSettings {
                endpoints,
                prefix: PREFIX.into(),
                ..EtcdSettings::default()
            })
            .unwrap();
            within(store.config()).await;
        });
        return;
    }
    let pki = Pki::new();
    let etcd = pki.server("server", "ca.pem", false);
    let run = |authority: &str| {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "tls::ssl_cert_file_names_the_systems_authorities",
                "--exact",
            ])
            .env(CHILD, etcd.url())
            .env("SSL_CERT_FILE", pki.file(authority))
            .output()
            .unwrap()
    };
    let output = run("ca.pem");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[test]
fn files_cut_anywhere_are_refused_with_their_flag() {
    let pki = Pki::new();
    let whole = ["client.pem", "client-key.pem", "ca.pem"];
    for (i, flag) in ["-etcd-certfile", "-etcd-keyfile", "-etcd-cafile"]
        .into_iter()
        .enumerate()
    {
        let text = pki_text(&pki, whole[i]);
        // What is left of the last line may be missing: the block ends before it.
        for end in 0..text.trim_end().len() {
            pki.write("cut.pem", &text[..end]);
            let mut files = whole;
            files[i] = "cut.pem";
            let [cert, key, ca] = files.map(|name| Some(pki.file(name)));
            let store = EtcdStore::new(EtcdSettings {
                endpoints: "https://127.0.0.1:1".into(),
                prefix: PREFIX.into(),
                certfile: cert,
                keyfile: key,
                cafile: ca,
                ..EtcdSettings::default()
            });
            let error = store.err().map(|e| e.to_string());
            let error = error.unwrap_or_else(|| panic!("{flag} cut at {end} was taken"));
            assert!(error.contains(flag) && error.contains("cut.pem"), "{error}");
        }
    }
}
