//! The unit may do what it must, and not much else.

use lab::{Machine, StoreKind, wait_for};

use crate::SOON;
use crate::machines::{complaints, configured, install, journal_says, lab, package, possible};

/// `systemd-analyze security`, in tenths: 10.0 is a service that may do anything.
const MOST_EXPOSED: &str = "25";

#[test]
fn systemd_finds_no_fault_and_little_exposure() {
    if !possible() {
        return;
    }
    let lab = lab(StoreKind::Directory);
    let machine = Machine::boot(lab.node(1)).unwrap();
    install(&machine, package());
    // No manual pages are read on a machine without `man`.
    let output = machine
        .output(["systemd-analyze", "verify", "--man=no", "flanneld.service"])
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    let threshold = format!("--threshold={MOST_EXPOSED}");
    machine
        .exec([
            "systemd-analyze",
            "security",
            &threshold,
            "flanneld.service",
        ])
        .unwrap();
}

/// How the rules are written, and how to look at them.
struct Mode {
    name: &'static str,
    nftables: bool,
    alternative: Option<&'static str>,
    look: &'static str,
    /// A part of the line that the log has at the start.
    says: &'static str,
}

const MODES: [Mode; 3] = [
    Mode {
        name: "iptables-nft",
        nftables: false,
        alternative: Some("/usr/sbin/iptables-nft"),
        look: "iptables-nft-save -t nat; iptables-nft-save -t filter",
        says: "nft variant",
    },
    Mode {
        name: "iptables-legacy",
        nftables: false,
        alternative: Some("/usr/sbin/iptables-legacy"),
        look: "iptables-legacy-save -t nat; iptables-legacy-save -t filter",
        says: "legacy variant",
    },
    Mode {
        name: "nftables",
        nftables: true,
        alternative: None,
        look: "nft list ruleset",
        says: "",
    },
];

#[test]
fn traffic_rules_of_every_kind() {
    if !possible() {
        return;
    }
    for mode in MODES {
        let lab = lab(StoreKind::Directory);
        let nftables = if mode.nftables { "true" } else { "false" };
        lab.put_config(&format!(
            r#"{{"Network": "172.30.0.0/16", "EnableNFTables": {nftables}, "Backend": {{"Type": "vxlan"}}}}"#
        ))
        .unwrap();
        let machine = configured(&lab, "FLANNELD_IP_MASQ=true\nFLANNELD_HEALTHZ_PORT=8285\n");
        if let Some(program) = mode.alternative {
            machine
                .exec(["update-alternatives", "--set", "iptables", program])
                .unwrap();
        }
        machine.exec(["systemctl", "start", "flanneld"]).unwrap();
        wait_for(&format!("{}: the rules are in", mode.name), SOON, || {
            let rules = machine
                .exec(["sh", "-c", mode.look])
                .map_err(|e| e.to_string())?;
            let masquerade = rules.to_lowercase().contains("masquerade");
            let forward = rules.contains("FLANNEL-FWD") || rules.contains("chain forward");
            match masquerade && forward {
                true => Ok(()),
                false => Err(format!("{rules}{:?}", machine.journal("flanneld"))),
            }
        })
        .unwrap();
        journal_says(&machine, mode.says);
        assert_eq!(complaints(&machine), [""; 0], "{}", mode.name);
    }
}

/// What a daemon that was taken over could try.
#[test]
fn what_it_may_not_do() {
    if !possible() {
        return;
    }
    let lab = lab(StoreKind::Directory);
    let machine = configured(&lab, "");
    // A shell in the place of the daemon, in the same sandbox.
    let attempts = "\
        touch /run/flannel/may /run/xtables.lock && \
        ! touch /run/systemd/system/evil.service 2>/dev/null && \
        ! touch /etc/flannel/evil 2>/dev/null && \
        ! touch /usr/sbin/evil 2>/dev/null && \
        ! touch /var/spool/evil 2>/dev/null && \
        touch /var/lib/flannel/may && \
        ! sysctl -qw net.ipv4.ip_forward=0 2>/dev/null && \
        ! mount -t tmpfs none /mnt 2>/dev/null && \
        ! unshare --net true 2>/dev/null && \
        ! chown nobody /run/flannel/may 2>/dev/null && \
        ip link add try type bridge && ip link delete try && \
        echo as meant";
    machine.write("/usr/local/bin/attempts", attempts).unwrap();
    let drop_in = "[Service]\nType=oneshot\nRestart=no\nWatchdogSec=0\nExecStart=\nExecStart=sh -xc '. /usr/local/bin/attempts'\n";
    machine
        .write(
            "/etc/systemd/system/flanneld.service.d/attempts.conf",
            drop_in,
        )
        .unwrap();
    machine.exec(["systemctl", "daemon-reload"]).unwrap();
    // What it printed tells how far it came, if it fails.
    let _ = machine.exec(["systemctl", "start", "flanneld"]);
    journal_says(&machine, "as meant");
}
