//! Where nothing is wrong, nothing is said to be; and nothing is changed.

use lab::{Lab, StoreKind, wait_for};
use serde_json::json;

use crate::{CTL, SOON, check, sh, started};

#[test]
fn a_healthy_node_is_all_right_and_stays_as_it_is() {
    let lab = Lab::builder()
        .nodes(3)
        .dual()
        .store(StoreKind::Etcd { tls: true })
        .build()
        .unwrap();
    started(&lab);
    let node = lab.node(1);
    // A bridge comes up in its own time.
    let look = "ip link | sed 's/ state [A-Z]*//'; ip address show up | grep inet; ip route; ip -6 route; bridge fdb; \
                iptables-save -t nat | grep -v '^#' | sed 's/\\[.*//'; find /run/flannel /var/lib | sort; sysctl -a 2>/dev/null | grep -E 'forward|rp_filter'";
    let before = sh(node, look);
    let found = check(node, &[]);
    found.is_good();
    let after = sh(node, look);
    let other = before.lines().zip(after.lines()).find(|(b, a)| b != a);
    assert_eq!(other, None, "it changed something");
    assert_eq!(
        after.lines().count(),
        before.lines().count(),
        "it changed something"
    );
    for (about, text) in [
        ("settings", "the running flanneld"),
        ("certs", "signed by an authority"),
        ("files", "mode 0600"),
        ("store", "etcd https://"),
        ("store", "3 usable leases"),
        ("config", "172.30.0.0/16, fd00:30::/48, vxlan"),
        ("kernel", "vxlan over IPv6"),
        ("rules", "iptables"),
        ("forwarding", "net.ipv4.ip_forward is on"),
        ("port", "8472"),
        ("subnet", "the lease is"),
        ("subnet", "flannel-v6.1 is up"),
        ("peers", "packets of 1500 bytes arrive"),
        ("peers", "answers pings and TCP"),
        ("checksums", "no wrong checksum"),
    ] {
        found.has("ok", about, text, "");
    }
    // For people: a line each, and a sum.
    let text = node.exec([CTL, "check"]).unwrap();
    assert!(text.lines().any(|l| l.starts_with("ok    store")), "{text}");
    assert!(text.trim_end().ends_with("0 FAIL"), "{text}");
}

#[test]
fn it_works_before_flanneld_ever_ran() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let store = format!("--store-dir={}/store", lab::SHARED_DIR);
    let found = check(lab.node(1), &["--", &store]);
    found.has("ok", "flanneld", "does not run", "");
    found.has("ok", "settings", "the flags after --", "");
    found.has(
        "warn",
        "subnet",
        "no container starts before",
        "start flanneld",
    );
    found.has("ok", "peers", "no other nodes", "");
    assert_eq!(found.status, 0, "{:#}", found.json);
}

#[test]
fn the_settings_are_those_of_the_file_the_flags_or_the_daemon() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(1);
    let file = "/run/flanneld.env";
    let text = format!("FLANNELD_STORE_DIR=\"{}/store\"\n", lab::SHARED_DIR);
    node.write(file, &text).unwrap();
    let found = check(node, &["--env-file", file]);
    found.has("ok", "settings", file, "");
    found.has("ok", "config", "172.30.0.0/16", "");
    // What flanneld would refuse is a wrong command line.
    let output = node.output([CTL, "check", "--", "-no-such-flag"]).unwrap();
    assert_eq!(output.status.code(), Some(2));
    // A daemon with a file of its own somewhere else.
    node.flanneld()
        .set_args(["-subnet-file=/run/elsewhere/subnet.env"]);
    node.flanneld().start().unwrap();
    wait_for("flanneld is ready", SOON, || {
        node.read("/run/elsewhere/subnet.env")
    })
    .unwrap();
    check(node, &[]).has("ok", "subnet", "/run/elsewhere/subnet.env", "");
}

#[test]
fn host_gw_needs_no_tunnel() {
    let lab = Lab::builder()
        .nodes(2)
        .backend(json!({ "Type": "host-gw" }))
        .build()
        .unwrap();
    started(&lab);
    let found = check(lab.node(1), &[]);
    found.is_good();
    found.has("ok", "peers", "packets of 1500 bytes arrive", "");
    assert!(!found.json.to_string().contains("8472"), "{:#}", found.json);
}
