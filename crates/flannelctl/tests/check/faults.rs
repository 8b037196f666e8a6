//! Each fault of host and network, and the line that names it.

use std::process::Command;

use lab::{Lab, wait_for};

use crate::{SOON, check, sh, started};

#[test]
fn forwarding_that_is_off() {
    let lab = Lab::builder().nodes(2).dual().build().unwrap();
    started(&lab);
    let node = lab.node(1);
    sh(node, "echo 0 >/proc/sys/net/ipv4/ip_forward");
    let cure = "sysctl -w net.ipv4.ip_forward=1";
    check(node, &[]).fails_only("forwarding", "forwards no IPv4", cure);
    sh(
        node,
        "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding",
    );
    check(node, &[]).fails_only("forwarding", "forwards no IPv6", "sysctl -w");
    sh(
        node,
        "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; for d in all eth0 flannel.1; do echo 1 >/proc/sys/net/ipv4/conf/$d/rp_filter; done; \
         echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables",
    );
    let found = check(node, &[]);
    found.has("warn", "rp_filter", "flannel.1, eth0", "rp_filter=2");
    found.has("warn", "bridge", "is 0", "sysctl -w net.bridge");
    assert_eq!(found.status, 0);
}

#[test]
fn a_port_that_somebody_has() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(1);
    let store = format!("--store-dir={}/store", lab::SHARED_DIR);
    let taken = node
        .run(|| std::net::UdpSocket::bind("0.0.0.0:8472").unwrap())
        .unwrap();
    let us = format!("process {}", std::process::id());
    check(node, &["--", &store]).fails_only("port", &us, "another port");
    drop(taken);
    sh(
        node,
        "ip link add other type vxlan id 9 dev eth0 dstport 8472 && ip link set other up",
    );
    let found = check(node, &["--", &store]);
    found.has(
        "warn",
        "port",
        "another tunnel of the kernel's (other)",
        "VNIs",
    );
}

#[test]
fn a_path_that_takes_no_full_packets() {
    let lab = Lab::builder().nodes(2).build().unwrap();
    started(&lab);
    // A bridge leaves room for the four bytes of a VLAN tag.
    lab.fabric()
        .exec(["ip", "link", "set", "n2", "mtu", "1396"])
        .unwrap();
    let found = check(lab.node(1), &[]);
    found.fails_only("mtu", "only up to 1400", "\"MTU\": 1400 in Backend");
}

#[test]
fn a_firewall_between_the_nodes() {
    let lab = Lab::builder().nodes(2).build().unwrap();
    started(&lab);
    sh(
        lab.node(2),
        "nft add table ip wall; nft 'add chain ip wall in { type filter hook prerouting priority -300; }'; \
         nft add rule ip wall in udp dport 8472 drop",
    );
    let found = check(lab.node(1), &[]);
    found.fails_only("peers", "no answer through the tunnel", "UDP port (8472)");
}

#[test]
fn three_accounts_of_one_subnet() {
    let lab = Lab::builder().nodes(2).build().unwrap();
    started(&lab);
    let node = lab.node(1);
    let path = "/run/flannel/subnet.env";
    let good = node.read(path).unwrap();
    check(node, &[]).is_good();

    // The bridge is of an older lease.
    let subnet = node.subnet_env().unwrap();
    assert!(subnet.subnet.v4.is_some());
    sh(node, "ip address add 172.30.250.1/24 dev cni0");
    let found = check(node, &["--cni-conf-dir=/run/net.d"]);
    assert_eq!(
        found.status, 0,
        "no CNI configuration names cni0: {:#}",
        found.json
    );
    let conflist = r#"{"name":"n","cniVersion":"0.3.1","plugins":[{"type":"flannel"}]}"#;
    node.write("/run/net.d/10-flannel.conflist", conflist)
        .unwrap();
    let found = check(node, &["--cni-conf-dir=/run/net.d"]);
    found.has(
        "fail",
        "subnet",
        "cni0 still has 172.30.250.1/24",
        "repairBridge",
    );
    sh(node, "ip address del 172.30.250.1/24 dev cni0");
    check(node, &["--cni-conf-dir=/run/net.d"]).has("ok", "subnet", "cni0 suits", "");

    // Another subnet in the file than in the lease. A daemon that is awake would write its own again.
    let pid = node.flanneld().pid().unwrap().to_string();
    let signal = |name: &str| Command::new("kill").args([name, &pid]).status().unwrap();
    assert!(signal("-STOP").success());
    node.write(
        path,
        "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET=172.30.251.1/24\nFLANNEL_MTU=1450\n",
    )
    .unwrap();
    let found = check(node, &[]);
    found.fails_only(
        "subnet",
        "subnet.env says 172.30.251.0-24",
        "restart flanneld",
    );
    node.write(path, &good.replace("FLANNEL_MTU=1450", "FLANNEL_MTU=1480"))
        .unwrap();
    check(node, &[]).fails_only(
        "subnet",
        "MTU 1450, but subnet.env tells containers 1480",
        "restart",
    );
    node.write(path, "nonsense\n").unwrap();
    check(node, &[]).fails_only("subnet", "names no subnet", "writes it anew");
    sh(node, &format!("rm {path}"));
    check(node, &[]).fails_only("subnet", "though flanneld runs", "log");
    node.write(path, &good).unwrap();
    assert!(signal("-CONT").success());

    // No daemon, and its device gone.
    node.flanneld().stop().unwrap();
    sh(node, "ip link del flannel.1");
    let store = format!("--store-dir={}/store", lab::SHARED_DIR);
    let found = check(node, &["--", &store]);
    found.fails_only("subnet", "no device flannel.1", "start flanneld");

    // A lease that is nobody's any more.
    let key = lab
        .leases()
        .unwrap()
        .into_iter()
        .find(|(_, value)| value.contains("192.168.78.1\""));
    lab.delete_lease(&key.unwrap().0).unwrap();
    check(node, &["--", &store]).has(
        "fail",
        "subnet",
        "no lease has this node's public address",
        "",
    );
}

#[test]
fn an_interface_that_is_not_there() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let store = format!("--store-dir={}/store", lab::SHARED_DIR);
    let found = check(lab.node(1), &["--", &store, "-iface=eth7"]);
    found.fails_only("interface", "eth7", "-iface");
}

#[test]
fn programs_that_are_missing() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(1);
    // Nothing but what is in /run is seen by this shell.
    sh(
        node,
        "mkdir -p /run/empty && mount --bind /run/empty /usr/sbin",
    );
    let store = format!("--store-dir={}/store", lab::SHARED_DIR);
    let found = check(node, &["--", &store]);
    found.fails_only("rules", "iptables is not installed", "install the package");
    wait_for("the programs are back", SOON, || {
        node.exec(["umount", "/usr/sbin"]).map(drop)
    })
    .unwrap();
    check(node, &["--", &store]).has("ok", "rules", "iptables", "");
}
