//! Each fault of the store, its certificates and the configuration in it.

use lab::{Lab, StoreKind};
use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};

use crate::{check, started};

#[test]
fn etcd_certificates_and_keys() {
    let lab = Lab::builder()
        .nodes(1)
        .store(StoreKind::Etcd { tls: true })
        .build()
        .unwrap();
    started(&lab);
    let node = lab.node(1);
    let etcd = lab.etcd().unwrap();
    let endpoint = etcd.endpoint();
    let file = |name: &str| format!("{}/tls/{name}", lab::SHARED_DIR);
    let run = |ca: &str, cert: &str, key: &str, endpoints: &str| {
        let flags = [
            format!("-etcd-endpoints={endpoints}"),
            format!("-etcd-cafile={}", file(ca)),
            format!("-etcd-certfile={}", file(cert)),
            format!("-etcd-keyfile={}", file(key)),
        ];
        let mut args = vec!["--"];
        args.extend(flags.iter().map(String::as_str));
        check(node, &args)
    };
    let (ca, cert, key) = ("ca.pem", "flanneld.pem", "flanneld-key.pem");
    run(ca, cert, key, &endpoint).is_good();

    // One endpoint of two.
    let found = run(
        ca,
        cert,
        key,
        &format!("https://192.168.78.254:1,{endpoint}"),
    );
    found.has(
        "warn",
        "store",
        "https://192.168.78.254:1",
        "the others answer",
    );
    assert_eq!(found.status, 0);

    node.exec(["chmod", "0644", &file(key)]).unwrap();
    run(ca, cert, key, &endpoint).has("warn", "files", "mode 0644", "chmod 0600");
    node.exec(["chmod", "0600", &file(key)]).unwrap();

    let found = run(ca, cert, "etcd-key.pem", &endpoint);
    found.fails_only("store", "not the key of the certificate", "mend");
    run(ca, cert, "none.pem", &endpoint).has("fail", "files", "none.pem", "put the file");

    // Certificates of another authority: expired, about to expire, not yet valid.
    let put = |name: &str, from: (i32, u8, u8), days: i64| {
        let mut params = CertificateParams::new([]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, "somebody");
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = match days {
            0 => date_time_ymd(2021, 1, 1),
            days => std::time::SystemTime::now()
                .checked_add(std::time::Duration::from_secs(days as u64 * 86_400))
                .unwrap()
                .into(),
        };
        let pair = KeyPair::generate().unwrap();
        let dir = lab.shared_dir().join("tls");
        let pem = params.self_signed(&pair).unwrap().pem();
        std::fs::write(dir.join(format!("{name}.pem")), pem).unwrap();
        std::fs::write(dir.join(format!("{name}-key.pem")), pair.serialize_pem()).unwrap();
    };
    put("old", (2020, 1, 1), 0);
    let found = run(ca, "old.pem", "old-key.pem", &endpoint);
    found.has("fail", "certs", "CN=somebody ended on", "issue a new one");
    found.has(
        "warn",
        "certs",
        "not signed by an authority",
        "trusted-ca-file",
    );
    put("soon", (2020, 1, 1), 10);
    let found = run(ca, "soon.pem", "soon-key.pem", &endpoint);
    found.has("warn", "certs", "somebody ends in ", "issue a new one");
    put("young", (2999, 1, 1), 400_000);
    let found = run(ca, "young.pem", "young-key.pem", &endpoint);
    found.has("fail", "certs", "valid only from", "clock");
    // Another authority than the server's.
    let found = run("old.pem", cert, key, &endpoint);
    found.has("fail", "store", "TLS", "certificates");

    // Plain text where TLS is spoken, and nobody there.
    let plain = endpoint.replace("https", "http");
    let found = run(ca, cert, key, &plain);
    assert_eq!(found.status, 1, "{:#}", found.json);
    etcd.stop().unwrap();
    let found = run(ca, cert, key, &endpoint);
    found.fails_only("store", "refused", "is etcd running");
    etcd.start().unwrap();
}

#[test]
fn the_network_configuration() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(1);
    let store = format!("--store-dir={}/store", lab::SHARED_DIR);
    let run = || check(node, &["--", &store]);
    lab.put_config(r#"{"Network":"172.30.0.0/16","Backend":{"Type":"vxlan","TxChecksumOffload":"no","VNI":0}}"#)
        .unwrap();
    let found = run();
    found.fails_only(
        "config",
        "Backend.TxChecksumOffload",
        "flannelctl config set",
    );
    found.has("fail", "config", "Backend.VNI is 0", "");
    lab.put_config(r#"{"Network":"172.30.0.0/16","Networc":1,"Backend":{"Type":"vxlan"}}"#)
        .unwrap();
    run().has("warn", "config", "Networc is unknown", "");
    lab.put_lease(
        "172.31.9.0-24",
        r#"{"PublicIP":"192.168.78.9","BackendType":"vxlan"}"#,
    )
    .unwrap();
    lab.put_lease("172.30.9.0-24", "garbage").unwrap();
    let found = run();
    found.has("warn", "store", "172.31.9.0-24 does not fit", "restart");
    found.has("warn", "store", "172.30.9.0-24", "delete that key");
    lab.delete_config().unwrap();
    run().fails_only(
        "config",
        "there is no network configuration",
        "flannelctl config set",
    );
    let found = check(node, &["--", "-store-dir=/run/nowhere"]);
    found.fails_only("store", "/run/nowhere", "mount the directory");
}
