//! The UDP port of the tunnels: whether somebody else has it.

use std::fs;

use dataplane::host::Interface;
use model::{Family, IfName};

use super::container;
use super::report::Report;

const ABOUT: &str = "port";

/// Looks who has UDP port `port`; `devices` are ours.
pub(crate) fn check(
    report: &mut Report,
    port: u16,
    families: &[Family],
    devices: &[IfName],
    interfaces: &[Interface],
) {
    let mut in_kernel = false;
    for family in families {
        let file = match family {
            Family::V4 => "/proc/self/net/udp",
            Family::V6 => "/proc/self/net/udp6",
        };
        let text = fs::read_to_string(file).unwrap_or_default();
        for inode in text.lines().filter_map(|line| bound(line, port)) {
            let Some(who) = owner(inode) else {
                // The kernel's own sockets are nobody's.
                in_kernel = true;
                continue;
            };
            return report.fail(
                ABOUT,
                format!("UDP port {port} is taken by {who}: the tunnel device cannot be made"),
                "stop that program, or choose another port for all nodes (\"Port\" in Backend)",
            );
        }
    }
    let ours = interfaces.iter().any(|i| devices.contains(&i.name));
    let tunnels = interfaces
        .iter()
        .filter(|i| i.kind == "vxlan" && !devices.contains(&i.name));
    let others: Vec<String> = tunnels.map(|i| i.name.to_string()).collect();
    if !in_kernel || ours {
        return report.ok(ABOUT, format!("UDP port {port} is flannel's or free"));
    }
    let who = if !others.is_empty() {
        format!("another tunnel of the kernel's ({})", others.join(", "))
    } else if container::inside() {
        "a program outside of this container, or another tunnel of the kernel's".into()
    } else {
        "another tunnel of the kernel's (of another kind)".into()
    };
    report.warn(
        ABOUT,
        format!("UDP port {port} is already used by {who}"),
        "two networks may share it if their VNIs differ; remove another network plugin (Cilium, Calico) first",
    );
}

/// The inode of the socket that a line of `/proc/net/udp` tells of, if it is bound to `port`.
fn bound(line: &str, port: u16) -> Option<u64> {
    let mut words = line.split_whitespace();
    let (_, local) = words.nth(1)?.rsplit_once(':')?;
    let local = u16::from_str_radix(local, 16).ok()?;
    // What follows the local address: the remote one, state, queues, timers, retransmits, user, timeout.
    (local == port).then(|| words.nth(7)?.parse().ok())?
}

/// The process that holds the socket.
fn owner(inode: u64) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let path = process.path();
        let fds = fs::read_dir(path.join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        let mut targets = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        if targets.any(|target| target.to_string_lossy() == wanted) {
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            let pid = process.file_name().to_string_lossy().into_owned();
            return Some(format!("{} (process {pid})", name.trim()));
        }
    }
    None
}
