//! The unit's life: ready, watched, restarted, stopped; and what else touches network devices.

use std::time::Duration;

use lab::{Lab, Machine, Pinger, StoreKind, SubnetEnv, wait_for};

use crate::SOON;
use crate::machines::{configured, journal_says, lab, possible, property};

/// The machine's flanneld and another node's, a pod behind each, and pings from pod to pod.
fn pings(lab: &Lab, machine: &Machine) -> Pinger {
    let env = machine.read("/run/flannel/subnet.env").unwrap();
    let env = SubnetEnv::parse(&env).unwrap();
    let pod = lab.node(1).add_pods_from(&env, 1).unwrap().remove(0);
    lab.node(2).flanneld().start_ready(SOON).unwrap();
    let peer = lab.node(2).add_pods(1).unwrap().remove(0);
    lab.wait_mesh(SOON).unwrap();
    Pinger::start(&pod, peer.ips()[0], Duration::from_millis(10)).unwrap()
}

/// Waits until more pings have been sent, so that what was done before shows in the count.
fn some_more(pings: &Pinger) {
    let now = pings.sent();
    wait_for("fifty more pings", SOON, || match pings.sent() {
        sent if sent > now + 50 => Ok(()),
        sent => Err(sent - now),
    })
    .unwrap();
}

#[test]
fn ready_restarted_stopped_without_loss() {
    if !possible() {
        return;
    }
    let lab = lab(StoreKind::Etcd { tls: true });
    let machine = configured(&lab, "");
    // Back when it is ready, and it is ready when the file is there.
    machine.exec(["systemctl", "start", "flanneld"]).unwrap();
    let mode = machine.exec(["stat", "-c", "%a", "/run/flannel/subnet.env"]);
    assert_eq!(mode.unwrap(), "644\n");
    let status = property(&machine, "flanneld", "StatusText");
    assert!(!status.is_empty());

    let pings = pings(&lab, &machine);
    machine.exec(["systemctl", "restart", "flanneld"]).unwrap();
    some_more(&pings);
    machine.exec(["systemctl", "stop", "flanneld"]).unwrap();
    some_more(&pings);
    let report = pings.stop();
    assert_eq!(report.lost, 0, "{report:?}");
    machine.read("/run/flannel/subnet.env").unwrap();

    // What takes the network away on request.
    machine.exec(["flannelctl", "cleanup", "--yes"]).unwrap();
    assert!(machine.exec(["ip", "link", "show", "flannel.1"]).is_err());
    assert!(machine.read("/run/flannel/subnet.env").is_err());
}

#[test]
fn a_daemon_that_hangs_is_replaced() {
    if !possible() {
        return;
    }
    let lab = lab(StoreKind::Directory);
    let machine = configured(&lab, "");
    let hasty = "[Service]\nWatchdogSec=2\nRestartSec=100ms\n";
    machine
        .write("/etc/systemd/system/flanneld.service.d/hasty.conf", hasty)
        .unwrap();
    machine.exec(["systemctl", "daemon-reload"]).unwrap();
    machine.exec(["systemctl", "start", "flanneld"]).unwrap();
    let pid = property(&machine, "flanneld", "MainPID");
    machine.exec(["kill", "-STOP", &pid]).unwrap();
    wait_for("another daemon runs", SOON, || {
        let state = property(&machine, "flanneld", "ActiveState");
        match property(&machine, "flanneld", "MainPID") {
            now if now != "0" && now != pid && state == "active" => Ok(()),
            now => Err(format!("{now} is {state}")),
        }
    })
    .unwrap();
    // By the watchdog, and not for another reason.
    journal_says(&machine, "Watchdog timeout");
}

#[test]
fn a_wrong_flag_is_not_tried_again() {
    if !possible() {
        return;
    }
    let lab = lab(StoreKind::Directory);
    let machine = configured(&lab, "FLANNELD_SUBNET_LEASE_RENEW_MARGIN=0\n");
    let refused = machine.exec(["systemctl", "start", "flanneld"]);
    assert!(refused.is_err());
    wait_for("the unit has failed", SOON, || {
        match property(&machine, "flanneld", "ActiveState").as_str() {
            "failed" => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .unwrap();
    assert_eq!(property(&machine, "flanneld", "NRestarts"), "0");
    journal_says(&machine, "FLANNELD_SUBNET_LEASE_RENEW_MARGIN=0");
}

#[test]
fn other_network_managers_leave_our_devices_alone() {
    if !possible() {
        return;
    }
    let lab = lab(StoreKind::Directory);
    let machine = configured(&lab, "");
    machine.exec(["systemctl", "start", "flanneld"]).unwrap();
    let mac = || {
        machine
            .exec(["cat", "/sys/class/net/flannel.1/address"])
            .unwrap()
    };
    let before = mac();

    // udev: our file is the one that it takes, and it lets the MAC be.
    let link = machine
        .exec([
            "udevadm",
            "test-builtin",
            "net_setup_link",
            "/sys/class/net/flannel.1",
        ])
        .unwrap();
    assert!(
        link.contains("ID_NET_LINK_FILE=/usr/lib/systemd/network/50-flannel.link"),
        "{link}"
    );
    assert_eq!(mac(), before);

    // networkd: even where it is told to manage everything.
    machine
        .write(
            "/etc/systemd/network/90-all.network",
            "[Match]\nName=*\n[Network]\nLinkLocalAddressing=no\nKeepConfiguration=yes\n",
        )
        .unwrap();
    machine
        .exec(["systemctl", "start", "systemd-networkd"])
        .unwrap();
    wait_for("networkd knows the devices", SOON, || {
        let list = machine
            .exec(["networkctl", "list", "--no-pager", "--no-legend"])
            .map_err(|e| e.to_string())?;
        let state = |device: &str| {
            let mut lines = list
                .lines()
                .map(|l| l.split_whitespace().collect::<Vec<_>>());
            let line = lines.find(|words| words.get(1) == Some(&device));
            line.and_then(|words| words.last().map(ToString::to_string))
        };
        match (state("eth0").as_deref(), state("flannel.1").as_deref()) {
            (Some("configured"), Some("unmanaged")) => Ok(()),
            _ => Err(list),
        }
    })
    .unwrap();
    assert_eq!(mac(), before);
}
