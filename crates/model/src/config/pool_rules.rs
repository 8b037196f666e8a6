//! What a family's network, subnet length and bounds may be, and what they are by default.

use std::net::IpAddr;

use ipnet::IpNet;

use super::json::{Members, refused};
use super::{ConfigError, Keys, Pool, keys, note};
use crate::Family;
use crate::range::{address, ends, number, subnet};

/// A subnet needs two more addresses than the tunnel and the bridge take.
const LONGEST_SPARE: u8 = 2;

/// Fewer than four subnets leave too few hosts: the first subnet is never used by default.
const FOUR_SUBNETS: u8 = 2;

/// The pool that the keys of `family` describe; `None` if something is wrong, which is added to
/// `faults`.
pub(super) fn pool(
    family: Family,
    members: &Members,
    faults: &mut Vec<ConfigError>,
) -> Option<Pool> {
    let keys = keys(family);
    let network = note(
        faults,
        network(
            family,
            keys,
            members,
            family.bits() - LONGEST_SPARE - FOUR_SUBNETS,
        ),
    )?;
    let subnet_len = note(faults, subnet_len(family, keys, members, &network))?;
    let (first, last) = ends(&network);
    let second = number(subnet(family, first, subnet_len).broadcast()).saturating_add(1);
    let last = number(subnet(family, last, subnet_len).network());

    let bounds = Bounds {
        family,
        members,
        network,
        subnet_len,
    };
    let min = note(faults, bounds.read(keys.min));
    let max = note(faults, bounds.read(keys.max));
    let min = min?.unwrap_or(address(family, second));
    let max = max?.unwrap_or(address(family, last));
    if min > max {
        let expected = format!("an address from {} ({min}) on", keys.min);
        faults.push(refused(keys.max, max, expected));
        return None;
    }
    Some(Pool {
        network,
        subnet_len,
        min,
        max,
    })
}

/// The network under the keys of `family` as a pool whose subnets are assigned by somebody else:
/// only the network itself is read.
pub(super) fn whole(
    family: Family,
    members: &Members,
    faults: &mut Vec<ConfigError>,
) -> Option<Pool> {
    let network = note(
        faults,
        network(family, keys(family), members, family.bits()),
    )?;
    let usual = match family {
        Family::V4 => 24,
        Family::V6 => 64,
    };
    Some(Pool {
        network,
        subnet_len: network.prefix_len().max(usual),
        min: network.network(),
        max: network.broadcast(),
    })
}

fn network(
    family: Family,
    keys: &Keys,
    members: &Members,
    longest: u8,
) -> Result<IpNet, ConfigError> {
    let (example, how) = match family {
        Family::V4 => ("10.244.0.0/16", "an IPv4 network"),
        Family::V6 => ("fd00:10:244::/48", "an IPv6 network"),
    };
    let expected = format!("{how} of length 1 to {longest}, such as {example}");
    let Some(text) = members.text(keys.network, &expected)? else {
        let expected = format!("{expected}, because {} is true", keys.enable);
        return Err(ConfigError::Missing {
            key: keys.network.into(),
            expected,
        });
    };
    // Host bits are cleared, as Go's ParseCIDR does.
    let network = text.parse().map(|net: IpNet| net.trunc()).ok();
    let usable = network
        .filter(|net| Family::of_net(net) == family && (1..=longest).contains(&net.prefix_len()));
    usable.ok_or_else(|| refused(keys.network, format!("{text:?}"), expected))
}

fn subnet_len(
    family: Family,
    keys: &Keys,
    members: &Members,
    network: &IpNet,
) -> Result<u8, ConfigError> {
    let shortest = network.prefix_len() + FOUR_SUBNETS;
    let longest = family.bits() - LONGEST_SPARE;
    let usual = match family {
        Family::V4 => 24,
        Family::V6 => 64,
    };
    let default = shortest.max(usual);
    let Some(raw) = members.raw(keys.len) else {
        return Ok(default);
    };
    match raw.get().parse::<u8>() {
        // Go cannot tell 0 from an absent number.
        Ok(0) => Ok(default),
        Ok(len) if (shortest..=longest).contains(&len) => Ok(len),
        _ => {
            let expected = format!(
                "a whole number from {shortest} (at least four subnets in {} {network}) to {longest}",
                keys.network
            );
            Err(refused(keys.len, raw.get(), expected))
        }
    }
}

/// Reads `SubnetMin` and `SubnetMax`.
struct Bounds<'a> {
    family: Family,
    members: &'a Members,
    network: IpNet,
    subnet_len: u8,
}

impl Bounds<'_> {
    /// Returns the bound under `key`. The unspecified address means the default, as in Go.
    fn read(&self, key: &str) -> Result<Option<IpAddr>, ConfigError> {
        let inside = format!("an {} address inside {}", self.family, self.network);
        let Some(text) = self.members.text(key, &inside)? else {
            return Ok(None);
        };
        let refuse = |expected| refused(key, format!("{text:?}"), expected);
        let ip = match text.parse::<IpAddr>() {
            Ok(ip) if Family::of(&ip) == self.family => ip,
            _ => return Err(refuse(inside)),
        };
        if ip.is_unspecified() {
            return Ok(None);
        }
        if !self.network.contains(&ip) {
            return Err(refuse(inside));
        }
        let aligned = subnet(self.family, number(ip), self.subnet_len).network();
        match aligned == ip {
            true => Ok(Some(ip)),
            false => Err(refuse(format!(
                "the first address of a subnet of length {}, such as {aligned}",
                self.subnet_len
            ))),
        }
    }
}
