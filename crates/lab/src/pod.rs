//! Pods: namespaces behind a node's bridge `cni0`, as a container runtime would make them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;

use ipnet::IpNet;
use model::{Dual, Family};

use crate::fabric;
use crate::settle::settle;
use crate::{Error, Namespace, SubnetEnv};

/// A pod. It dereferences to its [`Namespace`].
#[derive(Debug)]
pub struct Pod {
    place: Namespace,
    addr: Dual<IpAddr>,
}

impl Pod {
    /// Its address, where the network has that family.
    pub fn ip(&self, family: Family) -> Option<IpAddr> {
        self.addr.get(family).copied()
    }

    /// Its addresses, IPv4 first.
    pub fn ips(&self) -> Vec<IpAddr> {
        self.addr.iter().map(|(_, ip)| *ip).collect()
    }
}

impl Deref for Pod {
    type Target = Namespace;
    fn deref(&self) -> &Namespace {
        &self.place
    }
}

/// Plugs `places` into the node's `cni0` (made when it is the first time) and gives them addresses
/// after those of the `before` pods that are there already.
pub(crate) fn attach(
    node: &Namespace,
    env: &SubnetEnv,
    before: usize,
    places: Vec<Namespace>,
) -> Result<Vec<Pod>, Error> {
    let mut on_node = Vec::new();
    if before == 0 && !places.is_empty() {
        on_node.push(format!(
            "link add cni0 mtu {} type bridge forward_delay 0 mcast_snooping 0",
            env.mtu
        ));
        on_node.push("link set cni0 up".to_string());
        on_node.extend(
            env.subnet
                .iter()
                .map(|(family, net)| format!("addr add {net} dev cni0{}", no_dad(family))),
        );
    }
    let mut pods = Vec::new();
    for (i, place) in places.into_iter().enumerate() {
        fabric::prepare(&place)?;
        let addr = Dual::from_fn(|f| env.subnet.get(f).map(|net| nth(net, before + i + 2)));
        let (veth, mtu) = (format!("veth{}", before + i + 1), env.mtu);
        on_node.push(format!(
            "link add {veth} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
            place.net_path()
        ));
        on_node.push(format!("link set {veth} master cni0 up"));
        pods.push(Pod { place, addr });
    }
    node.ip_batch(&on_node)?;
    for pod in &pods {
        let mut lines = vec!["link set lo up".to_string(), "link set eth0 up".to_string()];
        for (family, net) in env.subnet.iter() {
            let Some(ip) = pod.ip(family) else { continue };
            lines.push(format!(
                "addr add {ip}/{} dev eth0{}",
                net.prefix_len(),
                no_dad(family)
            ));
            lines.push(format!(
                "route add {} via {} dev eth0",
                everything(family),
                net.addr()
            ));
        }
        pod.ip_batch(&lines)?;
    }
    if !pods.is_empty() {
        settle(node)?;
        pods.iter().try_for_each(|pod| settle(pod))?;
    }
    Ok(pods)
}

/// `ip -batch` cannot tell from `default` alone which family is meant.
fn everything(family: Family) -> &'static str {
    match family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    }
}

fn no_dad(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => " nodad",
    }
}

/// The `n`th address of a network.
fn nth(net: &IpNet, n: usize) -> IpAddr {
    match net.network() {
        IpAddr::V4(base) => Ipv4Addr::from(u32::from(base).wrapping_add(n as u32)).into(),
        IpAddr::V6(base) => Ipv6Addr::from(u128::from(base).wrapping_add(n as u128)).into(),
    }
}
