//! A lease that is lost, a reservation that stays one, and two nodes that claim one address.

use std::time::{Duration, Instant};

use lab::{Lab, Node, StoreKind, wait_for};
use model::Family::V4;
use serde_json::{Value, json};

use crate::flow::Traffic;
use crate::scene::{self, ETCD, SOON, lease_of, mesh, says};

const STORES: [StoreKind; 2] = [ETCD, StoreKind::Directory];

fn built(nodes: usize, store: StoreKind) -> Lab {
    let lab = scene::lab().nodes(nodes).store(store).build().unwrap();
    lab.start().unwrap();
    mesh(&lab);
    lab
}

/// The daemon ends with status 1 and says why, naming its lease.
fn gives_up(node: &Node, key: &str) {
    let status = node.flanneld().wait_ended(SOON).unwrap();
    assert_eq!(status.code(), Some(1), "{}", node.flanneld().log_tail(5));
    let log = node.flanneld().log();
    let errors: Vec<&str> = log.lines().filter(|l| l.contains("ERROR")).collect();
    assert!(errors.len() == 1 && errors[0].contains(key), "{errors:?}");
}

#[test]
fn a_deleted_lease_is_given_up() {
    for store in STORES {
        let lab = built(2, store);
        let node = lab.node(1);
        let (key, _) = lease_of(&lab, node);
        let traffic = Traffic::between(node, lab.node(2));
        // Only while the other node does not hear of it: it would rightly drop its route.
        lab.node(2).flanneld().freeze().unwrap();
        lab.delete_lease(&key).unwrap();
        gives_up(node, &key);
        assert!(
            !lab.leases().unwrap().contains_key(&key),
            "{store:?}: it was claimed again"
        );
        assert!(node.subnet_env().is_ok(), "{store:?}: nobody else has it");
        traffic.all_arrived(&format!("{store:?}: a lost lease"));
        // What its supervisor does.
        lab.node(2).flanneld().thaw().unwrap();
        node.flanneld().start_ready(SOON).unwrap();
        mesh(&lab);
    }
}

#[test]
fn a_lease_deleted_behind_a_sleeping_daemon_is_given_up() {
    for store in STORES {
        let lab = built(1, store);
        let node = lab.node(1);
        let (key, _) = lease_of(&lab, node);
        node.flanneld().freeze().unwrap();
        lab.delete_lease(&key).unwrap();
        node.flanneld().thaw().unwrap();
        gives_up(node, &key);
        assert!(lab.leases().unwrap().is_empty(), "{store:?}");
    }
}

const CONF: &str = "/run/net.d/10-flannel.conflist";

/// Has `node` put a CNI configuration in place.
fn with_cni_conf(node: &Node) {
    node.write("/run/cni-conf.json", r#"{"name":"cbr0","plugins":[]}"#)
        .unwrap();
    node.flanneld().set_args([
        "--cni-conf-source=/run/cni-conf.json".to_string(),
        format!("--cni-conf-file={CONF}"),
    ]);
}

/// Whether `subnet.env` and the CNI configuration are in place.
fn files(node: &Node) -> (bool, bool) {
    (node.subnet_env().is_ok(), node.read(CONF).is_ok())
}

/// The lease of `node` as another node's.
fn anothers(lab: &Lab, node: &Node) -> (String, String) {
    let (key, mut value) = lease_of(lab, node);
    value["PublicIP"] = json!("192.168.78.99");
    value["BackendData"]["VtepMAC"] = json!("02:00:00:00:00:99");
    (key, value.to_string())
}

#[test]
fn a_lease_that_another_node_took_is_given_up() {
    for store in STORES {
        let lab = scene::lab().nodes(1).store(store).build().unwrap();
        let node = lab.node(1);
        with_cni_conf(node);
        lab.start().unwrap();
        let (key, value) = anothers(&lab, node);
        lab.put_lease(&key, &value).unwrap();
        gives_up(node, &key);
        let (after, text) = lab.leases().unwrap().pop_first().unwrap();
        assert_eq!(after, key);
        let after: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            after["PublicIP"],
            json!("192.168.78.99"),
            "the other's is left alone"
        );
        assert!(node.flanneld().log().contains("192.168.78.99"));
        assert_eq!(files(node), (false, false), "{store:?}");
        says(node.flanneld(), &["WARN", "withdrawn", &key]);
        // What its supervisor does.
        node.flanneld().start_ready(SOON).unwrap();
        wait_for("another subnet's files", SOON, || match files(node) {
            (true, true) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .unwrap();
        assert_ne!(lease_of(&lab, node).0, key);
    }
}

/// Nobody ran here while another node took the subnet, and there is no other: no container may get
/// an address of it meanwhile.
#[test]
fn files_of_a_subnet_that_another_node_took_meanwhile_are_withdrawn() {
    for store in STORES {
        let lab = scene::lab()
            .nodes(1)
            .store(store)
            .config("Network", json!("172.30.0.0/22"))
            .config("SubnetLen", json!(24))
            .build()
            .unwrap();
        let node = lab.node(1);
        with_cni_conf(node);
        lab.start().unwrap();
        node.flanneld().stop().unwrap();
        let (key, value) = anothers(&lab, node);
        assert_eq!(files(node), (true, true));
        lab.delete_lease(&key).unwrap();
        lab.put_lease(&key, &value).unwrap();
        for third in 0..4 {
            let other = format!("172.30.{third}.0-24");
            if other != key {
                lab.put_lease(&other, &value).unwrap();
            }
        }
        node.flanneld().start().unwrap();
        let status = node.flanneld().wait_ended(SOON).unwrap();
        assert_eq!(status.code(), Some(1), "the pool is full");
        assert_eq!(files(node), (false, false), "{store:?}");
        says(node.flanneld(), &["WARN", "withdrawn", &key]);
        // The subnet is free again: the node has not forgotten it.
        lab.delete_lease(&key).unwrap();
        node.flanneld().start_ready(SOON).unwrap();
        assert_eq!(lease_of(&lab, node).0, key);
    }
}

#[test]
fn an_etcd_lease_that_ran_out_is_given_up() {
    let lab = built(1, ETCD);
    let node = lab.node(1);
    let (key, _) = lease_of(&lab, node);
    let id = format!("{:x}", etcd_lease(&lab, &key).unwrap());
    lab.etcd().unwrap().ctl(&["lease", "revoke", &id]).unwrap();
    gives_up(node, &key);
}

/// The etcd lease that a key hangs on; `None` for a reservation.
fn etcd_lease(lab: &Lab, key: &str) -> Option<i64> {
    let etcd = lab.etcd().unwrap();
    let name = format!("{}/subnets/{key}", etcd.prefix());
    let answer = etcd.ctl(&["get", "--write-out=json", &name]).unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    answer["kvs"][0]["lease"].as_i64()
}

#[test]
fn a_lease_lives_a_day_and_stays_one_over_restarts() {
    let lab = built(1, ETCD);
    let node = lab.node(1);
    let (key, _) = lease_of(&lab, node);
    for _ in 0..3 {
        node.flanneld().restart(SOON).unwrap();
        node.flanneld().kill9().unwrap();
        node.flanneld().start_ready(SOON).unwrap();
    }
    assert_eq!(lease_of(&lab, node).0, key);
    let etcd = lab.etcd().unwrap();
    // etcdctl lists ids with 16 digits.
    let id = format!("{:016x}", etcd_lease(&lab, &key).unwrap());
    let list = etcd.ctl(&["lease", "list"]).unwrap();
    let ids: Vec<&str> = list.lines().skip(1).collect();
    assert_eq!(ids, [id.as_str()], "one etcd lease, whatever happened");
    let left = etcd
        .ctl(&["lease", "timetolive", "--write-out=json", &id])
        .unwrap();
    let left: Value = serde_json::from_str(&left).unwrap();
    let (granted, ttl) = (
        left["granted-ttl"].as_i64().unwrap(),
        left["ttl"].as_i64().unwrap(),
    );
    assert_eq!(granted, 24 * 3600);
    assert!(ttl > 23 * 3600, "{ttl}");
}

#[test]
fn a_reservation_stays_one() {
    for store in STORES {
        let lab = scene::lab().nodes(2).store(store).build().unwrap();
        let node = lab.node(1);
        let key = "172.30.99.0-24";
        let upstream = json!({
            "PublicIP": node.ipv4(),
            "BackendType": "vxlan",
            "BackendData": {"VtepMAC": "4e:00:00:00:00:01"},
        });
        lab.put_lease(key, &upstream.to_string()).unwrap();
        lab.start().unwrap();
        mesh(&lab);
        let subnet = |node: &Node| node.subnet_env().unwrap().cidr(V4).unwrap().to_string();
        assert_eq!(subnet(node), "172.30.99.0/24");
        let stays = || {
            let (own, value) = lease_of(&lab, node);
            assert_eq!(own, key);
            assert_eq!(value["BackendData"]["VtepMAC"], json!("4e:00:00:00:00:01"));
            match store {
                StoreKind::Directory => assert_eq!(value["Expires"], Value::Null, "{value}"),
                StoreKind::Etcd { .. } => assert_eq!(etcd_lease(&lab, key), None),
                StoreKind::Kubernetes => unreachable!("it reserves nothing"),
            }
        };
        stays();
        node.flanneld().restart(SOON).unwrap();
        stays();
        // And when what it publishes changes: another address.
        scene::run(
            node,
            "ip addr del 192.168.78.1/24 dev eth0\nip addr add 192.168.78.111/24 dev eth0\n\
             ip route replace 0.0.0.0/0 via 192.168.78.254 dev eth0",
        )
        .unwrap();
        let look = || {
            let value: Value = serde_json::from_str(&lab.leases().unwrap()[key]).unwrap();
            match value["PublicIP"] == json!("192.168.78.111") {
                true => Ok(value),
                false => Err(format!("{value}; {}", node.flanneld().log_tail(5))),
            }
        };
        let value = wait_for("the new address is published", SOON, look).unwrap();
        match store {
            StoreKind::Directory => assert_eq!(value["Expires"], Value::Null, "{value}"),
            StoreKind::Etcd { .. } => assert_eq!(etcd_lease(&lab, key), None),
            StoreKind::Kubernetes => unreachable!("it reserves nothing"),
        }
    }
}

/// The one that was there keeps its subnet; the newcomer names the address and gives way.
#[test]
fn two_nodes_with_one_public_ip_are_reported() {
    for store in STORES {
        let lab = scene::lab().nodes(3).store(store).build().unwrap();
        let (one, two) = (lab.node(1), lab.node(2));
        one.flanneld().start_ready(SOON).unwrap();
        let lease = || {
            let (key, mut value) = lease_of(&lab, one);
            // A directory says when it ends; that it was renewed is no harm.
            value["Expires"].take();
            (key, value)
        };
        let before = lease();
        let picture = one.picture().unwrap();
        two.flanneld()
            .set_args([format!("-public-ip={}", one.ipv4())]);
        // As a clone of the first node's disk has it.
        let env = one.read("/run/flannel/subnet.env").unwrap();
        two.write("/run/flannel/subnet.env", &env).unwrap();
        two.flanneld().start().unwrap();
        let status = two.flanneld().wait_ended(SOON).unwrap();
        assert_eq!(status.code(), Some(1));
        let ip = one.ipv4().to_string();
        let line = says(two.flanneld(), &["ERROR", &ip]);
        eprintln!("{store:?}: {line}");
        assert!(
            two.subnet_env().is_err(),
            "{store:?}: it is the other node's"
        );
        says(one.flanneld(), &["WARN", &ip]);
        let mine = || match lease() == before {
            true => Ok(()),
            false => Err(format!("{:?}", lab.leases())),
        };
        wait_for("the lease is as before", SOON, mine).unwrap();
        lab::holds_for("it stays", Duration::from_millis(500), mine).unwrap();
        assert_eq!(one.flanneld().ended().unwrap(), None);
        let changed = picture.difference(&one.picture().unwrap());
        assert!(changed.is_empty(), "{store:?}: {changed:#?}");
    }
}

/// Both start before either has a lease.
#[test]
fn of_two_fresh_nodes_with_one_public_ip_one_stays_out() {
    for store in STORES {
        let lab = scene::lab().nodes(2).store(store).build().unwrap();
        let (one, two) = (lab.node(1), lab.node(2));
        two.flanneld()
            .set_args([format!("-public-ip={}", one.ipv4())]);
        one.flanneld().start().unwrap();
        two.flanneld().start().unwrap();
        let look = || match (one.flanneld().ended(), two.flanneld().ended()) {
            (Ok(None), Ok(Some(_))) => Ok((one, two)),
            (Ok(Some(_)), Ok(None)) => Ok((two, one)),
            other => Err(format!("{other:?}")),
        };
        let (winner, loser) = wait_for("one of them ends", SOON, look).unwrap();
        let ip = one.ipv4().to_string();
        says(loser.flanneld(), &["ERROR", &ip, "--public-ip"]);
        winner.flanneld().wait_ready(SOON).unwrap();
        let (key, _) = lease_of(&lab, one);
        let alone = || match lab.leases().unwrap().into_keys().collect::<Vec<_>>() {
            keys if keys == [key.clone()] => Ok(()),
            keys => Err(format!("{keys:?}")),
        };
        wait_for("there is one lease", SOON, alone).unwrap();
        assert!(loser.subnet_env().is_err(), "{store:?}");
        // However often its supervisor starts it again.
        for _ in 0..2 {
            loser.flanneld().start().unwrap();
            let status = loser.flanneld().wait_ended(SOON).unwrap();
            assert_eq!(status.code(), Some(1));
            assert!(loser.subnet_env().is_err(), "{store:?}");
        }
        alone().unwrap();
        assert_eq!(winner.flanneld().ended().unwrap(), None);
    }
}

/// A node need not ask for what the previous `subnet.env`, or its device, proves to be its own.
#[test]
fn a_restart_does_not_wait_for_an_answer() {
    for store in STORES {
        let lab = built(1, store);
        let node = lab.node(1);
        let asks = || node.flanneld().log().contains("waiting a moment");
        node.flanneld().restart(SOON).unwrap();
        assert!(!asks(), "{store:?}: {}", node.flanneld().log_tail(9));
        node.flanneld().stop().unwrap();
        node.exec(["rm", "/run/flannel/subnet.env"]).unwrap();
        node.flanneld().start_ready(SOON).unwrap();
        assert!(!asks(), "{store:?}: {}", node.flanneld().log_tail(9));
        // As after a reboot.
        node.flanneld().stop().unwrap();
        node.exec(["rm", "/run/flannel/subnet.env"]).unwrap();
        scene::run(node, "ip link del flannel.1").unwrap();
        node.flanneld().start_ready(SOON).unwrap();
        assert!(asks(), "{store:?}: the test proves nothing");
    }
}

/// However often a supervisor starts the newcomer again, with and without a pause, the one that was there keeps its subnet.
fn a_newcomer_never_wins(store: StoreKind, pauses: &[u64]) {
    let began = Instant::now();
    let lab = scene::lab().nodes(2).store(store).build().unwrap();
    let (one, two) = (lab.node(1), lab.node(2));
    one.flanneld().start_ready(SOON).unwrap();
    let lease = || {
        let (key, value) = lease_of(&lab, one);
        (key, value["PublicIP"].clone(), value["BackendData"].clone())
    };
    let before = lease();
    let picture = one.picture().unwrap();
    two.flanneld()
        .set_args([format!("-public-ip={}", one.ipv4())]);
    for pause in pauses {
        let kept = || match lease() == before {
            true => Ok(()),
            false => Err(format!("{:?}", lab.leases())),
        };
        lab::holds_for("the supervisor's pause", Duration::from_secs(*pause), kept).unwrap();
        two.flanneld().start().unwrap();
        let status = two.flanneld().wait_ended(SOON).unwrap();
        assert_eq!(status.code(), Some(1));
        assert!(two.subnet_env().is_err(), "the newcomer took a subnet");
        assert_eq!(lease(), before);
        assert_eq!(one.flanneld().ended().unwrap(), None);
    }
    let changed = picture.difference(&one.picture().unwrap());
    assert!(changed.is_empty(), "{store:?}: {changed:#?}");
    let log = one.flanneld().log();
    let told = log
        .lines()
        .filter(|line| line.contains("asks for our"))
        .count();
    // Once a minute.
    let most = 2 + usize::try_from(began.elapsed().as_secs() / 60).unwrap();
    assert!((1..=most).contains(&told), "{told} lines:\n{log}");
}

#[test]
fn a_newcomer_that_is_restarted_never_wins() {
    for store in STORES {
        a_newcomer_never_wins(store, &[0, 0, 1]);
    }
}

/// The same as a supervisor does it, for as long as a signature stays.
#[test]
fn a_newcomer_that_is_restarted_every_five_seconds_never_wins() {
    a_newcomer_never_wins(ETCD, &[5, 5, 5, 5]);
}

/// The same for longer than any memory of the two daemons lasts.
#[test]
#[ignore = "takes ten minutes"]
fn a_newcomer_that_is_restarted_for_ten_minutes_never_wins() {
    let pauses: Vec<u64> = (0..60).map(|n| [5, 5, 5, 20, 0][n % 5]).collect();
    a_newcomer_never_wins(ETCD, &pauses);
}
