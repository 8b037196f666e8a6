//! The name of a lease: its subnets, in the form that etcd keys and file names have.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::Dual;
use crate::range::number;

/// The subnets of one lease, at least one family: `172.30.80.0-24`,
/// `172.30.80.0-24&fd00:1:2::-64`, or `0.0.0.0-0&fd00:1:2::-64` where there is no IPv4 (upstream
/// writes an empty IPv4 subnet so). Always a network address without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubnetKey(Dual<IpNet>);

/// Text or subnets that name no lease.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no subnet key of the form 172.30.80.0-24 or 172.30.80.0-24&fd00:1:2::-64")]
pub struct BadSubnetKey(String);

impl SubnetKey {
    /// A key for these subnets; host bits are cleared. `None` when there is no subnet, or one
    /// is given for the wrong family.
    pub fn new(nets: Dual<IpNet>) -> Option<SubnetKey> {
        let wrong = matches!(nets.v4, Some(IpNet::V6(_))) || matches!(nets.v6, Some(IpNet::V4(_)));
        if wrong || nets.is_empty() {
            return None;
        }
        Some(SubnetKey(nets.map(|_, net| net.trunc())))
    }

    /// The subnets, by family.
    pub fn nets(&self) -> &Dual<IpNet> {
        &self.0
    }

    /// Whether any address is in both.
    pub fn overlaps(&self, other: &SubnetKey) -> bool {
        self.0.iter().any(|(family, a)| {
            other
                .0
                .get(family)
                .is_some_and(|b| a.contains(b) || b.contains(a))
        })
    }
}

impl From<Ipv4Net> for SubnetKey {
    /// The key for an IPv4 subnet alone; host bits are cleared.
    fn from(net: Ipv4Net) -> SubnetKey {
        SubnetKey(Dual {
            v4: Some(IpNet::V4(net.trunc())),
            v6: None,
        })
    }
}

/// The first host address of a subnet (`.1`), with the subnet's length: what `subnet.env` names
/// and what the node's bridge gets.
pub fn gateway(net: &IpNet) -> IpNet {
    let ip = match net.network() {
        IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits().wrapping_add(1))),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits().wrapping_add(1))),
    };
    with_len(ip, net.prefix_len())
}

/// A subnet's first address (`.0`) alone, `/32` or `/128`: the address of the node's tunnel
/// device, and the gateway that its peers' routes name.
pub fn first(net: &IpNet) -> IpNet {
    IpNet::from(net.network())
}

fn with_len(ip: IpAddr, len: u8) -> IpNet {
    IpNet::new(ip, len).unwrap_or_else(|_| IpNet::from(ip))
}

/// A network in two numbers.
fn numbers(net: &IpNet) -> (u128, u8) {
    (number(net.addr()), net.prefix_len())
}

impl Ord for SubnetKey {
    /// By the IPv4 subnet, then by the IPv6 one: address, then length; none comes first. Written out because a
    /// bulk load of leases spends much of its time here: numbers compare faster than addresses by family.
    fn cmp(&self, other: &SubnetKey) -> Ordering {
        let v4 = |key: &SubnetKey| match &key.0.v4 {
            Some(IpNet::V4(net)) => {
                u64::from(net.addr().to_bits()) << 8 | u64::from(net.prefix_len()) | 1 << 63
            }
            Some(IpNet::V6(_)) | None => 0,
        };
        v4(self)
            .cmp(&v4(other))
            .then_with(|| match (&self.0.v6, &other.0.v6) {
                (None, None) => Ordering::Equal,
                (ours, theirs) => ours
                    .as_ref()
                    .map(numbers)
                    .cmp(&theirs.as_ref().map(numbers)),
            })
    }
}

impl PartialOrd for SubnetKey {
    fn partial_cmp(&self, other: &SubnetKey) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.v4 {
            Some(v4) => write!(f, "{}-{}", v4.network(), v4.prefix_len())?,
            None => f.write_str("0.0.0.0-0")?,
        }
        match self.0.v6 {
            Some(v6) => write!(f, "&{}-{}", v6.network(), v6.prefix_len()),
            None => Ok(()),
        }
    }
}

impl FromStr for SubnetKey {
    type Err = BadSubnetKey;

    fn from_str(s: &str) -> Result<SubnetKey, BadSubnetKey> {
        let bad = || BadSubnetKey(s.chars().take(100).collect());
        let (v4, v6) = match s.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (s, None),
        };
        let (ip, len) = part(v4).ok_or_else(bad)?;
        let v4 = Ipv4Net::new(ip, len).map_err(|_| bad())?;
        let v6 = match v6 {
            Some(v6) => {
                let (ip, len) = part(v6).ok_or_else(bad)?;
                Some(Ipv6Net::new(ip, len).map_err(|_| bad())?)
            }
            None => None,
        };
        let nets = Dual {
            v4: Some(IpNet::V4(v4)).filter(|net| net.prefix_len() > 0),
            v6: v6.map(IpNet::V6).filter(|net| net.prefix_len() > 0),
        };
        let clean = nets.iter().all(|(_, net)| net.addr() == net.network());
        SubnetKey::new(nets).filter(|_| clean).ok_or_else(bad)
    }
}

/// `ADDRESS-LENGTH`, the length in plain decimal digits.
fn part<Ip: FromStr>(s: &str) -> Option<(Ip, u8)> {
    let (ip, len) = s.split_once('-')?;
    // The parser of numbers would take a sign.
    let digits = len.bytes().all(|b| b.is_ascii_digit());
    Some((ip.parse().ok()?, len.parse().ok().filter(|_| digits)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_as_written() {
        for text in [
            "172.30.80.0-24",
            "172.30.80.0-24&fd00:1:2::-64",
            "0.0.0.0-0&fd00::-64",
        ] {
            let key: SubnetKey = text.parse().unwrap();
            assert_eq!(key.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in [
            "",
            "-",
            "&",
            "172.30.80.0",
            "172.30.80.0-",
            "172.30.80.0-33",
            "172.30.80.0-+24",
            "172.30.80.1-24",
            "172.30.80.0-24&",
            "172.30.80.0-24&fd00::1-64",
            "0.0.0.0-0",
            "fd00::-64",
            "172.30.80.0-24&172.30.81.0-24",
            "../config",
            "172.30.80.0-24.tmp",
            "172.30.80.0-24&::-0&",
            "999.1.1.0-24",
            "a\u{0}b",
        ] {
            assert!(text.parse::<SubnetKey>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn keys_are_ordered_by_address_and_then_length() {
        let sorted = [
            "0.0.0.0-0&::-1",
            "0.0.0.0-0&fd00::-64",
            "0.0.0.0-1",
            "0.0.0.0-1&fd00::-64",
            "9.255.0.0-24",
            "10.1.0.0-16",
            "10.1.0.0-24",
            "10.1.0.0-24&fd00::-63",
            "10.1.0.0-24&fd00::-64",
            "10.1.0.0-24&fd00:0:0:1::-64",
            "10.1.1.0-24",
            "200.1.1.0-24",
            "255.255.255.255-32",
        ];
        let keys = sorted.map(|text| text.parse::<SubnetKey>().unwrap());
        for (i, a) in keys.iter().enumerate() {
            for (j, b) in keys.iter().enumerate() {
                assert_eq!(a.cmp(b), i.cmp(&j), "{a} and {b}");
            }
        }
    }

    #[test]
    fn overlap_is_by_family() {
        let key = |s: &str| s.parse::<SubnetKey>().unwrap();
        assert!(key("10.1.0.0-16").overlaps(&key("10.1.2.0-24")));
        assert!(key("10.1.2.0-24").overlaps(&key("10.1.0.0-16")));
        assert!(!key("10.1.2.0-24").overlaps(&key("10.1.3.0-24")));
        assert!(!key("10.1.2.0-24").overlaps(&key("0.0.0.0-0&fd00::-64")));
        assert!(key("10.1.2.0-24&fd00::-64").overlaps(&key("10.1.3.0-24&fd00::-64")));
    }

    #[test]
    fn gateway_is_the_first_host() {
        let net = |s: &str| s.parse::<IpNet>().unwrap();
        assert_eq!(
            gateway(&net("172.30.80.0/24")).to_string(),
            "172.30.80.1/24"
        );
        assert_eq!(
            gateway(&net("fd00:0:0:1::/64")).to_string(),
            "fd00:0:0:1::1/64"
        );
        assert_eq!(first(&net("172.30.80.0/24")).to_string(), "172.30.80.0/32");
    }
}
