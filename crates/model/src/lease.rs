//! Who owns a subnet, and how its owner is reached: the JSON that nodes publish for each other.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::go_json::{self, Text};
use crate::{Dual, SubnetKey};

/// The kind of a backend: `Backend.Type` of the configuration, `BackendType` of a lease.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendType {
    /// Kernel VXLAN.
    Vxlan,
    /// Routes through the peers' own addresses.
    HostGw,
    /// Kernel WireGuard.
    Wireguard,
    /// IP in IP.
    Ipip,
    /// IPsec through strongSwan.
    Ipsec,
    /// Packets through the daemon, over UDP.
    Udp,
    /// A subnet, and no traffic.
    Alloc,
    /// Commands of the administrator.
    Extension,
    /// A name that this version does not know.
    Other(Box<str>),
}

impl BackendType {
    /// Every kind that has a name of its own.
    pub const KNOWN: [BackendType; 8] = [
        BackendType::Vxlan,
        BackendType::HostGw,
        BackendType::Wireguard,
        BackendType::Ipip,
        BackendType::Ipsec,
        BackendType::Udp,
        BackendType::Alloc,
        BackendType::Extension,
    ];

    /// Its name in configuration and leases.
    pub fn as_str(&self) -> &str {
        match self {
            BackendType::Vxlan => "vxlan",
            BackendType::HostGw => "host-gw",
            BackendType::Wireguard => "wireguard",
            BackendType::Ipip => "ipip",
            BackendType::Ipsec => "ipsec",
            BackendType::Udp => "udp",
            BackendType::Alloc => "alloc",
            BackendType::Extension => "extension",
            BackendType::Other(name) => name,
        }
    }

    /// The kind called `name`; case matters not.
    pub fn parse(name: &str) -> BackendType {
        let known = BackendType::KNOWN.into_iter();
        let mut known = known.filter(|kind| kind.as_str().eq_ignore_ascii_case(name));
        // No name is longer: what follows is a mistake or an attempt to fill the memory and the log.
        let other = || name.chars().take(100).collect::<String>();
        known
            .next()
            .unwrap_or_else(|| BackendType::Other(other().into()))
    }
}

impl BackendType {
    /// Returns whether a lease that names `offered` means this type.
    pub fn is_named(&self, offered: Option<&BackendType>) -> bool {
        // These two write no type into their leases.
        let nameless = matches!(self, BackendType::Udp | BackendType::Alloc);
        offered.map_or(nameless, |offered| offered == self)
    }
}

impl fmt::Display for BackendType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a node publishes under its subnet.
#[derive(Clone, Debug, Default)]
pub struct LeaseAttrs {
    /// Where the node is reached, by family of the underlay.
    pub public_ip: Dual<IpAddr>,
    /// Its backend; `None` for those that write none (udp, alloc).
    pub backend_type: Option<BackendType>,
    /// The backend's own data, JSON, by family of the underlay.
    pub data: Dual<Box<RawValue>>,
    /// What else it serves while the network changes from one backend to another, newest first. Upstream
    /// ignores it.
    pub also: Box<[Offer]>,
}

/// A backend that a node serves beside the one that its lease names.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    /// Its type; `None` for those that write none.
    pub backend_type: Option<BackendType>,
    /// Its data, by family of the underlay.
    pub data: Dual<Box<RawValue>>,
}

/// No node serves more backends beside its own: what follows is a mistake, or an attempt to fill the memory.
const MOST_OFFERS: usize = 8;

impl LeaseAttrs {
    /// Borrows everything that two equal values have in common: JSON data are compared as text.
    fn parts(&self) -> (&Dual<IpAddr>, Parts<'_>, Vec<Parts<'_>>) {
        (
            &self.public_ip,
            parts(self.backend_type.as_ref(), &self.data),
            self.also
                .iter()
                .map(|offer| parts(offer.backend_type.as_ref(), &offer.data))
                .collect(),
        )
    }

    /// Returns the lease as each backend that it offers reads it, the one that it names first.
    pub fn offers(&self) -> impl Iterator<Item = Cow<'_, LeaseAttrs>> {
        let also = self.also.iter().map(|offer| {
            Cow::Owned(LeaseAttrs {
                public_ip: self.public_ip,
                backend_type: offer.backend_type.clone(),
                data: offer.data.clone(),
                also: Box::default(),
            })
        });
        std::iter::once(Cow::Borrowed(self)).chain(also)
    }

    /// Returns whether the lease offers a backend of this type.
    pub fn offers_type(&self, kind: &BackendType) -> bool {
        let also = self.also.iter().map(|offer| offer.backend_type.as_ref());
        std::iter::once(self.backend_type.as_ref())
            .chain(also)
            .any(|offered| kind.is_named(offered))
    }
}

/// A backend's type and data.
type Parts<'a> = (Option<&'a BackendType>, Dual<&'a str>);

fn parts<'a>(kind: Option<&'a BackendType>, data: &'a Dual<Box<RawValue>>) -> Parts<'a> {
    let text = |family| data.get(family).map(|data| data.get());
    (kind, Dual::from_fn(text))
}

impl PartialEq for LeaseAttrs {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for LeaseAttrs {}

impl Hash for LeaseAttrs {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

/// A subnet and its owner, as one store entry says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The subnets, which are also the lease's name.
    pub key: SubnetKey,
    /// The owner.
    pub attrs: LeaseAttrs,
    /// Orders leases by age, lower is older: etcd's create revision, or milliseconds of the
    /// epoch in a directory. Of two leases that exclude each other the older one is used.
    pub seniority: u64,
}

/// A lease value that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadAttrs {
    /// Not the JSON that a lease value is.
    #[error("not a lease value: {0}")]
    Json(#[from] serde_json::Error),
    /// There is no address to send to.
    #[error("neither PublicIP nor PublicIPv6 holds an address")]
    NoAddress,
    /// An address that no peer can have.
    #[error("{0} can be no node's address")]
    ImpossibleAddress(IpAddr),
}

/// The JSON shape. Old writers leave keys out, newer ones add some; an
/// absent IPv4 address is written `0.0.0.0`, an absent IPv6 address `null`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire<'a> {
    #[serde(rename = "PublicIP", default)]
    public_ip: Option<Ipv4Addr>,
    #[serde(rename = "PublicIPv6", default)]
    public_ipv6: Option<Ipv6Addr>,
    #[serde(
        rename = "BackendType",
        default,
        borrow,
        skip_serializing_if = "Option::is_none"
    )]
    backend_type: Option<Text<'a>>,
    #[serde(
        rename = "BackendData",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    data: Option<Box<RawValue>>,
    #[serde(
        rename = "BackendV6Data",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    v6_data: Option<Box<RawValue>>,
    #[serde(rename = "Also", default, skip_serializing_if = "Option::is_none")]
    also: Option<Box<RawValue>>,
}

/// One element of `Also`.
#[derive(Serialize, Deserialize)]
struct WireOffer {
    #[serde(
        rename = "BackendType",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    backend_type: Option<String>,
    #[serde(
        rename = "BackendData",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    data: Option<Box<RawValue>>,
    #[serde(
        rename = "BackendV6Data",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    v6_data: Option<Box<RawValue>>,
}

/// Reads the value of `Also`. What cannot be read offers nothing: the rest of the lease is good.
pub fn also_from_json(json: &str) -> Box<[Offer]> {
    let wire: Vec<WireOffer> = serde_json::from_str(json).unwrap_or_default();
    let offers = wire.into_iter().take(MOST_OFFERS).map(|offer| Offer {
        backend_type: offer.backend_type.as_deref().and_then(named),
        data: Dual {
            v4: offer.data.filter(is_present),
            v6: offer.v6_data.filter(is_present),
        },
    });
    offers.collect()
}

/// Writes the value of `Also`; `None` if nothing is offered.
pub fn also_to_json(also: &[Offer]) -> Option<String> {
    let wire = also.iter().map(|offer| WireOffer {
        backend_type: offer.backend_type.as_ref().map(BackendType::to_string),
        data: offer.data.v4.clone(),
        v6_data: offer.data.v6.clone(),
    });
    let wire: Vec<WireOffer> = wire.collect();
    serde_json::to_string(&wire)
        .ok()
        .filter(|_| !wire.is_empty())
}

fn named(name: &str) -> Option<BackendType> {
    Some(BackendType::parse(name)).filter(|_| !name.is_empty())
}

#[allow(clippy::borrowed_box, reason = "for Option::filter")]
fn is_present(data: &Box<RawValue>) -> bool {
    data.get() != "null"
}

/// The names in [`Wire`].
const KEYS: [&str; 6] = [
    "PublicIP",
    "PublicIPv6",
    "BackendType",
    "BackendData",
    "BackendV6Data",
    "Also",
];

impl LeaseAttrs {
    /// Reads a lease value.
    ///
    /// # Errors
    /// JSON that is none, or none of a lease; no address that a node can have: see [`LeaseAttrs::checked`].
    pub fn from_json(json: &[u8]) -> Result<LeaseAttrs, BadAttrs> {
        // Go's decoder replaces what is not UTF-8.
        let json = String::from_utf8_lossy(json);
        let wire: Wire<'_> = go_json::decode(json.as_bytes(), &KEYS)?;
        let attrs = LeaseAttrs {
            public_ip: Dual {
                v4: wire
                    .public_ip
                    .filter(|ip| !ip.is_unspecified())
                    .map(IpAddr::V4),
                v6: wire
                    .public_ipv6
                    .filter(|ip| !ip.is_unspecified())
                    .map(IpAddr::V6),
            },
            backend_type: wire.backend_type.as_deref().and_then(named),
            data: Dual {
                v4: wire.data.filter(is_present),
                v6: wire.v6_data.filter(is_present),
            },
            also: wire
                .also
                .map(|json| also_from_json(json.get()))
                .unwrap_or_default(),
        };
        attrs.checked()
    }

    /// Returns these attributes without addresses that no node can have (0/8, 240/4, multicast, loopback,
    /// unspecified, broadcast, IPv6 link-local). Upstream publishes a link-local address where a host has no other
    /// IPv6 address, and its IPv4 address is as good as any.
    ///
    /// # Errors
    /// No address is left.
    pub fn checked(mut self) -> Result<LeaseAttrs, BadAttrs> {
        let Some(bad) = self.public_ip.iter().map(|(_, ip)| *ip).find(impossible) else {
            return if self.public_ip.is_empty() {
                Err(BadAttrs::NoAddress)
            } else {
                Ok(self)
            };
        };
        let possible = |ip: &IpAddr| !impossible(ip);
        self.public_ip =
            Dual::from_fn(|family| self.public_ip.get(family).copied().filter(possible));
        if self.public_ip.is_empty() {
            Err(BadAttrs::ImpossibleAddress(bad))
        } else {
            Ok(self)
        }
    }

    /// The same attributes for the families of `key` alone.
    pub fn of_families_in(&self, key: &SubnetKey) -> LeaseAttrs {
        let has = |family| key.nets().get(family).is_some();
        LeaseAttrs {
            public_ip: Dual::from_fn(|family| {
                self.public_ip.get(family).copied().filter(|_| has(family))
            }),
            backend_type: self.backend_type.clone(),
            data: Dual::from_fn(|family| self.data.get(family).cloned().filter(|_| has(family))),
            also: self
                .also
                .iter()
                .map(|offer| Offer {
                    backend_type: offer.backend_type.clone(),
                    data: Dual::from_fn(|family| {
                        offer.data.get(family).cloned().filter(|_| has(family))
                    }),
                })
                .collect(),
        }
    }

    /// The lease value as upstream writes it.
    pub fn to_json(&self) -> String {
        let v4 = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        };
        let v6 = |ip: &IpAddr| match ip {
            IpAddr::V6(ip) => Some(*ip),
            IpAddr::V4(_) => None,
        };
        let wire = Wire {
            public_ip: Some(
                self.public_ip
                    .v4
                    .as_ref()
                    .and_then(v4)
                    .unwrap_or(Ipv4Addr::UNSPECIFIED),
            ),
            public_ipv6: self.public_ip.v6.as_ref().and_then(v6),
            backend_type: self
                .backend_type
                .as_ref()
                .map(|kind| Text(kind.as_str().into())),
            data: self.data.v4.clone(),
            v6_data: self.data.v6.clone(),
            also: also_to_json(&self.also).and_then(|json| RawValue::from_string(json).ok()),
        };
        serde_json::to_string(&wire).unwrap_or_default()
    }
}

fn impossible(ip: &IpAddr) -> bool {
    let by_family = match ip {
        // 0/8 means "this network", 240/4 was never given out.
        IpAddr::V4(ip) => ip.octets()[0] == 0 || ip.octets()[0] >= 240,
        // Link-local ones mean nothing without an interface, mapped ones are IPv4's.
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some(),
    };
    by_family || ip.is_multicast() || ip.is_loopback() || ip.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VXLAN: &str = r#"{"PublicIP":"172.27.137.240","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"ce:9c:a9:08:50:03"}}"#;

    #[test]
    fn a_value_reads_back_as_written() {
        let attrs = LeaseAttrs::from_json(VXLAN.as_bytes()).unwrap();
        assert_eq!(attrs.to_json(), VXLAN);
        let v6 = r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd78::1","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"ce:9c:a9:08:50:04"}}"#;
        let attrs = LeaseAttrs::from_json(v6.as_bytes()).unwrap();
        assert_eq!(attrs.public_ip.v4, None);
        assert_eq!(attrs.to_json(), v6);
    }

    #[test]
    fn old_and_unknown_forms_are_read() {
        let old = br#"{"PublicIP":"10.0.0.1","BackendType":"vxlan","BackendData":{"VtepMAC":"ce:9c:a9:08:50:03"},"New":[1]}"#;
        let attrs = LeaseAttrs::from_json(old).unwrap();
        assert_eq!(attrs.public_ip.v4, Some("10.0.0.1".parse().unwrap()));
        let bare = LeaseAttrs::from_json(br#"{"PublicIP":"10.0.0.1","BackendData":null}"#).unwrap();
        assert_eq!(
            (bare.backend_type.clone(), bare.data.is_empty()),
            (None, true)
        );
        // As Go reads it: a node that upstream reaches is reached.
        let other = br#"{"publicip":"10.0.0.9","PublicIP":"10.0.0.1","backendtype":"VXLAN","BACKENDDATA":{"vtepmac":"ce:9c:a9:08:50:03"}}"#;
        let other = LeaseAttrs::from_json(other).unwrap();
        assert_eq!(other.public_ip.v4, Some("10.0.0.1".parse().unwrap()));
        assert_eq!(other.backend_type, Some(BackendType::Vxlan));
        assert!(other.data.v4.is_some());
    }

    #[test]
    fn what_else_is_offered_reads_back_and_what_cannot_be_read_offers_nothing() {
        let json = r#"{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"host-gw","Also":[{"BackendType":"vxlan","BackendData":{"VNI":1}},{}]}"#;
        let attrs = LeaseAttrs::from_json(json.as_bytes()).unwrap();
        assert_eq!(attrs.to_json(), json);
        let kinds = attrs.offers().map(|offer| offer.backend_type.clone());
        let kinds: Vec<Option<BackendType>> = kinds.collect();
        assert_eq!(
            kinds,
            [Some(BackendType::HostGw), Some(BackendType::Vxlan), None]
        );
        assert!(attrs.offers_type(&BackendType::Vxlan) && attrs.offers_type(&BackendType::Udp));
        assert!(!attrs.offers_type(&BackendType::Ipip));
        for also in ["7", "null", "{}", "[7]", r#"[{"BackendType":7}]"#] {
            let json = format!(r#"{{"PublicIP":"10.0.0.1","Also":{also}}}"#);
            let attrs = LeaseAttrs::from_json(json.as_bytes()).unwrap();
            assert!(attrs.also.is_empty(), "{also}");
        }
        let many = format!(
            r#"{{"PublicIP":"10.0.0.1","Also":[{}{{}}]}}"#,
            "{},".repeat(999)
        );
        let attrs = LeaseAttrs::from_json(many.as_bytes()).unwrap();
        assert_eq!(attrs.also.len(), MOST_OFFERS);
    }

    #[test]
    fn an_impossible_address_of_one_family_takes_nothing_from_the_other() {
        for (json, v4, v6) in [
            (
                r#"{"PublicIP":"10.0.0.1","PublicIPv6":"fe80::1"}"#,
                Some("10.0.0.1"),
                None,
            ),
            (
                r#"{"PublicIP":"10.0.0.1","PublicIPv6":"ff02::1"}"#,
                Some("10.0.0.1"),
                None,
            ),
            (
                r#"{"PublicIP":"127.0.0.1","PublicIPv6":"fd78::1"}"#,
                None,
                Some("fd78::1"),
            ),
        ] {
            let attrs = LeaseAttrs::from_json(json.as_bytes()).unwrap();
            let ip = |text: &str| text.parse::<IpAddr>().unwrap();
            assert_eq!(attrs.public_ip.v4, v4.map(ip), "{json}");
            assert_eq!(attrs.public_ip.v6, v6.map(ip), "{json}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced_as_in_go() {
        let edited = b"{\"PublicIP\":\"10.0.0.1\",\"BackendType\":\"vxlan\",\"BackendData\":\
            {\"VtepMAC\":\"ce:9c:a9:08:50:03\",\"Site\":\"K\xf6ln\"},\"Owner\":\"J\xfcrgen\"}";
        let attrs = LeaseAttrs::from_json(edited).unwrap();
        assert_eq!(attrs.public_ip.v4, Some("10.0.0.1".parse().unwrap()));
        assert_eq!(attrs.backend_type, Some(BackendType::Vxlan));
        assert!(attrs.data.v4.is_some());
    }

    #[test]
    fn hostile_values_are_refused() {
        for json in [
            "",
            "[]",
            r#"["10.0.0.1"]"#,
            "null",
            "{}",
            "{",
            r#"{"PublicIP":5}"#,
            r#"{"PublicIP":"x"}"#,
            r#"{"PublicIP":"224.0.0.1"}"#,
            r#"{"PublicIP":"127.0.0.1"}"#,
            r#"{"PublicIP":"255.255.255.255"}"#,
            r#"{"PublicIP":"0.1.2.3"}"#,
            r#"{"PublicIP":"240.0.0.1"}"#,
            r#"{"PublicIP":"10.0.0.1","BackendType":7}"#,
            r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fe80::1"}"#,
            r#"{"PublicIP":"127.0.0.1","PublicIPv6":"fe80::1"}"#,
            "\u{feff}{\"PublicIP\":\"10.0.0.1\"}",
        ] {
            assert!(
                LeaseAttrs::from_json(json.as_bytes()).is_err(),
                "{json} was taken"
            );
        }
    }
}
