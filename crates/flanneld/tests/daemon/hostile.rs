//! A store full of leases that cannot be: each is told once, none is believed, the good ones work.

use std::time::Duration;

use lab::{Lab, Node, Picture, StoreKind, holds_for, wait_for};
use model::Family::{V4, V6};
use serde_json::json;

use crate::lies::{Leases, Victim, good, hostile, thirds};
use crate::scene::{self, ETCD, SOON, mesh};

/// How many warnings or errors of `log` name `key`.
fn told(log: &str, key: &str) -> usize {
    let naming =
        |line: &&str| (line.contains("WARN") || line.contains("ERROR")) && line.contains(key);
    log.lines().filter(naming).count()
}

/// Each lease has exactly one line in `log`.
fn one_line_each(log: &str, leases: &Leases) -> Result<(), String> {
    let wrong = leases.iter().filter(|(key, _)| told(log, key.trim()) != 1);
    let wrong: Vec<String> = wrong
        .map(|(key, value)| {
            let lines: Vec<&str> = log
                .lines()
                .filter(|line| line.contains(key.trim()))
                .collect();
            format!("{key:?} {value:.200}:\n    {}", lines.join("\n    "))
        })
        .collect();
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "{} of {}:\n{}",
            wrong.len(),
            leases.len(),
            wrong.join("\n")
        )),
    }
}

/// Waits until the log of `node`, from `start` on, has one line for each lease. What is young in a
/// directory may be half-written, and is told only when it stays so.
fn tells_once(node: &Node, start: usize, leases: &Leases, label: &str) {
    let look = || one_line_each(&node.flanneld().log()[start..], leases);
    wait_for(label, SOON, look).unwrap_or_else(|e| panic!("{label}: {e}"));
}

/// Waits until a good lease that was put now has its route: then all that was put before is read.
fn read_until_here(lab: &Lab, node: &Node, third: u8) {
    let (key, mac) = (
        format!("172.30.{third}.0-24"),
        format!("02:00:00:00:ff:{third:02x}"),
    );
    lab.put_lease(&key, &good("192.168.78.201", &mac).to_string())
        .unwrap();
    let route = format!("route 172.30.{third}.0/24 ");
    let look = |there: bool| {
        let picture = node.picture().unwrap();
        match picture.has(&[&route]) == there {
            true => Ok(()),
            false => Err(format!(
                "{route}: {there} expected:\n{}",
                node.flanneld().log_tail(5)
            )),
        }
    };
    wait_for("a good lease is used", SOON, || look(true)).unwrap();
    lab.delete_lease(&key).unwrap();
    wait_for("a good lease is gone", SOON, || look(false)).unwrap();
}

fn unchanged(before: &Picture, node: &Node, label: &str) {
    let difference = before.difference(&node.picture().unwrap());
    assert!(difference.is_empty(), "{label}: {difference:#?}");
}

fn leases_that_cannot_be(label: &str, store: StoreKind) {
    let lab = scene::lab().nodes(3).store(store).build().unwrap();
    lab.start().unwrap();
    mesh(&lab);
    let node = lab.node(1);
    let before = node.picture().unwrap();
    let victim = Victim::of(node, lab.node(2));
    let mut free = thirds(&lab);
    let last = free.next().unwrap();
    let leases = hostile(&victim, free);

    // As news, to a daemon that runs.
    for (key, value) in &leases {
        lab.put_lease(key, value).unwrap();
    }
    read_until_here(&lab, node, last);
    unchanged(&before, node, label);
    tells_once(node, 0, &leases, &format!("{label}, as news"));

    // As the listing, to a daemon that starts.
    node.flanneld().stop().unwrap();
    let earlier = node.flanneld().log().len();
    node.flanneld().start_ready(SOON).unwrap();
    read_until_here(&lab, node, last);
    unchanged(&before, node, label);
    tells_once(node, earlier, &leases, &format!("{label}, as the listing"));
    let log = || node.flanneld().log()[earlier..].to_string();
    mesh(&lab);

    // And not again when everything is listed once more.
    match lab.etcd() {
        Some(etcd) => {
            etcd.kill9().unwrap();
            etcd.start().unwrap();
            read_until_here(&lab, node, last);
            one_line_each(&log(), &leases).unwrap();
        }
        None => {
            let more_than_a_poll = Duration::from_secs(11);
            holds_for("one line each", more_than_a_poll, || {
                one_line_each(&log(), &leases)
            })
            .unwrap();
        }
    }
    mesh(&lab);
    for key in leases.keys() {
        lab.delete_lease(key).unwrap();
    }
    read_until_here(&lab, node, last);
    unchanged(&before, node, label);
    mesh(&lab);
    eprintln!(
        "{label}: {} leases that cannot be, one line each",
        leases.len()
    );
}

#[test]
fn leases_that_cannot_be_in_etcd() {
    leases_that_cannot_be("etcd", ETCD);
}

#[test]
fn leases_that_cannot_be_in_a_directory() {
    leases_that_cannot_be("directory", StoreKind::Directory);
}

/// What only a directory can hold.
#[test]
fn files_that_are_no_leases() {
    let lab = scene::lab().nodes(2).build().unwrap();
    lab.start().unwrap();
    mesh(&lab);
    let node = lab.node(1);
    let before = node.picture().unwrap();
    let mut free = thirds(&lab);
    let last = free.next().unwrap();
    let mut name = || format!("172.30.{}.0-24", free.next().unwrap());
    let names: Vec<String> = (0..4).map(|_| name()).collect();
    let script = format!(
        "cd /run/lab/store/subnets && mkfifo {} && mkdir {} && \
         ln -s /dev/zero {} && truncate -s 3G {} && touch .hidden && ln -s nowhere {}",
        names[0],
        names[1],
        names[2],
        names[3],
        // Leads to no file: there is none.
        name()
    );
    node.exec(["sh", "-c", &script]).unwrap();
    let told = names.iter().map(String::as_str).chain([".hidden"]);
    let leases: Leases = told.map(|name| (name.into(), String::new())).collect();
    read_until_here(&lab, node, last);
    tells_once(node, 0, &leases, "files");
    unchanged(&before, node, "files");
    node.flanneld().restart(SOON).unwrap();
    mesh(&lab);
    unchanged(&before, node, "files, restart");
    assert!(node.flanneld().usage().unwrap().peak_rss_kib < 64 << 10);
}

/// One line for very many, and one for each later one.
#[test]
fn a_store_full_of_garbage_is_a_summary() {
    let lab = scene::lab().nodes(2).build().unwrap();
    let node = lab.node(1);
    let script = "mkdir -p /run/lab/store/subnets && cd /run/lab/store/subnets && \
                  for n in $(seq 3000); do echo garbage > 10.$((n / 250)).$((n % 250)).0-24; done";
    node.exec(["sh", "-c", script]).unwrap();
    lab.start().unwrap();
    mesh(&lab);
    let skipped = |count: usize| {
        let metric = format!("flannel_store_skipped_keys {count}\n");
        let look = || match node.flanneld().http_get("/metrics") {
            Ok((_, text)) if text.contains(&metric) => Ok(()),
            other => Err(format!("{other:?}")),
        };
        wait_for(&metric, SOON, look).unwrap();
    };
    skipped(3000);
    let lines = |key: &str| told(&node.flanneld().log(), key);
    // Those that are young are looked at twice before they are believed to be garbage.
    let log = node.flanneld().log();
    let summaries = log.lines().filter(|line| line.contains("delete them"));
    eprintln!("{}", summaries.collect::<Vec<_>>().join("\n"));
    assert!(
        (1..=4).contains(&lines("10.")),
        "{}",
        node.flanneld().log_tail(20)
    );
    for (n, key) in ["10.100.0.0-24", "10.101.0.0-24"].iter().enumerate() {
        lab.put_lease(key, "{").unwrap();
        skipped(3001 + n);
        assert_eq!(lines(key), 1);
    }
    lab.delete_lease("10.100.0.0-24").unwrap();
    skipped(3001);
    mesh(&lab);
}

#[test]
fn a_lease_may_turn_bad_and_good_again() {
    for store in [ETCD, StoreKind::Directory] {
        let lab = scene::lab().nodes(2).store(store).build().unwrap();
        lab.start().unwrap();
        mesh(&lab);
        let node = lab.node(1);
        let third = thirds(&lab).next().unwrap();
        let (key, route) = (
            format!("172.30.{third}.0-24"),
            format!("route 172.30.{third}.0/24 "),
        );
        let text = good("192.168.78.200", "02:00:00:00:02:00").to_string();
        let has_route = |there: bool| {
            let look = || match node.picture().unwrap().has(&[&route]) == there {
                true => Ok(()),
                false => Err(node.flanneld().log_tail(5)),
            };
            wait_for(&format!("{key} has a route: {there}"), SOON, look).unwrap();
        };
        for round in 1..=3 {
            lab.put_lease(&key, &text).unwrap();
            has_route(true);
            lab.put_lease(&key, "{ half").unwrap();
            has_route(false);
            assert_eq!(told(&node.flanneld().log(), &key), round);
        }
        lab.put_lease(&key, &text).unwrap();
        has_route(true);
        mesh(&lab);
    }
}

/// The other family's forms of the same lies.
#[test]
fn ipv6_leases_that_cannot_be() {
    let lab = scene::lab()
        .nodes(2)
        .ipv4(false)
        .ipv6(true)
        .store(ETCD)
        .build()
        .unwrap();
    lab.start().unwrap();
    mesh(&lab);
    let node = lab.node(1);
    let before = node.picture().unwrap();
    let own = node.subnet_env().unwrap().cidr(V6).unwrap();
    let lease = |ip: &str, mac: &str| {
        json!({
            "PublicIP": null,
            "PublicIPv6": ip,
            "BackendType": "vxlan",
            "BackendV6Data": {"VNI": 1, "VtepMAC": mac},
        })
        .to_string()
    };
    let (ip, mac) = ("fd78:78::200", "02:00:00:00:02:00");
    let mut leases = Leases::new();
    for (key, ip, mac) in [
        ("0.0.0.0-0&fd00:31::-64".to_string(), ip, mac),
        ("0.0.0.0-0&fd00:30::-48".into(), ip, mac),
        ("0.0.0.0-0&::-0".into(), ip, mac),
        (format!("0.0.0.0-0&{}-80", own.addr()), ip, mac),
        ("0.0.0.0-0&ff02::-64".into(), ip, mac),
        ("0.0.0.0-0&fd00:30:0:ff01::-64".into(), "ff02::1", mac),
        ("0.0.0.0-0&fd00:30:0:ff02::-64".into(), "::1", mac),
        ("0.0.0.0-0&fd00:30:0:ff03::-64".into(), "::", mac),
        ("0.0.0.0-0&fd00:30:0:ff04::-64".into(), "fe80::1", mac),
        (
            "0.0.0.0-0&fd00:30:0:ff05::-64".into(),
            "192.168.78.200",
            mac,
        ),
        (
            "0.0.0.0-0&fd00:30:0:ff06::-64".into(),
            "::ffff:192.168.78.200",
            mac,
        ),
        ("0.0.0.0-0&fd00:30:0:ff07::-64".into(), "fd78:78::1", mac),
        (
            "0.0.0.0-0&fd00:30:0:ff08::-64".into(),
            ip,
            "33:33:00:00:00:01",
        ),
        ("0.0.0.0-0&fd00:30:0:ff09::-129".into(), ip, mac),
        ("172.30.9.0-24".into(), ip, mac),
        ("fd00:30:0:ff10::-64".into(), ip, mac),
    ] {
        leases.insert(key.clone(), lease(ip, mac));
        lab.put_lease(&key, &leases[&key]).unwrap();
    }
    let (good, route) = (
        "0.0.0.0-0&fd00:30:0:fff0::-64",
        "route fd00:30:0:fff0::/64 ",
    );
    lab.put_lease(good, &lease("fd78:78::201", "02:00:00:00:02:01"))
        .unwrap();
    let look = |there: bool| match node.picture().unwrap().has(&[route]) == there {
        true => Ok(()),
        false => Err(node.flanneld().log_tail(5)),
    };
    wait_for("a good lease is used", SOON, || look(true)).unwrap();
    lab.delete_lease(good).unwrap();
    wait_for("a good lease is gone", SOON, || look(false)).unwrap();
    unchanged(&before, node, "IPv6");
    tells_once(node, 0, &leases, "IPv6");
    mesh(&lab);
}

/// Gateways that no host-gw node can have.
#[test]
fn host_gw_leases_that_cannot_be() {
    for store in [ETCD, StoreKind::Directory] {
        let lab = scene::lab()
            .nodes(2)
            .store(store)
            .backend(json!({"Type": "host-gw"}))
            .build()
            .unwrap();
        lab.start().unwrap();
        mesh(&lab);
        let node = lab.node(1);
        let before = node.picture().unwrap();
        let mut free = thirds(&lab);
        let last = free.next().unwrap();
        let own = node.subnet_env().unwrap().cidr(V4).unwrap().addr();
        let mut leases = Leases::new();
        for ip in [
            "203.0.113.9".to_string(),
            "192.168.78.1".into(),
            "192.168.79.1".into(),
            "127.0.0.2".into(),
            "0.0.0.0".into(),
            "255.255.255.255".into(),
            "224.0.0.9".into(),
            own.to_string().replace(".0", ".9"),
        ] {
            let lease = json!({"PublicIP": ip, "BackendType": "host-gw"});
            leases.insert(
                format!("172.30.{}.0-24", free.next().unwrap()),
                lease.to_string(),
            );
        }
        leases.insert(
            "10.1.1.0-24".into(),
            good("192.168.78.77", "02:00:00:00:00:77").to_string(),
        );
        for (key, value) in &leases {
            lab.put_lease(key, value).unwrap();
        }
        let (key, route) = (
            format!("172.30.{last}.0-24"),
            format!("route 172.30.{last}.0/24 "),
        );
        let lease = json!({"PublicIP": "192.168.78.88", "BackendType": "host-gw"});
        lab.put_lease(&key, &lease.to_string()).unwrap();
        let look = || match node.picture().unwrap().has(&[&route]) {
            true => Ok(()),
            false => Err(node.flanneld().log_tail(5)),
        };
        wait_for("a good lease is used", SOON, look).unwrap();
        lab.delete_lease(&key).unwrap();
        let look = || match before.difference(&node.picture().unwrap()).as_slice() {
            [] => Ok(()),
            lines => Err(format!("{lines:#?}")),
        };
        wait_for("only the good ones have routes", SOON, look).unwrap();
        tells_once(node, 0, &leases, &format!("host-gw, {store:?}"));
        mesh(&lab);
    }
}
