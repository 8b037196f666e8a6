//! Pings along the way, from the other end back to this one.

use std::net::IpAddr;
use std::time::Duration;

use model::Family;
use model::subnet::first;

use super::ends::Ends;
use super::path::public_ips;
use super::steps::Steps;
use crate::check::icmp::{self, Echo, Pinger};
use crate::check::scene::Scene;

const PATIENCE: Duration = Duration::from_millis(500);
const TRIES: u16 = 3;
/// As large as ping's own.
const SMALL: usize = 84;

/// Pings the other end; if it is silent, the other node through the tunnel and past it.
pub(super) fn run(steps: &mut Steps, ends: &Ends, scene: &Scene) {
    if !icmp::allowed() {
        return steps.skip(
            "probe",
            "sending pings was denied: run this command as root, in a container with CAP_NET_RAW",
        );
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
    if let Some(tunnel) = tunnel.filter(|tunnel| *tunnel != far && answers(*tunnel)) {
        return steps.fail(
            "destination",
            format!("{far} does not answer, the tunnel of its node ({tunnel}) does"),
            format!("is the container running? `flannelctl explain {far} {}` on that node looks at the rest of the way; a network policy may refuse pings", ends.local.address),
        );
    }
    let publics = public_ips(remote);
    let reached: Vec<&IpAddr> = publics.iter().filter(|ip| answers(**ip)).collect();
    match reached.first() {
        Some(ip) if tunnel.is_some() => steps.fail(
            "tunnel",
            format!("the other node answers at {ip}, but nothing comes back through the tunnel"),
            "let the tunnel's port through between the nodes (vxlan: UDP 8472, udp: 8285, wireguard: 51820; ipip: protocol 4); does flanneld run there, and `flannelctl explain` in the other direction?",
        ),
        Some(ip) => steps.fail(
            "destination",
            format!("{far} does not answer, its node ({ip}) does"),
            format!("is the container running? `flannelctl explain {far} {}` on that node looks at the rest of the way", ends.local.address),
        ),
        None if steps.is_good("underlay") => steps.fail(
            "underlay",
            format!("the other node does not answer at {}", list(&publics)),
            "is the node up, and the network between the two? (A firewall that refuses pings looks the same)",
        ),
        None => {}
    }
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
