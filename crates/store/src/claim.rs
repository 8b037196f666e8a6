//! Which subnet a node takes: the part of it that does not depend on the store.

use std::net::IpAddr;

use model::{Dual, LeaseAttrs, NetConfig, SubnetKey, pool};

use crate::{AcquireError, Claim};

/// Whether a lease was published by a node with these public addresses. The IPv4 address decides
/// where both have one.
pub(crate) fn same_node(attrs: &LeaseAttrs, ours: &Dual<IpAddr>) -> bool {
    match (attrs.public_ip.v4, ours.v4) {
        (Some(theirs), Some(ours)) => theirs == ours,
        _ => attrs.public_ip.v6.is_some() && attrs.public_ip.v6 == ours.v6,
    }
}

/// Addresses for a message: `10.0.0.1`, or `10.0.0.1 and fd00::1`.
pub(crate) fn addresses(ips: &Dual<IpAddr>) -> String {
    let all: Vec<String> = ips.iter().map(|(_, ip)| ip.to_string()).collect();
    all.join(" and ")
}

/// A free subnet: the previous one, or a random one (contract §4).
pub(crate) fn choose<'a>(
    config: &NetConfig,
    taken: impl Iterator<Item = &'a SubnetKey>,
    claim: &Claim,
) -> Result<SubnetKey, AcquireError> {
    let taken: Vec<SubnetKey> = taken.copied().collect();
    pool::choose(config, &taken, claim.previous.as_ref(), |n| {
        fastrand::usize(..n)
    })
    .map_err(|full| AcquireError::Full(full.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_known_by_its_public_address() {
        let theirs = |json: &str| LeaseAttrs::from_json(json.as_bytes()).unwrap();
        let ours = |v4: Option<&str>, v6: Option<&str>| Dual {
            v4: v4.map(|ip| ip.parse().unwrap()),
            v6: v6.map(|ip| ip.parse().unwrap()),
        };
        let v4 = theirs(r#"{"PublicIP":"10.0.0.1"}"#);
        let both = theirs(r#"{"PublicIP":"10.0.0.1","PublicIPv6":"fd00::1"}"#);
        let v6 = theirs(r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::1"}"#);
        assert!(same_node(&v4, &ours(Some("10.0.0.1"), None)));
        assert!(same_node(&v4, &ours(Some("10.0.0.1"), Some("fd00::1"))));
        assert!(!same_node(&v4, &ours(Some("10.0.0.2"), None)));
        assert!(
            !same_node(&both, &ours(Some("10.0.0.2"), Some("fd00::1"))),
            "IPv4 decides"
        );
        assert!(same_node(&both, &ours(None, Some("fd00::1"))));
        assert!(same_node(&v6, &ours(Some("10.0.0.1"), Some("fd00::1"))));
        assert!(!same_node(&v6, &ours(Some("10.0.0.1"), None)));
        assert!(!same_node(&v4, &ours(None, None)));
    }
}
