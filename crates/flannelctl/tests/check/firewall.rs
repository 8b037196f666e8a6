//! The host's own rules, and other things of the kernel that stand in the way of packets.

use lab::{Lab, Node};

use crate::{CTL, Found, check, sh, started};

fn pair(args: &[&str]) -> Lab {
    let lab = Lab::builder()
        .nodes(2)
        .flanneld_args(args.iter().copied())
        .build()
        .unwrap();
    started(&lab);
    lab
}

/// No line says that packets are refused.
#[track_caller]
fn passes(found: &Found) {
    found.has("ok", "firewall", "may pass", "");
    found.is_good();
}

#[test]
fn a_policy_that_drops_where_flannel_accepts_nothing() {
    let lab = pair(&["-iptables-forward-rules=false"]);
    let node = lab.node(1);
    passes(&check(node, &[]));
    for variant in ["nft", "legacy"] {
        sh(node, &format!("iptables-{variant} -P FORWARD DROP"));
        let found = check(node, &[]);
        found.fails_only(
            "firewall",
            &format!("iptables-{variant}, table filter, chain FORWARD: policy DROP"),
            "-iptables-forward-rules",
        );
        // An administrator's own rules do as well as flannel's.
        let accept = |way| format!("iptables-{variant} -A FORWARD {way} 172.30.0.0/16 -j ACCEPT; ");
        sh(node, &(accept("-s") + &accept("-d")));
        passes(&check(node, &[]));
        sh(
            node,
            &format!("iptables-{variant} -F FORWARD; iptables-{variant} -P FORWARD ACCEPT"),
        );
    }
}

#[test]
fn rules_that_refuse_before_flannel_accepts() {
    let lab = pair(&[]);
    let node = lab.node(1);
    // As docker sets it; flannel's rules accept ahead of that.
    sh(node, "iptables -P FORWARD DROP");
    passes(&check(node, &[]));
    for (insert, delete, text) in [
        (
            "iptables -I FORWARD -s 172.30.0.0/16 -j DROP",
            "iptables -D FORWARD 1",
            "-A FORWARD -s 172.30.0.0/16 -j DROP",
        ),
        (
            "iptables-legacy -A FORWARD -i flannel.1 -j REJECT",
            "iptables-legacy -F FORWARD",
            "-A FORWARD -i flannel.1 -j REJECT",
        ),
        (
            "iptables -t raw -A PREROUTING ! -i eth0 -d 172.30.0.0/16 -j DROP",
            "iptables -t raw -F",
            "table raw, chain PREROUTING",
        ),
        (
            "nft add table inet wall; nft 'add chain inet wall passing { type filter hook forward priority 10; policy drop; }'; \
             nft add rule inet wall passing ct state established,related accept",
            "nft delete table inet wall",
            "nft, table inet wall, chain passing: policy drop",
        ),
    ] {
        sh(node, insert);
        let found = check(node, &[]);
        found.has("fail", "firewall", text, "172.30.0.0/16");
        assert_eq!(found.status, 1);
        sh(node, delete);
        passes(&check(node, &[]));
    }
    // Whether this one lets them pass depends on the set.
    sh(
        node,
        "nft -f - <<'E'\ntable inet wall {\n set doors { type ifname; elements = { \"flannel.1\" }; }\n \
         chain passing { type filter hook forward priority 10; policy drop; iifname @doors accept; oifname @doors accept; }\n}\nE",
    );
    let found = check(node, &[]);
    found.has("warn", "firewall", "unless an earlier rule", "");
    assert_eq!(found.status, 0);
}

#[test]
fn before_flanneld_ran_its_own_rules_are_taken_into_account() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(1);
    let store = format!("--store-dir={}/store", lab::SHARED_DIR);
    sh(node, "iptables -P FORWARD DROP");
    let found = check(node, &["--", &store]);
    found.has("warn", "firewall", "until flanneld runs", "start flanneld");
    assert_eq!(found.status, 0, "{:#}", found.json);
    let found = check(node, &["--", &store, "-iptables-forward-rules=false"]);
    found.fails_only("firewall", "policy DROP", "iptables -I FORWARD");
}

#[test]
fn a_bridge_of_another_length_and_routes_that_drop() {
    let lab = pair(&[]);
    let node = lab.node(1);
    let conflist = r#"{"name":"n","cniVersion":"0.3.1","plugins":[{"type":"flannel"}]}"#;
    node.write("/run/net.d/10-flannel.conflist", conflist)
        .unwrap();
    let own = node.subnet_env().unwrap().subnet.v4.unwrap();
    let (address, network) = (own.addr(), own.trunc());
    sh(
        node,
        &format!("ip address del {own} dev cni0; ip address add {address}/25 dev cni0"),
    );
    let found = check(node, &["--cni-conf-dir=/run/net.d"]);
    found.has(
        "fail",
        "subnet",
        &format!("cni0 has {address}/25, of another length than the lease"),
        "repairBridge",
    );
    sh(
        node,
        &format!("ip address del {address}/25 dev cni0; ip address add {own} dev cni0"),
    );

    let half = ipnet::IpNet::new(network.addr(), 25).unwrap();
    sh(node, &format!("ip route add blackhole {half}"));
    let delete = format!("ip route del blackhole {half}");
    check(node, &[]).fails_only("subnet", "lies in the own subnet", &delete);
    sh(
        node,
        &format!("{delete}; ip route add blackhole {network} metric 9"),
    );
    let found = check(node, &[]);
    found.has(
        "warn",
        "subnet",
        "-ip-blackhole-route is not set",
        "metric 9",
    );
    assert_eq!(found.status, 0);
}

#[test]
fn router_advertisements_are_a_warning_where_nothing_drops_them() {
    let lab = pair(&[]);
    let node = lab.node(1);
    check(node, &[]).has("ok", "accept_ra", "not believed", "");
    // Without the daemon nobody restores the table.
    node.flanneld().stop().unwrap();
    let store = format!("--store-dir={}/store", lab::SHARED_DIR);
    let believe = "echo 0 >/proc/sys/net/ipv6/conf/flannel.1/forwarding; echo 1 >/proc/sys/net/ipv6/conf/flannel.1/accept_ra";
    sh(node, believe);
    check(node, &["--", &store]).has("ok", "accept_ra", "not believed", "");
    sh(node, "nft delete table inet flannel-guard-172.30.0.0-16");
    let found = check(node, &["--", &store]);
    found.has("warn", "accept_ra", "flannel.1", "flannel.1/accept_ra=0");
}

/// Root in a pod of the DaemonSet: two capabilities, the host's network, and none of its directories.
fn in_a_pod(node: &Node, capabilities: &str, args: &[&str]) -> Found {
    let bounding = format!("--bounding-set=-all{capabilities}");
    let inherited = format!("--inh-caps=-all{capabilities}");
    let command = [
        &[
            "env",
            "KUBERNETES_SERVICE_HOST=10.96.0.1",
            "setpriv",
            &bounding,
            &inherited,
            "--no-new-privs",
            CTL,
            "check",
            "--json",
        ],
        args,
    ];
    crate::found(node.output(command.concat()).unwrap())
}

#[test]
fn in_a_pod_what_cannot_be_looked_at_is_skipped() {
    let lab = pair(&[]);
    let node = lab.node(1);
    // Other than in a pod, the daemon has more rights here, and may therefore not be looked into.
    let store = format!("--store-dir={}/store", lab::SHARED_DIR);
    let flags = ["--", &store];
    let found = in_a_pod(node, ",+net_admin,+net_raw", &flags);
    found.is_good();
    found.has(
        "skip",
        "kernel",
        "network namespace was denied",
        "on the host",
    );
    passes(&found);
    // Rights that a chart may leave out.
    let found = in_a_pod(node, ",+net_admin", &flags);
    found.has("skip", "peers", "CAP_NET_RAW", "");
    found.is_good();
}
