//! Probes of the other node and pings along the way, from the other end back to this one.

use std::net::IpAddr;
use std::time::Duration;

use model::Family;
use model::subnet::first;

use super::ends::Ends;
use super::node_probe;
use super::path::public_ips;
use super::steps::{Daemon, Steps};
use crate::check::icmp::{self, Echo, Pinger};
use crate::check::scene::Scene;

const PATIENCE: Duration = Duration::from_millis(500);
const TRIES: u16 = 3;
/// As large as ping's own.
const SMALL: usize = 84;

/// What helps where nothing comes back through the tunnel.
const TUNNEL: &str = "let the tunnel's port through between the nodes (vxlan: UDP 8472, udp: 8285, wireguard: 51820; ipip: protocol 4); does flanneld run there, and `flannelctl explain` in the other direction?";

/// Probes the other node and pings the other end; if it is silent, the other node through the tunnel and past it.
pub(super) fn run(steps: &mut Steps, ends: &Ends, scene: &Scene, daemon: &Daemon) {
    let remote = ends.remote.as_ref();
    // Where a step before is broken, they show nothing new.
    let remote = remote.filter(|_| steps.broken().is_none());
    let node = remote.and_then(|remote| node_probe::run(steps, ends.family, remote, daemon));
    let past_only = node
        .as_ref()
        .and_then(|node| node.answers_past_tunnel_only());
    let fault = node.as_ref().and_then(|node| node.fault());
    if !icmp::allowed() {
        steps.skip(
            "probe",
            "sending pings was denied: run this command as root, in a container with CAP_NET_RAW",
        );
        if let (Some(ip), Some(reason)) = (past_only, fault) {
            fail_tunnel(steps, &ip, Some(reason));
        }
        if let Some(node) = &node {
            node.full_size(steps);
        }
        return;
    }
    let far = ends.far;
    if !ends.local.is_node && !answers(ends.local.address) {
        steps.warn(
            "probe",
            format!("{} on this node does not answer pings", ends.local.address),
            "is the container running? A network policy may refuse pings",
        );
    }
    if answers(far) {
        steps.ok("probe", format!("{far} answers"));
        if ends.remote.is_some() {
            full_size(steps, scene, far);
        }
        if let Some(node) = &node {
            node.full_size(steps);
        }
        return;
    }
    let Some(remote) = &ends.remote else {
        return steps.fail(
            "destination",
            format!("{far} does not answer pings"),
            "is the container running? A network policy may refuse pings",
        );
    };
    let net = remote
        .lease
        .as_ref()
        .and_then(|lease| lease.key.nets().get(ends.family).copied());
    let tunnel = net
        .map(|net| first(&net).addr())
        .filter(|_| !scene.devices().is_empty());
    let is_heard = node
        .as_ref()
        .is_some_and(|node| node.answers_through_tunnel());
    if let Some(tunnel) = tunnel.filter(|tunnel| *tunnel != far && (is_heard || answers(*tunnel))) {
        return steps.fail(
            "destination",
            format!("{far} does not answer, the tunnel of its node ({tunnel}) does"),
            format!("is the container running? `flannelctl explain {far} {}` on that node looks at the rest of the way; a network policy may refuse pings", ends.local.address),
        );
    }
    // The node itself was asked for: its flanneld answers, its firewall drops pings.
    if remote.is_node && node.as_ref().is_some_and(|node| node.answers()) {
        if let Some(node) = &node {
            node.full_size(steps);
        }
        return;
    }
    let publics = public_ips(remote);
    let reached: Vec<&IpAddr> = publics.iter().filter(|ip| answers(**ip)).collect();
    match reached.first() {
        Some(ip) if tunnel.is_some() => fail_tunnel(steps, &ip.to_string(), fault),
        None if past_only.is_some() => {
            fail_tunnel(steps, &past_only.unwrap_or_default(), fault);
        }
        Some(ip) => steps.fail(
            "destination",
            format!("{far} does not answer, its node ({ip}) does"),
            format!("is the container running? `flannelctl explain {far} {}` on that node looks at the rest of the way", ends.local.address),
        ),
        None if steps.is_good("underlay") => steps.fail(
            "underlay",
            format!("the other node does not answer at {}", list(&publics)),
            format!("is the node up, and the network between the two? (A firewall that refuses pings looks the same){}", found(fault)),
        ),
        None => {}
    }
}

/// Adds that the tunnel is what is broken. `fault` is what the daemon has found.
fn fail_tunnel(steps: &mut Steps, public: &str, fault: Option<String>) {
    steps.fail(
        "tunnel",
        format!("the other node answers at {public}, but nothing comes back through the tunnel"),
        format!("{TUNNEL}{}", found(fault)),
    );
}

fn found(fault: Option<String>) -> String {
    let found = fault.map(|fault| format!("; flanneld has found: {fault}"));
    found.unwrap_or_default()
}

/// Packets of full size that must not be cut.
fn full_size(steps: &mut Steps, scene: &Scene, far: IpAddr) {
    let Some(mtu) = scene.backend.as_ref().map(|backend| backend.mtu() as usize) else {
        return;
    };
    let largest = match ping(far, mtu) {
        Some(Echo::Answered) => return steps.ok("probe", format!("packets of {mtu} bytes arrive")),
        Some(Echo::TooLarge) => {
            return steps.fail(
                "mtu",
                format!("this node cannot send packets of {mtu} bytes to {far}, which containers will"),
                "a device or route on this node has a smaller MTU than subnet.env says: restart flanneld, then the containers",
            );
        }
        _ => {
            let (mut good, mut bad) = (SMALL, mtu);
            while bad - good > 1 {
                let middle = good.midpoint(bad);
                if ping(far, middle) == Some(Echo::Answered) {
                    good = middle;
                } else {
                    bad = middle;
                }
            }
            good
        }
    };
    let header = match Family::of(&far) {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    steps.fail(
        "mtu",
        format!("{header} packets of {mtu} bytes are lost on the way, the largest that arrive have {largest}: large transfers hang"),
        format!("\"MTU\": {largest} in Backend (flannelctl config set), restart flanneld, then the containers; or raise the MTU on the way between the nodes"),
    );
}

fn answers(to: IpAddr) -> bool {
    ping(to, SMALL) == Some(Echo::Answered)
}

fn ping(to: IpAddr, size: usize) -> Option<Echo> {
    let pinger = Pinger {
        to,
        patience: PATIENCE,
        tries: TRIES,
    };
    pinger.ping(size).ok()
}

fn list(ips: &[IpAddr]) -> String {
    let ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
    ips.join(", ")
}
