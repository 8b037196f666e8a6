//! The lab's etcd: a real one, in all the ways that people run theirs.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

use lab::{Lab, StoreKind};

#[test]
fn etcd_is_reached_stopped_killed_compacted() {
    let lab = Lab::builder()
        .nodes(1)
        .without_flanneld()
        .store(StoreKind::Etcd { tls: false })
        .build()
        .unwrap();
    let etcd = lab.etcd().unwrap();
    lab.put_lease("172.30.5.0-24", r#"{"PublicIP":"192.168.78.5"}"#)
        .unwrap();
    lab.node(1)
        .exec([
            "env",
            "ETCDCTL_API=3",
            "etcdctl",
            "--endpoints=http://192.168.78.254:2379",
            "get",
            "--",
            "/coreos.com/network/config",
        ])
        .unwrap();
    let before = etcd.requests().unwrap()["Range"];
    lab.leases().unwrap();
    assert_eq!(etcd.requests().unwrap()["Range"], before + 1);
    assert!(etcd.compact().unwrap() > 1);
    etcd.kill9().unwrap();
    assert!(lab.leases().is_err());
    etcd.start().unwrap();
    etcd.stop().unwrap();
    etcd.start().unwrap();
    assert_eq!(
        lab.leases().unwrap()["172.30.5.0-24"],
        r#"{"PublicIP":"192.168.78.5"}"#,
        "it kept its keys"
    );
    etcd.enable_auth("flannel", "secret").unwrap();
    assert_eq!(lab.leases().unwrap().len(), 1, "the lab logs in");
    let flannel = [
        "env",
        "ETCDCTL_API=3",
        "etcdctl",
        "--endpoints=http://192.168.78.254:2379",
    ];
    let get = |login: &str, key: &str| {
        lab.node(1)
            .exec(flannel.into_iter().chain([login, "get", key]))
    };
    assert!(
        get("--user=flannel:secret", "/coreos.com/network/config")
            .unwrap()
            .contains("172.30.0.0/16")
    );
    assert!(get("--user=flannel:wrong", "/coreos.com/network/config").is_err());
    assert!(get("--user=flannel:secret", "/other").is_err());
}

#[test]
fn etcd_with_tls_wants_a_certificate() {
    let lab = Lab::builder()
        .nodes(1)
        .without_flanneld()
        .store(StoreKind::Etcd { tls: true })
        .build()
        .unwrap();
    lab.put_lease("172.30.5.0-24", "{}").unwrap();
    assert_eq!(lab.leases().unwrap().len(), 1);
    let get = |args: &[&str]| {
        let ctl = [
            "env",
            "ETCDCTL_API=3",
            "etcdctl",
            "--endpoints=https://192.168.78.254:2379",
            "--dial-timeout=1s",
        ];
        lab.node(1).exec(ctl.iter().chain(args).chain(&[
            "--command-timeout=1s",
            "get",
            "/coreos.com/network/config",
        ]))
    };
    let pair = [
        "--cert=/run/lab/tls/flanneld.pem",
        "--key=/run/lab/tls/flanneld-key.pem",
    ];
    get(&["--cacert=/run/lab/tls/ca.pem", pair[0], pair[1]]).unwrap();
    assert!(
        get(&["--cacert=/run/lab/tls/ca.pem"]).is_err(),
        "no client certificate"
    );
    assert!(
        get(&pair).is_err(),
        "an authority that the machine does not know"
    );
    let args = lab.etcd().unwrap().flanneld_args().join(" ");
    assert!(
        args.contains("--etcd-endpoints=https://192.168.78.254:2379"),
        "{args}"
    );
}
