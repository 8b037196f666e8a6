//! The node's bridge may still carry the address of a lease that this node no longer has.
//!
//! It happens when a node comes back with another subnet and nobody removed the bridge. The bridge plugin then
//! refuses every container ("already has an IP address different from …"), and the old subnet, which may be
//! another node's by now, cannot be reached from here.

use ipnet::IpNet;

use crate::failure::note;
use crate::netlink::{self, Netlink};
use crate::object::Object;

const DEFAULT_BRIDGE: &str = "cni0";

/// A bridge with addresses of older leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    bridge: String,
    index: u32,
    addresses: Vec<IpNet>,
    subnets: Vec<IpNet>,
}

impl Stale {
    /// Looks at the bridge that the delegate `config` is about, if it is about one whose address is the
    /// delegate's to set. `subnets` are this node's. A kernel that does not answer is no reason to fail.
    pub fn find(config: &Object, subnets: &[IpNet]) -> Option<Stale> {
        let is = |key| matches!(config.decode::<bool>(key), Ok(Some(true)));
        let kind = config.decode::<String>("type").ok().flatten();
        let gateway = is("isGateway") || is("isDefaultGateway");
        // With forceAddress the delegate itself replaces what it finds.
        if kind.as_deref() != Some("bridge") || !gateway || is("forceAddress") {
            return None;
        }
        let bridge = match config.decode::<String>("bridge") {
            Ok(Some(name)) if !name.is_empty() => name,
            _ => DEFAULT_BRIDGE.to_owned(),
        };
        let look = || match netlink::index(&bridge)? {
            None => Ok(None),
            Some(index) => Ok(Some((index, Netlink::open()?.addresses(index)?))),
        };
        let (index, mut addresses) = look()
            .inspect_err(|error: &std::io::Error| {
                note(format_args!("cannot look at {bridge}: {error}"));
            })
            .ok()
            .flatten()?;
        let all = addresses.clone();
        addresses.retain(|net| is_stale(net, &all, subnets));
        (!addresses.is_empty()).then(|| Stale {
            bridge,
            index,
            addresses,
            subnets: subnets.to_vec(),
        })
    }

    /// Takes the addresses off, if no container is on the bridge. What could not be done is returned, with
    /// why.
    ///
    /// # Errors
    /// What is left, and why, as one sentence.
    pub fn repair(&self) -> Result<(), String> {
        let failed =
            |error: std::io::Error| format!("{self}, and it could not be removed: {error}");
        let netlink = Netlink::open().map_err(failed)?;
        match netlink.ports(self.index).map_err(failed)? {
            0 => {}
            ports => {
                return Err(format!(
                    "{self}, and is in use by {ports} interface(s): it is removed once they are gone"
                ));
            }
        }
        for address in &self.addresses {
            netlink
                .remove_address(self.index, address)
                .map_err(failed)?;
            note(format_args!(
                "took {address}, of an older lease, off {}",
                self.bridge
            ));
        }
        Ok(())
    }

    /// Returns what to do about it by hand.
    pub fn remedy(&self) -> String {
        format!(
            "drain this node, then `ip link delete {}`; or set \"repairBridge\": true, which takes the address off when no container uses the bridge",
            self.bridge
        )
    }
}

impl std::fmt::Display for Stale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |nets: &[IpNet]| {
            nets.iter()
                .map(IpNet::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        };
        write!(
            f,
            "{} carries {} of an older lease (this node's is {})",
            self.bridge,
            list(&self.addresses),
            list(&self.subnets)
        )
    }
}

/// Returns whether an address is not of this node's subnet of its family. One in it with another prefix length is of a
/// lease of another size, for which the bridge plugin refuses every container, unless the bridge has one with the right
/// length `among` its addresses. Addresses that nobody leases, and families that this node has no lease of, do not count.
fn is_stale(net: &IpNet, among: &[IpNet], subnets: &[IpNet]) -> bool {
    let local = match net {
        IpNet::V4(net) => net.addr().is_link_local(),
        IpNet::V6(net) => net.addr().is_unicast_link_local(),
    };
    let is_v4 = |net: &IpNet| matches!(net, IpNet::V4(_));
    let own = subnets.iter().find(|own| is_v4(own) == is_v4(net));
    !local
        && own.is_some_and(|own| {
            let suits =
                |net: &IpNet| own.contains(&net.addr()) && net.prefix_len() == own.prefix_len();
            !own.contains(&net.addr()) || !suits(net) && !among.iter().any(suits)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_judged_by_the_subnet_of_its_family() {
        let nets = |text: &str| -> Vec<IpNet> {
            text.split(' ').map(|net| net.parse().unwrap()).collect()
        };
        for (address, subnets, stale) in [
            ("10.1.2.1/24", "10.1.2.0/24", false),
            ("10.1.3.1/24", "10.1.2.0/24", true),
            // An older lease of another length.
            ("10.1.2.1/16", "10.1.2.0/24", true),
            ("10.1.2.1/24", "10.1.2.0/25", true),
            ("10.1.2.1/24", "10.1.2.0/23", true),
            ("fd00::1/64", "fd00::/80", true),
            ("10.1.0.1/16", "10.1.2.0/24", true),
            ("fd00:0:0:2::1/64", "10.1.2.0/24", false),
            ("fd00:0:0:2::1/64", "10.1.2.0/24 fd00:0:0:1::/64", true),
            ("fe80::1/64", "10.1.2.0/24 fd00:0:0:1::/64", false),
            ("169.254.1.1/16", "10.1.2.0/24", false),
        ] {
            assert_eq!(
                is_stale(&address.parse().unwrap(), &nets(address), &nets(subnets)),
                stale,
                "{address}"
            );
        }
        // Somebody's second address beside the right one.
        let both = nets("10.1.2.1/24 10.1.2.9/32");
        assert!(!is_stale(&both[1], &both, &nets("10.1.2.0/24")));
    }
}
