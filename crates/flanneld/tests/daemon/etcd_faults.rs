//! etcd away, late, forgetful, guarded: packets flow on, nothing spins, and what was missed is
//! made up for.

use std::time::{Duration, Instant};

use lab::{Daemon, Etcd, Lab, wait_for};
use model::Family;
use serde_json::json;

use crate::flow::Traffic;
use crate::scene::{self, ETCD, SOON, lease_of, measuring, mesh};

/// What issue 3 allows for peers that joined during an outage, from etcd's return.
const FOLLOWED: Duration = Duration::from_secs(2);

/// How long etcd is unreachable: nothing is to show after a minute that does not show by then. The waits
/// between two tries have reached their longest after 3 s; silence is noticed within [`NOTICED`].
const OUTAGE: Duration = Duration::from_secs(30);

/// When an etcd that is silent, but has not closed its connections, is taken to be away.
const NOTICED: f64 = 20.0;

/// A daemon that waits may use a tenth of a percent of a processor for it, another one for the probes of the other
/// nodes, and some to begin with.
const WAITING_CPU: f64 = 0.002;
const FIRST_TRIES: Duration = Duration::from_millis(60);

/// A fault that lasts is told when it begins and once a minute.
const LINES: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outage {
    /// It takes connections and packets, and answers none.
    Frozen,
    /// Its port refuses.
    Killed,
    /// Killed; and when it is back, the revision that the daemon knew is compacted away.
    Compacted,
    /// The cable is cut: packets to it vanish.
    Unplugged,
}

fn begin(outage: Outage, lab: &Lab) {
    let etcd = lab.etcd().unwrap();
    match outage {
        Outage::Frozen => etcd.freeze().unwrap(),
        Outage::Killed | Outage::Compacted => etcd.kill9().unwrap(),
        // Only etcd's address; the nodes still reach each other.
        Outage::Unplugged => drop(lab.fabric().exec(ADDRESS_GONE).unwrap()),
    }
}

const ADDRESS_GONE: [&str; 6] = ["ip", "addr", "del", "192.168.78.254/24", "dev", "br0"];
const ADDRESS_BACK: [&str; 6] = ["ip", "addr", "add", "192.168.78.254/24", "dev", "br0"];

/// Lets the daemons see etcd again, at the moment that is returned.
fn end(outage: Outage, lab: &Lab, meanwhile: impl FnOnce(&Etcd)) -> Instant {
    let etcd = lab.etcd().unwrap();
    match outage {
        Outage::Frozen => {
            // Nobody can write to a frozen etcd: what joins, joins at once after it.
            etcd.thaw().unwrap();
            meanwhile(etcd);
        }
        Outage::Killed | Outage::Compacted => {
            // Up again, but out of the daemons' reach while others write to it.
            lab.fabric().exec(ADDRESS_GONE).unwrap();
            etcd.start().unwrap();
            lab.fabric()
                .exec(["ip", "addr", "add", "192.168.78.254/32", "dev", "lo"])
                .unwrap();
            meanwhile(etcd);
            if outage == Outage::Compacted {
                etcd.compact().unwrap();
            }
            lab.fabric()
                .exec(["ip", "addr", "del", "192.168.78.254/32", "dev", "lo"])
                .unwrap();
            lab.fabric().exec(ADDRESS_BACK).unwrap();
        }
        Outage::Unplugged => {
            lab.fabric()
                .exec(["ip", "addr", "add", "192.168.78.254/32", "dev", "lo"])
                .unwrap();
            meanwhile(etcd);
            lab.fabric()
                .exec(["ip", "addr", "del", "192.168.78.254/32", "dev", "lo"])
                .unwrap();
            lab.fabric().exec(ADDRESS_BACK).unwrap();
        }
    }
    Instant::now()
}

pub fn good(ip: &str, mac: &str) -> String {
    json!({"PublicIP": ip, "BackendType": "vxlan", "BackendData": {"VNI": 1, "VtepMAC": mac}})
        .to_string()
}

fn survives(outage: Outage) {
    let lab = scene::lab().nodes(3).store(ETCD).build().unwrap();
    lab.start().unwrap();
    mesh(&lab);
    let node = lab.node(1);
    let daemon = node.flanneld();
    let (leaver, _) = lease_of(&lab, lab.node(3));
    lab.node(3).flanneld().kill9().unwrap();
    let left = lab.node(3).subnet_env().unwrap().cidr(Family::V4).unwrap();

    let traffic = Traffic::between(node, lab.node(2));
    let (cpu, lines, start) = (cpu(daemon), daemon.log().lines().count(), Instant::now());
    begin(outage, &lab);
    // The daemon must hold still for the whole of it: there is no condition to wait for but time.
    lab::holds_for("it runs", OUTAGE, || match daemon.ended() {
        Ok(None) => Ok(()),
        ended => Err(format!("{ended:?}")),
    })
    .unwrap();
    let used = self::cpu(daemon) - cpu;
    let allowed = FIRST_TRIES + start.elapsed().mul_f64(WAITING_CPU);
    let told = daemon.log().lines().count() - lines;
    eprintln!("etcd {outage:?} for {OUTAGE:?}: {used:.1?} of CPU, {told} lines");
    assert!(used < allowed, "{outage:?}: {used:?} of CPU");
    assert!(
        (1..=LINES).contains(&told),
        "{outage:?}: {told} lines:\n{}",
        daemon.log_tail(20)
    );

    let back = end(outage, &lab, |_| {
        lab.put_lease(
            "172.30.250.0-24",
            &good("192.168.78.250", "02:00:00:00:00:fa"),
        )
        .unwrap();
        lab.delete_lease(&leaver).unwrap();
    });
    let look = || {
        let picture = node.picture().unwrap();
        match (
            picture.has(&["route 172.30.250.0/24 "]),
            picture.has(&[&format!("route {left} ")]),
        ) {
            (true, false) => Ok(()),
            seen => Err(format!(
                "(joined, left) is {seen:?}; {}",
                daemon.log_tail(5)
            )),
        }
    };
    wait_for("what changed is followed", SOON, look).unwrap();
    let took = back.elapsed();
    eprintln!("etcd {outage:?}: what changed was followed {took:.2?} after its return");
    assert!(took < FOLLOWED, "{outage:?}: {took:?}");
    traffic.all_arrived(&format!("etcd {outage:?}"));
    let told = daemon.log().lines().count() - lines;
    assert!(
        told <= 2 * LINES,
        "{outage:?}: {told} lines:\n{}",
        daemon.log_tail(20)
    );
    assert_eq!(daemon.ended().unwrap(), None);
}

fn cpu(daemon: &Daemon) -> Duration {
    daemon.usage().unwrap().cpu
}

#[test]
fn etcd_frozen() {
    survives(Outage::Frozen);
}

#[test]
fn etcd_killed() {
    survives(Outage::Killed);
}

#[test]
fn etcd_compacted_during_the_gap() {
    survives(Outage::Compacted);
}

#[test]
fn etcd_unplugged() {
    survives(Outage::Unplugged);
}

/// Compaction under a watch that lives disturbs nothing.
#[test]
fn etcd_compacted_under_a_running_daemon() {
    let lab = scene::lab().nodes(2).store(ETCD).build().unwrap();
    lab.start().unwrap();
    mesh(&lab);
    let node = lab.node(1);
    let lines = node.flanneld().log().lines().count();
    for round in 0..5 {
        lab.etcd().unwrap().compact().unwrap();
        let (key, route) = (
            format!("172.30.25{round}.0-24"),
            format!("route 172.30.25{round}.0/24 "),
        );
        let mac = format!("02:00:00:00:00:f{round}");
        lab.put_lease(&key, &good(&format!("192.168.78.25{round}"), &mac))
            .unwrap();
        let look = || match node.picture().unwrap().has(&[&route]) {
            true => Ok(()),
            false => Err(node.flanneld().log_tail(5)),
        };
        wait_for("a new peer", SOON, look).unwrap();
    }
    let told = node.flanneld().log().lines().count() - lines;
    assert_eq!(
        told,
        5,
        "one line for each peer:\n{}",
        node.flanneld().log_tail(20)
    );
}

#[test]
fn readiness_is_lost_in_a_long_outage_and_comes_back() {
    let lab = scene::lab().nodes(1).store(ETCD).build().unwrap();
    lab.start().unwrap();
    let daemon = lab.node(1).flanneld();
    let etcd = lab.etcd().unwrap();
    let start = Instant::now();
    etcd.freeze().unwrap();
    let ready = |wanted: u16| {
        let look = || match daemon.http_get("/readyz") {
            Ok((status, body)) if status == wanted => Ok(body),
            seen => Err(format!("{seen:?}")),
        };
        wait_for(
            &format!("/readyz answers {wanted}"),
            Duration::from_secs(60),
            look,
        )
        .unwrap()
    };
    let body = ready(503);
    let after = start.elapsed();
    assert!(body.contains("store"), "{body}");
    // When it is noticed, there is retry for another 30 s.
    let bounds = 30.0..32.0 + NOTICED;
    assert!(bounds.contains(&after.as_secs_f64()), "{after:?}");
    assert_eq!(
        daemon.http_get("/healthz").unwrap(),
        (200, "flanneld is running".into())
    );
    etcd.thaw().unwrap();
    let back = Instant::now();
    ready(200);
    eprintln!(
        "readiness lost {after:.1?} after etcd froze, back {:.0?} after it thawed",
        back.elapsed()
    );
    assert!(back.elapsed() < FOLLOWED);
}

const PEERS: usize = 100;

/// One lease event costs no request, and a cold start a handful: whatever the number of peers.
#[test]
fn no_request_for_each_peer() {
    let _turn = measuring();
    let lab = scene::lab().nodes(1).store(ETCD).build().unwrap();
    for n in 0..PEERS {
        let (ip, mac) = (format!("192.168.90.{n}"), format!("02:00:00:00:01:{n:02x}"));
        lab.put_lease(&format!("172.30.{}.0-24", n + 20), &good(&ip, &mac))
            .unwrap();
    }
    let etcd = lab.etcd().unwrap();
    let count = || -> u64 { etcd.requests().unwrap().values().sum() };
    let before = count();
    lab.start().unwrap();
    let node = lab.node(1);
    let routes = || {
        node.picture()
            .unwrap()
            .lines()
            .filter(|l| l.contains("proto 241") && l.starts_with("route"))
            .count()
    };
    let all = |wanted: usize| {
        wait_for("routes", SOON, || match routes() {
            n if n == wanted => Ok(()),
            n => Err(format!("{n} routes")),
        })
        .unwrap();
    };
    all(PEERS);
    let cold = count() - before;
    eprintln!("a cold start with {PEERS} peers: {cold} requests to etcd");
    assert!(cold <= 12, "{:?}", etcd.requests());
    let before = count();
    for n in 0..20 {
        lab.delete_lease(&format!("172.30.{}.0-24", n + 20))
            .unwrap();
    }
    all(PEERS - 20);
    assert_eq!(count() - before, 20, "the deletions themselves");
}
