//! The way to etcd: not there at the start, without a usable configuration, behind certificates and
//! passwords.

use std::time::Duration;

use lab::{Node, StoreKind, wait_for};

use crate::etcd_faults::good;
use crate::scene::{self, ETCD, SOON, mesh, meshed, says};

#[test]
fn without_etcd_at_the_start_it_waits() {
    let lab = scene::lab().nodes(2).store(ETCD).build().unwrap();
    let etcd = lab.etcd().unwrap();
    etcd.kill9().unwrap();
    let daemon = lab.node(1).flanneld();
    daemon.start().unwrap();
    says(daemon, &["WARN", "http://192.168.78.254:2379"]);
    assert_eq!(daemon.http_get("/readyz").unwrap().0, 503);
    assert!(lab.node(1).subnet_env().is_err(), "no subnet.env yet");
    let waits = Duration::from_secs(4);
    lab::holds_for("it waits, quietly", waits, || {
        match (daemon.ended(), daemon.log().matches("WARN").count()) {
            (Ok(None), 1) => Ok(()),
            seen => Err(format!("{seen:?}: {}", daemon.log())),
        }
    })
    .unwrap();
    etcd.start().unwrap();
    daemon.wait_ready(Duration::from_secs(3)).unwrap();
    lab.node(2).flanneld().start_ready(SOON).unwrap();
    meshed(&[lab.node(1), lab.node(2)]);
}

/// A configuration that cannot be used is told once, and mended without a restart.
#[test]
fn a_bad_configuration_heals_without_a_restart() {
    for store in [ETCD, StoreKind::Directory] {
        let lab = scene::lab().nodes(1).store(store).build().unwrap();
        lab.delete_config().unwrap();
        let daemon = lab.node(1).flanneld();
        daemon.start().unwrap();
        says(daemon, &["WARN", "config"]);
        for (text, named) in [
            ("{", "config"),
            (r#"{"Network": 7}"#, "Network"),
            (r#"{"Network": "10.0.0.0/33"}"#, "Network"),
            (r#"{"EnableIPv4": false}"#, "IPv6"),
            (r#"{"Network": "10.0.0.0/8", "SubnetLen": 31}"#, "SubnetLen"),
            (
                r#"{"Network": "10.0.0.0/8", "SubnetMin": "11.0.0.0"}"#,
                "SubnetMin",
            ),
            (
                r#"{"Network": "10.0.0.0/8", "SubnetMax": "10.0.0.7"}"#,
                "SubnetMax",
            ),
            (
                r#"{"EnableIPv6": true, "Network": "10.0.0.0/8"}"#,
                "IPv6Network",
            ),
            (
                r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "carrier-pigeon"}}"#,
                "carrier-pigeon",
            ),
            (
                r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan", "VNI": -1}}"#,
                "VNI",
            ),
            (
                r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan", "Port": 70000}}"#,
                "Port",
            ),
        ] {
            let before = daemon.log().matches("WARN").count();
            lab.put_config(text).unwrap();
            let look = || match daemon
                .log()
                .lines()
                .filter(|l| l.contains("WARN"))
                .nth(before)
            {
                Some(line) if line.contains(named) => Ok(()),
                Some(line) => Err(format!("{named} is not in {line}")),
                None => Err("nothing is said".into()),
            };
            wait_for(&format!("{text} is refused"), SOON, look).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(
                daemon.log().matches("WARN").count(),
                before + 1,
                "{}",
                daemon.log()
            );
            assert_eq!(daemon.ended().unwrap(), None, "{text}");
        }
        lab.put_config(r#"{"Network": "10.77.0.0/16"}"#).unwrap();
        let env = daemon.wait_ready(SOON).unwrap();
        assert_eq!(env.network.v4, Some("10.77.0.0/16".parse().unwrap()));
    }
}

fn arguments(node: &Node, args: &[&str]) {
    node.flanneld().set_args(args.iter().copied());
}

#[test]
fn tls_mutual_and_ca_only_and_wrong() {
    let lab = scene::lab()
        .nodes(2)
        .store(StoreKind::Etcd { tls: true })
        .build()
        .unwrap();
    lab.start().unwrap();
    mesh(&lab);
    let node = lab.node(1);
    let daemon = node.flanneld();
    let tls = lab.shared_dir().join("tls");
    let copy = |from: &str, to: &str| {
        std::fs::copy(tls.join(from), tls.join(to))
            .map(drop)
            .unwrap()
    };

    // A CA that did not sign the server's certificate: another lab's.
    let other = scene::lab()
        .nodes(1)
        .store(StoreKind::Etcd { tls: true })
        .build()
        .unwrap();
    std::fs::copy(
        other.shared_dir().join("tls/ca.pem"),
        tls.join("wrong-ca.pem"),
    )
    .unwrap();
    daemon.stop().unwrap();
    arguments(node, &["-etcd-cafile=/run/lab/tls/wrong-ca.pem"]);
    daemon.start().unwrap();
    let line = says(daemon, &["WARN", "certificate"]);
    assert!(line.contains("/run/lab/tls/wrong-ca.pem"), "{line}");
    assert_eq!(
        daemon.ended().unwrap(),
        None,
        "it waits: somebody may mend the file"
    );

    // Mended under the running daemon.
    copy("ca.pem", "wrong-ca.pem");
    daemon.wait_ready(SOON).unwrap();
    mesh(&lab);
}

#[test]
fn tls_with_only_a_ca_verifies_the_server() {
    // An etcd that asks for no client certificate.
    let lab = scene::lab()
        .nodes(2)
        .store(StoreKind::Etcd { tls: true })
        .build()
        .unwrap();
    let etcd = lab.etcd().unwrap();
    etcd.stop().unwrap();
    etcd.ask_for_client_certificates(false);
    etcd.start().unwrap();
    let only_ca = ["-etcd-certfile=", "-etcd-keyfile="];
    for node in lab.nodes() {
        arguments(node, &only_ca);
        node.flanneld().start().unwrap();
    }
    for node in lab.nodes() {
        node.flanneld().wait_ready(SOON).unwrap();
    }
    meshed(&[lab.node(1), lab.node(2)]);

    // Plain text is never spoken to an https endpoint, nor is a stranger trusted.
    let node = lab.node(1);
    node.flanneld().stop().unwrap();
    arguments(
        node,
        &["-etcd-certfile=", "-etcd-keyfile=", "-etcd-cafile="],
    );
    node.flanneld().start().unwrap();
    says(node.flanneld(), &["WARN", "certificate"]);
    assert_eq!(node.flanneld().http_get("/readyz").unwrap().0, 503);
}

#[test]
fn user_and_password() {
    const PASSWORD: &str = "cor-rect,horse";
    let lab = scene::lab().nodes(2).store(ETCD).build().unwrap();
    lab.etcd()
        .unwrap()
        .enable_auth("flannel", PASSWORD)
        .unwrap();
    let (one, two) = (lab.node(1), lab.node(2));
    let password = format!("-etcd-password={PASSWORD}");
    arguments(
        one,
        &[
            "-v=10",
            "-etcd-username=flannel",
            "-etcd-password=wrong-horse",
        ],
    );
    one.flanneld().start().unwrap();
    says(one.flanneld(), &["WARN", "etcd"]);
    assert_eq!(one.flanneld().http_get("/readyz").unwrap().0, 503);
    one.flanneld().kill9().unwrap();

    arguments(one, &["-v=10", "-etcd-username=flannel", &password]);
    two.write("/run/secret/password", &format!("{PASSWORD}\n"))
        .unwrap();
    arguments(
        two,
        &[
            "-v=10",
            "-etcd-username=flannel",
            "-etcd-password-file=/run/secret/password",
        ],
    );
    for node in [one, two] {
        node.flanneld().start_ready(SOON).unwrap();
    }
    meshed(&[one, two]);

    // Tokens die with etcd: they are fetched anew.
    let etcd = lab.etcd().unwrap();
    etcd.kill9().unwrap();
    etcd.start().unwrap();
    lab.put_lease(
        "172.30.250.0-24",
        &good("192.168.78.250", "02:00:00:00:00:fa"),
    )
    .unwrap();
    let look = || match one.picture().unwrap().has(&["route 172.30.250.0/24 "]) {
        true => Ok(()),
        false => Err(one.flanneld().log_tail(10)),
    };
    wait_for("followed with a new token", SOON, look).unwrap();
    for node in [one, two] {
        let log = node.flanneld().log();
        assert!(
            log.contains("TRACE") || log.contains("DEBUG"),
            "-v=10 says much"
        );
        assert!(
            !log.contains("horse"),
            "a password is in the log of {}",
            node.name()
        );
    }
}
