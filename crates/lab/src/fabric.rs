//! The wires: a bridge in a namespace of its own, and a cable from it to every node.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use crate::{Error, Namespace};

/// More would not fit the fabric's /24.
pub(crate) const MAX_NODES: usize = 250;

/// The fabric's own address, the nodes' default gateway; etcd listens there.
pub(crate) const GATEWAY4: Ipv4Addr = Ipv4Addr::new(192, 168, 78, 254);
pub(crate) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd78, 0x78, 0, 0, 0, 0, 0, 0xfe);

/// The underlay address of node `index`.
pub(crate) fn ipv4(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 78, index)
}

/// The underlay address of node `index`.
pub(crate) fn ipv6(index: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd78, 0x78, 0, 0, 0, 0, 0, u16::from(index))
}

/// Which families the underlay carries, and how much.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Underlay {
    pub(crate) mtu: u32,
    pub(crate) ipv4: bool,
    pub(crate) ipv6: bool,
}

/// Whether this kernel speaks IPv6 at all.
pub(crate) fn kernel_has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// What every namespace of a lab needs: forwarding, addresses usable at once, echo sockets.
pub(crate) fn prepare(place: &Namespace) -> Result<(), Error> {
    let mut settings = vec![
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/ping_group_range", "0 0"),
        // Loose, as systemd sets it; a new namespace would otherwise copy the machine's.
        ("net/ipv4/conf/all/rp_filter", "2"),
        ("net/ipv4/conf/default/rp_filter", "2"),
    ];
    if kernel_has_ipv6() {
        settings.extend([
            ("net/ipv6/conf/all/disable_ipv6", "0"),
            ("net/ipv6/conf/default/disable_ipv6", "0"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/router_solicitations", "0"),
        ]);
    }
    place.sysctl(&settings)
}

/// Makes the bridge.
pub(crate) fn build(fabric: &Namespace, underlay: Underlay) -> Result<(), Error> {
    prepare(fabric)?;
    let present = |key: &&str| Path::new("/proc/sys").join(key).exists();
    let keys = [
        "net/bridge/bridge-nf-call-iptables",
        "net/bridge/bridge-nf-call-ip6tables",
        "net/bridge/bridge-nf-call-arptables",
    ];
    let off: Vec<(&str, &str)> = fabric.run(|| {
        keys.iter()
            .filter(|k| present(k))
            .map(|k| (*k, "0"))
            .collect()
    })?;
    fabric.sysctl(&off)?;
    let mut lines = vec![
        "link set lo up".into(),
        "link add br0 type bridge forward_delay 0 mcast_snooping 0".into(),
        format!("link set br0 mtu {} up", underlay.mtu),
    ];
    if underlay.ipv4 {
        lines.push(format!("addr add {GATEWAY4}/24 dev br0"));
    }
    if underlay.ipv6 {
        lines.push(format!("addr add {GATEWAY6}/64 dev br0 nodad"));
    }
    fabric.ip_batch(&lines)
}

/// Lays a cable from the bridge to `node`, with the node's addresses and default routes on it.
pub(crate) fn connect(
    fabric: &Namespace,
    node: &Namespace,
    index: u8,
    underlay: Underlay,
) -> Result<(), Error> {
    prepare(node)?;
    let (name, mtu) = (node.name(), underlay.mtu);
    fabric.ip_batch(&[
        format!(
            "link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
            node.net_path()
        ),
        format!("link set {name} master br0 up"),
    ])?;
    let mut lines = vec!["link set lo up".into(), "link set eth0 up".into()];
    if underlay.ipv4 {
        lines.push(format!("addr add {}/24 dev eth0", ipv4(index)));
        lines.push(format!("route add 0.0.0.0/0 via {GATEWAY4} dev eth0"));
    }
    if underlay.ipv6 {
        lines.push(format!("addr add {}/64 dev eth0 nodad", ipv6(index)));
        lines.push(format!("route add ::/0 via {GATEWAY6} dev eth0"));
    }
    node.ip_batch(&lines)
}
