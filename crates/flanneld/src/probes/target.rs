//! Another node as probes need it, in few bytes: there may be tens of thousands.

use std::cmp::Ordering;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use model::subnet::first;
use model::{Dual, Family, SubnetKey};

/// The subnets and public addresses of another node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target(Packed);

/// Nearly all nodes have IPv4 alone: 16 bytes in the place of 70.
#[derive(Clone, Debug, PartialEq)]
enum Packed {
    V4(Ipv4Net, Ipv4Addr),
    Other(Box<(SubnetKey, Dual<IpAddr>)>),
}

impl Target {
    /// Packs a node's subnets and public addresses.
    pub(crate) fn new(key: SubnetKey, public_ip: Dual<IpAddr>) -> Target {
        Target(match (key.nets(), public_ip) {
            (
                Dual {
                    v4: Some(IpNet::V4(net)),
                    v6: None,
                },
                Dual {
                    v4: Some(IpAddr::V4(ip)),
                    v6: None,
                },
            ) => Packed::V4(*net, ip),
            _ => Packed::Other(Box::new((key, public_ip))),
        })
    }

    /// Returns the subnets.
    pub(super) fn key(&self) -> SubnetKey {
        match &self.0 {
            Packed::V4(net, _) => SubnetKey::from(*net),
            Packed::Other(other) => other.0,
        }
    }

    /// Returns the public addresses.
    pub(super) fn public_ip(&self) -> Dual<IpAddr> {
        match &self.0 {
            Packed::V4(_, ip) => Dual {
                v4: Some(IpAddr::V4(*ip)),
                v6: None,
            },
            Packed::Other(other) => other.1,
        }
    }

    /// Returns the address of its tunnel device.
    pub(super) fn overlay(&self, family: Family) -> Option<IpAddr> {
        let key = self.key();
        let net = key.nets().get(family)?;
        Some(first(net).addr())
    }

    /// Returns the addresses that it sends from.
    pub(super) fn sources(&self) -> impl Iterator<Item = IpAddr> {
        let public = self.public_ip();
        Family::ALL.into_iter().flat_map(move |family| {
            let public = public.get(family).copied();
            public.into_iter().chain(self.overlay(family))
        })
    }

    /// Compares by the subnets.
    pub(super) fn cmp(&self, other: &Target) -> Ordering {
        match (&self.0, &other.0) {
            (Packed::V4(a, _), Packed::V4(b, _)) => {
                (a.addr(), a.prefix_len()).cmp(&(b.addr(), b.prefix_len()))
            }
            _ => self.key().cmp(&other.key()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(key: &str, v4: Option<&str>, v6: Option<&str>) -> Target {
        let ip = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        let public_ip = Dual {
            v4: ip(v4),
            v6: ip(v6),
        };
        Target::new(key.parse().unwrap(), public_ip)
    }

    #[test]
    fn a_node_unpacks_as_it_was_and_keeps_its_place() {
        let all = [
            ("0.0.0.0-0&fd00:1::-64", None, Some("fd78::1")),
            ("10.1.2.0-23", Some("192.0.2.1"), None),
            ("10.1.2.0-24", Some("192.0.2.1"), None),
            ("10.1.2.0-24", Some("192.0.2.2"), Some("fd78::2")),
            ("10.1.2.0-24&fd00:1::-64", Some("192.0.2.3"), None),
            ("10.1.3.0-24", None, Some("fd78::4")),
        ];
        let targets = all.map(|(key, v4, v6)| target(key, v4, v6));
        for (a, (key, v4, v6)) in targets.iter().zip(all) {
            assert_eq!(a.key().to_string(), key);
            let ips = a.public_ip();
            assert_eq!(ips.v4.map(|ip| ip.to_string()).as_deref(), v4);
            assert_eq!(ips.v6.map(|ip| ip.to_string()).as_deref(), v6);
            for b in &targets {
                assert_eq!(a.cmp(b), a.key().cmp(&b.key()), "{a:?} and {b:?}");
            }
        }
        assert_eq!(size_of::<Target>(), 16);
    }
}
