//! A Node as a lease: what its annotations and its podCIDRs say to the other nodes.

use std::net::IpAddr;

use model::{BackendType, Dual, Family, Lease, LeaseAttrs, Offer, Outside, SubnetKey};
use serde_json::value::RawValue;

use super::annotations::{Annotations, Key};
use super::node::Node;

/// The annotations of a family.
pub(super) struct Keys {
    pub data: Key,
    pub public_ip: Key,
    pub overwrite: Key,
    pub node_public_ip: Key,
}

/// Returns the annotations of a family.
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

/// Whether flannel runs on the Node, by its annotation.
pub(super) fn is_managed<T: AsRef<str>>(annotations: &Annotations<T>) -> bool {
    annotations.get(Key::Managed).map(AsRef::as_ref) == Some("true")
}

/// What a Node publishes.
#[derive(Debug)]
pub(super) struct Published {
    /// The lease, in the families that can be used.
    pub lease: Lease,
    /// What is wrong with the other families.
    pub faults: Vec<String>,
}

/// Returns the lease that a Node publishes, in the `families` that are in use. A fault in one family does
/// not affect the other.
///
/// # Errors
/// No family can be used: what is missing or cannot be read, naming the annotation or field.
pub(super) fn lease(node: &Node<'_>, families: &[Family]) -> Result<Published, String> {
    let mut faults = Vec::new();
    let mut subnets = node.subnets(families, |family, text| {
        faults.push((
            family,
            format!("spec.podCIDRs: {text:?} is not an {family} subnet"),
        ));
    });
    let attrs = attrs(&node.annotations, families, |family, fault| {
        subnets.set(family, None);
        faults.push((family, fault));
    });
    let faults: Vec<String> = faults.into_iter().map(|(_, fault)| fault).collect();
    let Some(key) = SubnetKey::new(subnets) else {
        return Err(if faults.is_empty() {
            "it has no podCIDR yet".into()
        } else {
            faults.join("; ")
        });
    };
    let lease = Lease {
        key,
        attrs: attrs?,
        seniority: node.created,
    };
    Ok(Published { lease, faults })
}

/// Returns what the annotations say. A family with an annotation that cannot be read is left out, and the
/// fault passed to `bad`.
///
/// # Errors
/// No address is left.
pub(super) fn attrs<T: AsRef<str>>(
    annotations: &Annotations<T>,
    families: &[Family],
    mut bad: impl FnMut(Family, String),
) -> Result<LeaseAttrs, String> {
    let kind = annotations.get(Key::BackendType).map(AsRef::as_ref);
    let mut attrs = LeaseAttrs {
        backend_type: kind.filter(|text| !text.is_empty()).map(BackendType::parse),
        ..LeaseAttrs::default()
    };
    let (mut checked, mut first_fault) = (Dual::default(), None);
    for family in families.iter().copied() {
        match family_attrs(annotations, family) {
            Ok((ip, data)) => {
                checked.set(family, ip);
                attrs.data.set(family, data);
            }
            Err(fault) => {
                first_fault.get_or_insert_with(|| fault.clone());
                bad(family, fault);
            }
        }
    }
    attrs.public_ip = checked;
    attrs.also = also(annotations, &attrs, families);
    attrs.checked().map_err(|error| match error {
        model::BadAttrs::NoAddress => {
            first_fault.unwrap_or_else(|| "its annotations hold no public address".into())
        }
        error => format!("annotation public-ip: {error}"),
    })
}

/// Returns what else a Node serves. The annotation begins with what the node published beside it: where that
/// is no longer so, another flannel has taken its place and knows nothing of the annotation.
fn also<T: AsRef<str>>(
    annotations: &Annotations<T>,
    attrs: &LeaseAttrs,
    families: &[Family],
) -> Box<[Offer]> {
    let Some(text) = annotations.get(Key::BackendAlso).map(AsRef::as_ref) else {
        return Box::default();
    };
    let mut offers = model::lease::also_from_json(text).into_vec();
    let text = |data: &Dual<Box<RawValue>>, family| data.get(family).map(|d| d.get().to_owned());
    let is_current = offers.first().is_some_and(|first| {
        first.backend_type == attrs.backend_type
            && families
                .iter()
                .all(|family| text(&first.data, *family) == text(&attrs.data, *family))
    });
    if !is_current {
        return Box::default();
    }
    offers.remove(0);
    for offer in &mut offers {
        let serves = |family: Family| families.contains(&family);
        offer.data =
            Dual::from_fn(|family| offer.data.get(family).cloned().filter(|_| serves(family)));
    }
    offers.into()
}

/// Returns the address and data of one family.
fn family_attrs<T: AsRef<str>>(
    annotations: &Annotations<T>,
    family: Family,
) -> Result<(Option<IpAddr>, Option<Box<RawValue>>), String> {
    let keys = keys(family);
    let ip = address(annotations, keys.public_ip, family)?;
    let alone = LeaseAttrs {
        public_ip: Dual::from_fn(|of| ip.filter(|_| of == family)),
        ..LeaseAttrs::default()
    };
    if let Err(error @ model::BadAttrs::ImpossibleAddress(_)) = alone.checked() {
        return Err(format!("annotation {}: {error}", keys.public_ip.name()));
    }
    let text = annotations.get(keys.data).map(AsRef::as_ref);
    let data = text.filter(|json| !json.is_empty() && *json != "null");
    let data = data.map(serde_json::from_str).transpose();
    let data = data.map_err(|error| format!("annotation {}: {error}", keys.data.name()))?;
    Ok((ip, data))
}

/// Returns the address of `family` in an annotation. Upstream writes `0.0.0.0` where there is no IPv4 address.
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
            "annotation {}: {} is not an {family} address",
            key.name(),
            Outside(text)
        )),
    }
}

/// Returns what an administrator wants the node to use as its public address (`node-public-ip`); what cannot
/// be read is passed to `bad`.
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

/// Returns the annotations that a node with `attrs` should have: a value, or none at all. An administrator's
/// overwrite takes the place of an address.
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
    if !attrs.also.is_empty() {
        let own = Offer {
            backend_type: attrs.backend_type.clone(),
            data: attrs.data.clone(),
        };
        let offers: Vec<Offer> = std::iter::once(own)
            .chain(attrs.also.iter().cloned())
            .collect();
        wanted.set(Key::BackendAlso, model::lease::also_to_json(&offers));
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::annotations::Prefix;

    /// A Node whose annotations and podCIDRs are these.
    fn node(values: &[(&str, &str)], cidrs: &[&str]) -> String {
        let annotations: serde_json::Map<_, _> = values
            .iter()
            .map(|(name, value)| (format!("f.io/{name}"), (*value).into()))
            .collect();
        serde_json::json!({
            "metadata": {"name": "n", "annotations": annotations},
            "spec": {"podCIDRs": cidrs},
        })
        .to_string()
    }

    #[test]
    fn every_value_of_a_node_may_be_cut_anywhere() {
        let values = [
            ("kube-subnet-manager", "true"),
            ("backend-type", "vxlan"),
            (
                "backend-data",
                r#"{"VNI":1,"VtepMAC":"ce:9c:a9:08:50:03","é":"\u00e9"}"#,
            ),
            (
                "backend-v6-data",
                r#"{"VNI":1,"VtepMAC":"ce:9c:a9:08:50:04"}"#,
            ),
            ("public-ip", "192.0.2.17"),
            ("public-ipv6", "fd00:f::17"),
            ("public-ip-overwrite", "198.51.100.17"),
            ("node-public-ip", "198.51.100.18"),
        ];
        let cidrs = ["10.244.17.0/24", "fd00:0:0:17::/64"];
        let prefix = Prefix::parse("f.io").unwrap();
        let read = |values: &[(&str, &str)], cidrs: &[&str]| {
            let json = node(values, cidrs);
            let node = Node::from_json(json.as_bytes(), &prefix).unwrap();
            assigned(&node.annotations, |bad| assert!(bad.len() < 200, "{bad}"));
            let published = lease(&node, &Family::ALL);
            if let Ok(Published { lease, .. }) = &published {
                wanted(&lease.attrs, &Family::ALL, &node.annotations, |bad| {
                    assert!(bad.len() < 200, "{bad}");
                });
            }
            published
        };
        let whole = read(&values, &cidrs).unwrap();
        assert!(whole.faults.is_empty() && whole.lease.attrs.data.v6.is_some());
        for (i, (_, value)) in values.iter().enumerate() {
            for (at, _) in value.char_indices() {
                let mut cut = values;
                cut[i].1 = &value[..at];
                // At worst the other family is left.
                let published = read(&cut, &cidrs).unwrap();
                let faults = published.faults.join("; ");
                assert!(faults.len() < 300, "{faults}");
                assert!(published.lease.attrs.public_ip != Dual::default());
            }
        }
        for (i, cidr) in cidrs.iter().enumerate() {
            for at in 0..cidr.len() {
                let mut cut = cidrs;
                cut[i] = &cidr[..at];
                assert!(read(&values, &cut).is_ok());
                let alone = [cut[i]];
                if let Err(reason) = read(&values, &alone) {
                    assert!(!reason.is_empty() && reason.len() < 300, "{reason}");
                }
            }
        }
    }

    #[test]
    fn what_else_a_node_serves_is_good_beside_what_it_was_written_with() {
        let prefix = Prefix::parse("f.io").unwrap();
        let text = r#"{"PublicIP":"192.0.2.17","BackendType":"host-gw","Also":[{"BackendType":"vxlan","BackendData":{"VNI":1}}]}"#;
        let attrs = LeaseAttrs::from_json(text.as_bytes()).unwrap();
        let written = wanted(
            &attrs,
            &[Family::V4],
            &Annotations::<String>::default(),
            |_| {},
        );
        let also = written.get(Key::BackendAlso).unwrap();
        let read = |kind: &str| {
            let values = [
                ("backend-type", kind),
                ("public-ip", "192.0.2.17"),
                ("backend-also", also),
            ];
            let json = node(&values, &["10.244.17.0/24"]);
            let node = Node::from_json(json.as_bytes(), &prefix).unwrap();
            lease(&node, &[Family::V4]).unwrap().lease.attrs
        };
        assert_eq!(read("host-gw"), attrs);
        assert!(
            read("ipip").also.is_empty(),
            "another flannel wrote the type"
        );
        let none = LeaseAttrs {
            also: Box::default(),
            ..attrs
        };
        let written = wanted(
            &none,
            &[Family::V4],
            &Annotations::<String>::default(),
            |_| {},
        );
        assert_eq!(written.get(Key::BackendAlso), None);
    }

    #[test]
    fn a_node_may_be_cut_anywhere() {
        let prefix = Prefix::parse("f.io").unwrap();
        let json = node(&[("public-ip", "192.0.2.17")], &["10.244.17.0/24"]);
        for at in 0..json.len() {
            assert!(Node::from_json(&json.as_bytes()[..at], &prefix).is_err());
        }
    }
}
