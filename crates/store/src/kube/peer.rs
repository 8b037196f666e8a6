//! A Node as a lease: what its annotations and its podCIDRs say to the other nodes.

use std::net::IpAddr;

use model::{BackendType, Dual, Family, Lease, LeaseAttrs, SubnetKey};
use serde_json::value::RawValue;

use super::annotations::{Annotations, Key};
use super::node::Node;

/// Where a family's annotations are.
pub(super) struct Keys {
    pub data: Key,
    pub public_ip: Key,
    pub overwrite: Key,
    pub node_public_ip: Key,
}

/// The annotations of one family.
pub(super) fn keys(family: Family) -> Keys {
    match family {
        Family::V4 => Keys {
            data: Key::BackendData,
            public_ip: Key::PublicIp,
            overwrite: Key::PublicIpOverwrite,
            node_public_ip: Key::NodePublicIp,
        },
        Family::V6 => Keys {
            data: Key::BackendV6Data,
            public_ip: Key::PublicIpv6,
            overwrite: Key::PublicIpv6Overwrite,
            node_public_ip: Key::NodePublicIpv6,
        },
    }
}

/// Whether flannel runs on the Node, as it says.
pub(super) fn is_managed<T: AsRef<str>>(annotations: &Annotations<T>) -> bool {
    annotations.get(Key::Managed).map(AsRef::as_ref) == Some("true")
}

/// The lease that a Node publishes, in the `families` that are in use.
///
/// # Errors
/// What is missing or cannot be read, naming the annotation or field.
pub(super) fn lease(node: &Node<'_>, families: &[Family]) -> Result<Lease, String> {
    let subnets = node
        .subnets(families)
        .map_err(|text| format!("spec.podCIDRs: {text:?} is no subnet"))?;
    let key = SubnetKey::new(subnets).ok_or("it has no podCIDR yet")?;
    Ok(Lease {
        key,
        attrs: attrs(&node.annotations, families)?,
        seniority: node.created,
    })
}

/// What the annotations say.
pub(super) fn attrs<T: AsRef<str>>(
    annotations: &Annotations<T>,
    families: &[Family],
) -> Result<LeaseAttrs, String> {
    let text = |key| {
        annotations
            .get(key)
            .map(AsRef::as_ref)
            .filter(|text| !text.is_empty())
    };
    let mut attrs = LeaseAttrs {
        backend_type: text(Key::BackendType).map(BackendType::parse),
        ..LeaseAttrs::default()
    };
    for family in families.iter().copied() {
        let keys = keys(family);
        if let Some(ip) = address(annotations, keys.public_ip, family)? {
            attrs.public_ip.set(family, Some(ip));
        }
        if let Some(json) = text(keys.data).filter(|json| *json != "null") {
            let data: Box<RawValue> = serde_json::from_str(json)
                .map_err(|error| format!("annotation {}: {error}", keys.data.name()))?;
            attrs.data.set(family, Some(data));
        }
    }
    attrs.checked().map_err(|error| match error {
        model::BadAttrs::NoAddress => "its annotations hold no public address".into(),
        error => format!("annotation public-ip: {error}"),
    })
}

/// The address of `family` in an annotation. Upstream writes an IPv4 address that there is not as
/// `0.0.0.0`.
pub(super) fn address<T: AsRef<str>>(
    annotations: &Annotations<T>,
    key: Key,
    family: Family,
) -> Result<Option<IpAddr>, String> {
    let Some(text) = annotations.get(key).map(AsRef::as_ref) else {
        return Ok(None);
    };
    if text.is_empty() {
        return Ok(None);
    }
    let ip: Option<IpAddr> = text.parse().ok();
    match ip.filter(|ip| Family::of(ip) == family) {
        Some(ip) => Ok(Some(ip).filter(|ip| !ip.is_unspecified())),
        None => Err(format!(
            "annotation {}: {text:?} is no {family} address",
            key.name()
        )),
    }
}

/// What an administrator has the node use as its public address (`node-public-ip`); what cannot be
/// read is named.
pub(super) fn assigned<T: AsRef<str>>(
    annotations: &Annotations<T>,
    mut bad: impl FnMut(String),
) -> Dual<IpAddr> {
    Dual::from_fn(|family| {
        address(annotations, keys(family).node_public_ip, family).unwrap_or_else(|error| {
            bad(error);
            None
        })
    })
}

/// The annotations that a node with `attrs` should have: a value, or none at all. In place of an address stands
/// what an administrator has overwritten it with.
pub(super) fn wanted<T: AsRef<str>>(
    attrs: &LeaseAttrs,
    families: &[Family],
    present: &Annotations<T>,
    mut bad: impl FnMut(String),
) -> Annotations<String> {
    let mut wanted = Annotations::default();
    wanted.set(Key::Managed, Some("true".into()));
    let kind = attrs.backend_type.as_ref().map_or("", |kind| kind.as_str());
    wanted.set(Key::BackendType, Some(kind.into()));
    for family in families.iter().copied() {
        let keys = keys(family);
        let data = attrs.data.get(family).map_or("null", |data| data.get());
        wanted.set(keys.data, Some(data.into()));
        let overwrite = address(present, keys.overwrite, family).unwrap_or_else(|error| {
            bad(error);
            None
        });
        let ip = overwrite.as_ref().or(attrs.public_ip.get(family));
        wanted.set(keys.public_ip, ip.map(IpAddr::to_string));
    }
    wanted
}
