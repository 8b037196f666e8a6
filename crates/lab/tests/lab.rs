//! The lab itself, without any flanneld: what the other tests stand on must hold.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use lab::{Error, Flow, Lab, Pinger, SubnetEnv, holds_for, wait_for};
use model::Family;

const SOON: Duration = Duration::from_secs(10);

fn bare(nodes: usize) -> Lab {
    Lab::builder()
        .nodes(nodes)
        .without_flanneld()
        .build()
        .unwrap()
}

/// The subnet that node `n` has in these tests, as a flanneld would have written it.
fn subnet(n: usize) -> SubnetEnv {
    SubnetEnv::parse(&format!(
        "FLANNEL_NETWORK=10.9.0.0/16\nFLANNEL_SUBNET=10.9.{n}.1/24\nFLANNEL_IPV6_NETWORK=fd09::/48\n\
         FLANNEL_IPV6_SUBNET=fd09:0:0:{n}::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    ))
    .unwrap()
}

/// Two nodes, a pod on each, and the routes of a host-gw network between them.
fn two_by_hand() -> Lab {
    let lab = bare(2);
    for (n, peer) in [(1, 2), (2, 1)] {
        let node = lab.node(n);
        node.add_pods_from(&subnet(n), 1).unwrap();
        node.exec([
            "ip",
            "route",
            "add",
            &format!("10.9.{peer}.0/24"),
            "via",
            &lab.node(peer).ipv4().to_string(),
        ])
        .unwrap();
        node.exec([
            "ip",
            "-6",
            "route",
            "add",
            &format!("fd09:0:0:{peer}::/64"),
            "via",
            &lab.node(peer).ipv6().to_string(),
        ])
        .unwrap();
    }
    lab
}

#[test]
fn pods_reach_each_other_by_routes_and_only_by_routes() {
    let lab = two_by_hand();
    let pings = lab.ping_matrix().unwrap();
    assert_eq!(
        pings.len(),
        4,
        "two pods, each way, both families: {pings:?}"
    );
    assert!(pings.iter().all(|p| p.rtt.is_some()), "{pings:?}");
    lab.must_ping().unwrap();

    // The independent witness: `ping` itself.
    let there = lab.node(2).pods()[0].ip(Family::V4).unwrap().to_string();
    lab.node(1).pods()[0]
        .exec(["ping", "-c1", "-W1", &there])
        .unwrap();

    lab.node(1)
        .exec(["ip", "route", "del", "10.9.2.0/24"])
        .unwrap();
    let lost: Vec<_> = lab
        .ping_matrix()
        .unwrap()
        .into_iter()
        .filter(|p| p.rtt.is_none())
        .collect();
    assert_eq!(
        lost.len(),
        2,
        "IPv4 needs the route in both directions, IPv6 has its own: {lost:?}"
    );
    assert!(lost.iter().all(|p| p.ip.is_ipv4()));
    assert!(
        lab.must_ping()
            .unwrap_err()
            .to_string()
            .contains("2 of 4 pings lost: n1-p1 -> n2-p1 (10.9.2.2)")
    );
}

#[test]
fn a_picture_shows_what_ip_shows() {
    let lab = two_by_hand();
    let node = lab.node(1);
    let batch = [
        "link add flannel.7 address 02:00:00:00:00:07 type vxlan id 7 local 192.168.78.1 dev eth0 dstport 8472 nolearning",
        "link set flannel.7 up",
        "addr add 10.9.1.0/32 dev flannel.7",
        "neigh add 10.9.3.0 lladdr 02:00:00:00:00:03 dev flannel.7 nud permanent",
        "nexthop add id 9 via 10.9.3.0 dev flannel.7 onlink",
        "route add 10.9.3.0/24 nhid 9",
        "route add 10.9.4.0/24 via 10.9.4.0 dev flannel.7 onlink proto 241",
    ];
    node.ip_batch(&batch.map(String::from)).unwrap();
    node.exec(
        "bridge fdb append 02:00:00:00:00:03 dev flannel.7 dst 192.168.78.3 self permanent"
            .split(' '),
    )
    .unwrap();
    let picture = node.picture().unwrap();
    for line in [
        "link flannel.7 up mtu 1450 address 02:00:00:00:00:07 type vxlan id 7 local 192.168.78.1 dstport 8472",
        "addr 10.9.1.0/32 dev flannel.7",
        "neigh 10.9.3.0 dev flannel.7 lladdr 02:00:00:00:00:03",
        "nexthop via 10.9.3.0 dev flannel.7 onlink",
        "route 10.9.3.0/24 via 10.9.3.0 dev flannel.7 onlink nhid proto 3",
        "route 10.9.4.0/24 via 10.9.4.0 dev flannel.7 onlink proto 241",
        "route 10.9.2.0/24 via 192.168.78.2 dev eth0 proto 3",
        "route fd09:0:0:2::/64 via fd78:78::2 dev eth0 metric 1024 proto 3",
        "fdb 02:00:00:00:00:03 dev flannel.7 dst 192.168.78.3",
    ] {
        assert!(
            picture.lines().any(|l| l == line),
            "no line {line:?} in\n{picture}"
        );
    }
    node.exec(["ip", "link", "del", "flannel.7"]).unwrap();
    let gone = picture.difference(&node.picture().unwrap());
    assert_eq!(gone.len(), 7, "{gone:#?}");
    assert!(gone.iter().all(|line| line.starts_with("- ")));
}

#[test]
fn repairs_are_measured() {
    let lab = two_by_hand();
    let node = lab.node(1);
    let fault = || {
        node.exec([
            "sh",
            "-c",
            "ip route del 10.9.2.0/24 && sleep 0.1 && ip route add 10.9.2.0/24 via 192.168.78.2",
        ])
    };
    let repair = node.measure_repair(|| fault().map(drop), SOON).unwrap();
    assert!(
        repair.took >= Duration::from_millis(100) && repair.took < Duration::from_secs(1),
        "{repair:?}"
    );
    assert_eq!(
        repair.seen,
        ["- route 10.9.2.0/24 via 192.168.78.2 dev eth0 proto 3"]
    );

    let nobody_repairs = || node.exec(["ip", "route", "del", "10.9.2.0/24"]).map(drop);
    let said = node
        .measure_repair(nobody_repairs, Duration::from_millis(300))
        .unwrap_err()
        .to_string();
    assert!(said.contains("- route 10.9.2.0/24"), "{said}");
    let said = node
        .measure_repair(|| Ok(()), SOON)
        .unwrap_err()
        .to_string();
    assert!(said.contains("changed nothing"), "{said}");
}

#[test]
fn pinger_and_flow_see_an_outage_and_nothing_else() {
    let lab = two_by_hand();
    let (from, to) = (lab.node(1).pods()[0].clone(), lab.node(2).pods()[0].clone());
    let tick = Duration::from_millis(10);
    for family in Family::ALL {
        let ip: IpAddr = to.ip(family).unwrap();
        let quiet = Pinger::start(&from, ip, tick).unwrap();
        holds_for("a quiet network", tick * 30, || Ok::<_, Error>(())).unwrap();
        let quiet = quiet.stop();
        assert!(quiet.lost == 0 && quiet.sent >= 20, "{quiet:?}");

        let pinger = Pinger::start(&from, ip, tick).unwrap();
        let flow = Flow::start(&from, &to, ip, tick).unwrap();
        let (net, via) = match family {
            Family::V4 => ("10.9.2.0/24", lab.node(2).ip(family)),
            Family::V6 => ("fd09:0:0:2::/64", lab.node(2).ip(family)),
        };
        let outage = format!(
            "ip route replace blackhole {net}; sleep 0.4; ip route del blackhole {net}; ip route replace {net} via {via}"
        );
        lab.node(1).exec(["sh", "-c", &outage]).unwrap();
        wait_for("pods reach each other again", SOON, || lab.must_ping()).unwrap();
        let (pings, flow) = (pinger.stop(), flow.stop());
        assert!(pings.lost >= 30 && pings.lost < pings.sent, "{pings:?}");
        assert!(pings.longest_gap >= Duration::from_millis(390), "{pings:?}");
        assert!(
            flow.broken.is_none() && flow.longest_stall >= Duration::from_millis(300),
            "{flow:?}"
        );
        assert!(flow.echoed > 0);
    }
    let took = lab::bulk(&from, &to, to.ip(Family::V4).unwrap(), 50_000_000).unwrap();
    assert!(took < SOON, "50 MB took {took:?}");
}

#[test]
fn labs_with_the_same_addresses_do_not_meet() {
    let labs: Vec<Lab> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..3).map(|_| s.spawn(two_by_hand)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    labs.iter().for_each(|lab| lab.must_ping().unwrap());
    labs[0]
        .node(1)
        .exec(["ip", "link", "set", "eth0", "down"])
        .unwrap();
    labs[0].node(1).write("/run/flannel/here", "0").unwrap();
    assert!(labs[0].must_ping().is_err());
    labs[1].must_ping().unwrap();
    assert!(labs[1].node(1).read("/run/flannel/here").is_err());
    assert!(
        labs[0].node(2).read("/run/flannel/here").is_err(),
        "each node has a /run of its own"
    );
    assert!(
        !std::path::Path::new("/run/flannel/here").exists(),
        "not the machine's"
    );
}

#[test]
fn a_directory_store_is_seen_by_all() {
    let lab = Lab::builder()
        .nodes(2)
        .without_flanneld()
        .ipv6(true)
        .build()
        .unwrap();
    let config: serde_json::Value =
        serde_json::from_str(&lab.node(2).read("/run/lab/store/config").unwrap()).unwrap();
    assert_eq!(config["Network"], "172.30.0.0/16");
    assert_eq!(config["EnableIPv6"], true);
    assert_eq!(config["Backend"]["Type"], "vxlan");
    lab.put_lease("172.30.5.0-24", r#"{"PublicIP":"192.168.78.5"}"#)
        .unwrap();
    assert_eq!(
        lab.leases().unwrap()["172.30.5.0-24"],
        r#"{"PublicIP":"192.168.78.5"}"#
    );
    lab.node(1)
        .exec(["test", "-f", "/run/lab/store/subnets/172.30.5.0-24"])
        .unwrap();
    lab.delete_lease("172.30.5.0-24").unwrap();
    lab.delete_lease("172.30.5.0-24").unwrap();
    assert!(lab.leases().unwrap().is_empty());
}

#[test]
fn what_fails_says_where_and_why() {
    let lab = bare(1);
    let node = lab.node(1);
    let said = |r: Result<String, Error>| r.unwrap_err().to_string();
    let text = said(node.exec(["ip", "link", "show", "nosuch"]));
    assert!(
        text.starts_with("n1: `ip link show nosuch` failed") && text.contains("does not exist"),
        "{text}"
    );
    let text = said(node.exec(["no-such-program"]));
    assert!(text.contains("no-such-program is not installed"), "{text}");
    let text = node
        .ip_batch(&["link set lo up".into(), "link set nosuch up".into()])
        .unwrap_err()
        .to_string();
    assert!(text.contains("`ip link set nosuch up` failed"), "{text}");
    let text = wait_for("the moon is blue", Duration::from_millis(20), || {
        Err::<(), _>("white")
    })
    .unwrap_err()
    .to_string();
    assert_eq!(
        text,
        "the moon is blue: not so after 20ms; last seen: white"
    );
    let text = Lab::builder()
        .bin_dir("/nosuch")
        .nodes(0)
        .build()
        .err()
        .unwrap()
        .to_string();
    assert!(text.contains("0 nodes"), "{text}");
    let missing = Command::new("true").env("X", "").status();
    assert!(missing.is_ok());
}
