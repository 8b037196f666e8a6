//! What the kernel does with the packets of the two ends: routes, rules, switches, MTU.

use std::net::IpAddr;

use anyhow::Result;
use backend::vxlan;
use dataplane::host::{Interface, Path, interfaces};
use dataplane::paths::{Fate, Packet, fate, policy_rules};
use dataplane::rules::forwarding::{Forwarded, judge};
use model::{BackendType, Family, IfName};

use super::ends::{End, Ends};
use super::steps::Steps;
use crate::check::firewall::shortened;
use crate::check::host::sysctl;
use crate::check::scene::Scene;
use crate::runtime::wait_for;

/// The local end: is there a way to it? Returns the device that leads there, such as the containers' bridge.
pub(super) fn local_end(steps: &mut Steps, ends: &Ends) -> Option<String> {
    const NAME: &str = "source";
    let address = ends.local.address;
    if ends.local.is_node {
        steps.ok(NAME, format!("this node itself ({address})"));
        return None;
    }
    let packet = Packet {
        to: address,
        from: None,
        arrives: None,
    };
    let remedy = "start the container; its bridge (cni0, docker0) has the first address of this node's subnet: `ip address`, and the container runtime's log";
    match fate(&packet) {
        Ok(Fate::Delivered) => {
            steps.ok(NAME, format!("{address} is an address of this node"));
            None
        }
        Ok(Fate::Sent(path)) => {
            let device = found(&path.iface);
            let device = device.as_ref();
            let leads_out = path.via.is_some();
            if let Some(down) = bridge_that_is_down(address).filter(|_| leads_out) {
                is_down(steps, address, &down);
            } else if leads_out {
                steps.fail(
                    NAME,
                    format!(
                        "no device of containers leads to {address}: it would be sent to {}",
                        described(&path)
                    ),
                    remedy,
                );
            } else if device.is_some_and(|device| !device.running) {
                steps.fail(NAME, format!("{} leads to {address} and has no carrier: no container is plugged into it, or it is down", path.iface), remedy);
            } else {
                steps.shown(
                    NAME,
                    format!("{address} is behind {}", path.iface),
                    packet.command(),
                );
            }
            Some(path.iface.to_string()).filter(|_| !leads_out)
        }
        Ok(Fate::Dropped(error)) => {
            if let Some(down) = bridge_that_is_down(address) {
                is_down(steps, address, &down);
            } else {
                let text = format!("no way to {address} on this node: {error}");
                steps.fail(NAME, text, remedy);
            }
            None
        }
        Err(error) => {
            steps.fail(NAME, error.to_string(), "run this command as root");
            None
        }
    }
}

/// The device that has the subnet of `address` and is down.
fn bridge_that_is_down(address: IpAddr) -> Option<IfName> {
    let all = interfaces().ok()?;
    let has = |device: &&Interface| {
        let mut nets = device.addrs.iter().map(|addr| addr.net);
        !device.up && nets.any(|net| net.prefix_len() > 0 && net.contains(&address))
    };
    all.iter().find(has).map(|device| device.name)
}

fn is_down(steps: &mut Steps, address: IpAddr, device: &IfName) {
    steps.fail(
        "source",
        format!("{device} has the subnet of {address} and is down"),
        format!("ip link set {device} up"),
    );
}

/// The kernel's switches for packets that are not its own.
pub(super) fn forwarding(steps: &mut Steps, ends: &Ends, bridge: Option<&str>) {
    const NAME: &str = "forwarding";
    let family = match ends.family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let mut keys = match ends.family {
        Family::V4 => vec!["net/ipv4/ip_forward".to_owned()],
        Family::V6 => vec!["net/ipv6/conf/all/forwarding".to_owned()],
    };
    if let Some(bridge) = bridge {
        keys.push(format!("net/{family}/conf/{bridge}/forwarding"));
    }
    for key in keys {
        // A name of a device may hold dots: the path has none in its place.
        let dotted = key.replace('/', ".");
        match sysctl(&key).as_deref() {
            Some("0") => {
                return steps.fail(
                    NAME,
                    format!("{dotted} is 0: the kernel drops packets between containers of different nodes"),
                    format!("sysctl -w {dotted}=1, and the same line in /etc/sysctl.d/99-flannel.conf"),
                );
            }
            Some(_) => steps.ok(NAME, format!("{dotted} is on")),
            None => steps.warn(
                NAME,
                format!("there is no {dotted}"),
                "this kernel has no such family, or the device is gone",
            ),
        }
    }
}

/// Where the kernel sends the packet; returns by which device.
pub(super) fn route(
    steps: &mut Steps,
    ends: &Ends,
    bridge: Option<&str>,
    expected: Option<IfName>,
) -> Result<Option<IfName>> {
    const NAME: &str = "routing";
    let packet = Packet {
        to: ends.far,
        // Without the device that it comes from, the kernel would take the address for one of its own.
        from: ends.sender().filter(|_| bridge.is_some()),
        arrives: bridge.and_then(|bridge| bridge.parse().ok()),
    };
    let others = unusual_rules(ends.family);
    let because = if others.is_empty() {
        String::new()
    } else {
        format!("; policy rules of this host: {}", others.join(", "))
    };
    let remedy = format!(
        "find what leads it there: `ip rule`, `ip route show table all match {}`; delete that rule or route, or exclude the flannel network from it",
        ends.far
    );
    Ok(match fate(&packet)? {
        Fate::Sent(path) if expected.is_some_and(|expected| expected != path.iface) => {
            let expected = expected.map(|name| name.to_string()).unwrap_or_default();
            steps.fail(
                NAME,
                format!(
                    "`{}`: goes out of {}, not of {expected}{because}",
                    packet.command(),
                    described(&path)
                ),
                remedy,
            );
            Some(path.iface)
        }
        Fate::Sent(path) => {
            steps.shown(
                NAME,
                format!("goes out of {}", described(&path)),
                packet.command(),
            );
            Some(path.iface)
        }
        Fate::Delivered => {
            steps.fail(
                NAME,
                format!("{} is an address of this node itself{because}", ends.far),
                "remove that address from this node: `ip address`",
            );
            None
        }
        Fate::Dropped(error) => {
            steps.fail(
                NAME,
                format!("the kernel drops it: {error}{because}"),
                remedy,
            );
            None
        }
    })
}

fn unusual_rules(family: Family) -> Vec<String> {
    let rules = policy_rules(family).unwrap_or_default();
    let unusual = rules.iter().filter(|rule| !rule.is_usual());
    unusual
        .map(|rule| format!("`{}: {} {}`", rule.priority, rule.selector, rule.action))
        .collect()
}

/// The host's rules, for the packet and for the answer.
pub(super) fn rules(
    steps: &mut Steps,
    ends: &Ends,
    bridge: Option<&str>,
    out: Option<IfName>,
) -> Result<()> {
    const NAME: &str = "rules";
    if ends.local.is_node {
        steps.skip(NAME, "packets of the node itself are not forwarded");
        return Ok(());
    }
    let out = out.map(|name| name.to_string());
    let bridge = bridge.map(str::to_owned);
    let packets = [
        Forwarded {
            source: ends.local.address,
            destination: ends.far,
            arrives: bridge.clone(),
            leaves: out.clone(),
        },
        Forwarded {
            source: ends.far,
            destination: ends.local.address,
            arrives: out,
            leaves: bridge,
        },
    ];
    let judgement = wait_for(async { Ok::<_, anyhow::Error>(judge(&packets).await) })?;
    let mut refused = false;
    for (at, refusal) in &judgement.refusals {
        let way = if *at == 0 { "out" } else { "back" };
        let text = format!(
            "the way {way} is refused by {}: {}",
            refusal.place,
            shortened(&refusal.rule)
        );
        let remedy = "delete that rule, or put one before it that accepts the flannel network; flanneld does so in FORWARD with -iptables-forward-rules";
        if refusal.certain {
            refused = true;
            steps.fail(NAME, text, remedy);
        } else {
            let text = format!(
                "{text}, unless an earlier rule whose conditions are not known here lets it pass"
            );
            steps.warn(NAME, text, remedy);
        }
    }
    for why in &judgement.unread {
        steps.skip(NAME, format!("not read: {why}"));
    }
    if !refused && !judgement.read.is_empty() {
        let by = judgement.read.join(", ");
        steps.ok(NAME, format!("packets may pass in both directions ({by})"));
    }
    Ok(())
}

/// The other node's public address: how the tunnel's packets get there.
pub(super) fn underlay(steps: &mut Steps, remote: &End, scene: &Scene) -> Result<()> {
    const NAME: &str = "underlay";
    for ip in public_ips(remote) {
        let packet = Packet {
            to: ip,
            from: None,
            arrives: None,
        };
        match fate(&packet)? {
            Fate::Sent(path) if scene.devices().contains(&path.iface) => steps.fail(
                NAME,
                format!(
                    "the way to the other node, {ip}, leads into the tunnel itself ({})",
                    path.iface
                ),
                format!("delete that route: `{}`", packet.command()),
            ),
            Fate::Sent(path) if found(&path.iface).is_none_or(|device| !device.running) => steps
                .fail(
                    NAME,
                    format!(
                        "{} leads to the other node, {ip}, and has no carrier",
                        path.iface
                    ),
                    format!(
                        "ip link set {} up; look at the cable or the virtual machine's network",
                        path.iface
                    ),
                ),
            Fate::Sent(path) => steps.shown(
                NAME,
                format!("the other node, {ip}, is reached by {}", described(&path)),
                packet.command(),
            ),
            Fate::Delivered => steps.fail(
                NAME,
                format!("the other node's public address {ip} is this node's own"),
                "give one of the two another one (-public-ip)",
            ),
            Fate::Dropped(error) => steps.fail(
                NAME,
                format!("no way to the other node, {ip}: {error}"),
                "restore the route to it: `ip route`",
            ),
        }
    }
    Ok(())
}

/// The public addresses of a node; of both families, if its lease has both.
pub(super) fn public_ips(remote: &End) -> Vec<IpAddr> {
    let lease = remote.lease.as_ref();
    let attrs = lease.and_then(|lease| lease.attrs.as_ref().ok());
    let ips = attrs.map(|attrs| attrs.public_ip.iter().map(|(_, ip)| *ip).collect());
    ips.unwrap_or_default()
}

/// Whether each device takes what the one before it sends.
pub(super) fn mtu(
    steps: &mut Steps,
    family: Family,
    scene: &Scene,
    out: Option<IfName>,
    bridge: Option<&str>,
) {
    const NAME: &str = "mtu";
    let (Some(out), Some(host)) = (out.as_ref().and_then(found), &scene.host) else {
        return;
    };
    let config = scene.stored.config.as_ref();
    let is_vxlan = config.is_some_and(|config| config.backend.kind == BackendType::Vxlan);
    let is_tunnel = is_vxlan && scene.devices().contains(&out.name);
    let overhead = if is_tunnel {
        vxlan::overhead(family)
    } else {
        0
    };
    if out.name != host.iface && out.mtu + overhead > host.mtu {
        return steps.fail(
            NAME,
            format!(
                "{} takes packets of {} bytes, with {overhead} of the tunnel that is more than the {} of {}",
                out.name, out.mtu, host.mtu, host.iface
            ),
            "flanneld sets the device's MTU from the interface's when it starts: restart it, then the containers",
        );
    }
    let bridge = bridge.and_then(|name| name.parse().ok());
    match bridge.as_ref().and_then(found) {
        Some(bridge) if bridge.mtu > out.mtu => steps.warn(
            NAME,
            format!(
                "{} has an MTU of {}, {} one of {}: containers learn the smaller one by ICMP, or large transfers hang",
                bridge.name, bridge.mtu, out.name, out.mtu
            ),
            "restart the containers: they take their MTU from subnet.env when they start",
        ),
        _ => steps.ok(NAME, format!("{} bytes on {}, {} on {}", out.mtu, out.name, host.mtu, host.iface)),
    }
}

/// The answer: what the kernel does with a packet that comes back.
pub(super) fn back(
    steps: &mut Steps,
    ends: &Ends,
    bridge: Option<&str>,
    out: Option<IfName>,
) -> Result<()> {
    const NAME: &str = "return";
    let Some(device) = out else {
        steps.skip(NAME, "not known by which device answers arrive");
        return Ok(());
    };
    let packet = Packet {
        to: ends.local.address,
        from: Some(ends.far),
        arrives: Some(device),
    };
    let filter = |name: &str| {
        let value = sysctl(&format!("net/ipv4/conf/{name}/rp_filter"))?;
        value.parse::<u8>().ok()
    };
    let strict = filter("all").max(filter(&device.to_string())) == Some(1);
    match fate(&packet)? {
        Fate::Delivered => steps.shown(NAME, "answers are for this node", packet.command()),
        Fate::Sent(path) if path.via.is_none() && bridge.is_none_or(|bridge| bridge == path.iface.to_string()) => {
            steps.shown(NAME, format!("answers go to {}", described(&path)), packet.command());
        }
        Fate::Sent(path) => steps.fail(
            NAME,
            format!("answers go out of {}, not to the container", described(&path)),
            format!("find the rule or route that leads them there: `{}`", packet.command()),
        ),
        Fate::Dropped(error) if strict && matches!(error.errno, libc::EXDEV | libc::EINVAL) => steps.fail(
            NAME,
            format!("rp_filter drops what arrives on {device} from {}: it would be sent another way", ends.far),
            format!("sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{device}.rp_filter=2, or repair the route to {}", ends.far),
        ),
        Fate::Dropped(error) => steps.fail(
            NAME,
            format!("the kernel drops answers: {error}"),
            "look at the routes and rules for that packet: `ip rule`, `ip route`",
        ),
    }
    Ok(())
}

/// Both ends are on this node: the bridge carries the packets.
pub(super) fn same_node(steps: &mut Steps, ends: &Ends, bridge: Option<&str>) -> Result<()> {
    const NAME: &str = "routing";
    let packet = Packet {
        to: ends.far,
        from: None,
        arrives: None,
    };
    match fate(&packet)? {
        Fate::Delivered => steps.shown(
            NAME,
            format!("{} is this node's own", ends.far),
            packet.command(),
        ),
        Fate::Sent(path)
            if path.via.is_none()
                && bridge.is_none_or(|bridge| bridge == path.iface.to_string()) =>
        {
            steps.shown(
                NAME,
                format!(
                    "both are on this node; {} is behind {}",
                    ends.far, path.iface
                ),
                packet.command(),
            );
        }
        Fate::Sent(path) => steps.fail(
            NAME,
            format!(
                "both are on this node, but {} is reached by {}",
                ends.far,
                described(&path)
            ),
            "is that container plugged into another bridge? `ip route`, `ip address`",
        ),
        Fate::Dropped(error) => steps.fail(
            NAME,
            format!("no way to {}: {error}", ends.far),
            "start that container",
        ),
    }
    Ok(())
}

fn found(name: &IfName) -> Option<Interface> {
    let all = interfaces().ok()?;
    all.into_iter().find(|interface| interface.name == *name)
}

fn described(path: &Path) -> String {
    match path.via {
        Some(via) => format!("{} through {via}", path.iface),
        None => path.iface.to_string(),
    }
}
