//! Addresses as numbers, so that both families share one arithmetic. The numbers of two families
//! are never compared with each other: the owner keeps the families apart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::Family;

/// An address as a number.
pub(crate) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The address that [`number`] made `n` of; the highest one for a number beyond it.
pub(crate) fn address(family: Family, n: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(n).unwrap_or(u32::MAX))),
        Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(n)),
    }
}

/// The subnet of `len` bits at the number `n`, host bits cleared.
pub(crate) fn subnet(family: Family, n: u128, len: u8) -> IpNet {
    let ip = address(family, n);
    IpNet::new(ip, len)
        .unwrap_or_else(|_| IpNet::from(ip))
        .trunc()
}

/// The first and the last address of a network, as numbers.
pub(crate) fn ends(net: &IpNet) -> (u128, u128) {
    (number(net.network()), number(net.broadcast()))
}
