//! A tunnel end point's MAC and VNI, as leases carry them, and how a node comes by its MAC.

use std::net::IpAddr;

use model::roster::Claims;
use model::{Dual, Family, Host, LeaseAttrs, Mac, go_json};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// `BackendData` of a vxlan lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vtep {
    /// The network's number, of which upstream writes and reads 16 bits; old writers leave it out.
    pub vni: Option<u32>,
    /// The tunnel device's MAC.
    pub mac: Mac,
}

/// Lease data of which no tunnel end point can be made.
#[derive(Debug, thiserror::Error)]
pub enum BadVtep {
    /// Not the JSON that it should be.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// `VtepMAC` is none.
    #[error("VtepMAC {0}")]
    Mac(#[from] model::mac::BadMac),
    /// No device can have this MAC.
    #[error("VtepMAC {0} is multicast or zero, and no device's")]
    NotUnicast(Mac),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire<'a> {
    #[serde(rename = "VNI", default, skip_serializing_if = "Option::is_none")]
    vni: Option<u32>,
    #[serde(rename = "VtepMAC", borrow)]
    mac: std::borrow::Cow<'a, str>,
}

impl Vtep {
    /// Reads lease data.
    ///
    /// # Errors
    /// JSON of another shape, or a MAC that no device can have.
    pub fn from_json(data: &RawValue) -> Result<Vtep, BadVtep> {
        let wire: Wire<'_> = go_json::decode(data.get().as_bytes(), &["VNI", "VtepMAC"])?;
        let mac: Mac = wire.mac.parse()?;
        match mac.is_unicast() {
            true => Ok(Vtep { vni: wire.vni, mac }),
            false => Err(BadVtep::NotUnicast(mac)),
        }
    }

    /// Lease data as upstream writes it.
    pub(super) fn to_json(self) -> Option<Box<RawValue>> {
        let vni = self.vni.map(published);
        let wire = Wire {
            vni,
            mac: self.mac.to_string().into(),
        };
        serde_json::value::to_raw_value(&wire).ok()
    }
}

/// What a lease says of a VNI: upstream keeps 16 of its 24 bits there, and cannot read a lease
/// that says more.
pub(super) fn published(vni: u32) -> u32 {
    vni & 0xffff
}

/// The MAC in vxlan lease data.
///
/// # Errors
/// [`BadVtep`]: there is none, or none that a device can have.
pub fn mac_of(data: &RawValue) -> Result<Mac, BadVtep> {
    Vtep::from_json(data).map(|vtep| vtep.mac)
}

/// Returns the MACs of a lease, as numbers; unreadable ones left out.
pub(super) fn claims(attrs: &LeaseAttrs) -> Claims {
    let number = |mac: Mac| mac.0.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
    Dual::from_fn(|family| published_mac(attrs, family).map(number))
}

fn published_mac(attrs: &LeaseAttrs, family: Family) -> Option<Mac> {
    mac_of(attrs.data.get(family)?).ok()
}

/// Returns the MAC of this node's tunnel device of each family that the host has an address of. Two devices
/// never get one MAC: that would be two entries under one claim.
pub(super) fn choose_macs(
    own: Option<&LeaseAttrs>,
    devices: &Dual<Mac>,
    host: &Host,
    vni: u32,
) -> Dual<Mac> {
    let mut macs = host.public_ip.map(|family, ip| {
        let published = own.and_then(|own| published_mac(own, family));
        choose_mac(published, devices.get(family).copied(), ip, vni, family)
    });
    if let (Some(ip), true) = (host.public_ip.v6, macs.v4 == macs.v6) {
        macs.v6 = Some(choose_mac(None, None, &ip, vni, Family::V6));
    }
    macs
}

/// The MAC of this node's tunnel device of `family`: what the peers believe already
/// (`from_lease`), else what the device has (`from_device`), so that a restart changes nothing
/// for them; else one made from the public IP, so that a reboot without either gives the same.
///
/// The made one is the FNV-1a hash (64 bits) of the bytes `flannel vtep`, 4 or 6 for the family,
/// the VNI as 4 bytes and the address, high byte first each; its lowest 48 bits, with the first byte made
/// "locally administered, unicast" (`x & 0xfc | 0x02`). Never change it: nodes would change MAC.
fn choose_mac(
    from_lease: Option<Mac>,
    from_device: Option<Mac>,
    public_ip: &IpAddr,
    vni: u32,
    family: Family,
) -> Mac {
    let kept = [from_lease, from_device]
        .into_iter()
        .flatten()
        .find(Mac::is_unicast);
    kept.unwrap_or_else(|| made_mac(public_ip, vni, family))
}

fn made_mac(public_ip: &IpAddr, vni: u32, family: Family) -> Mac {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let hash = b"flannel vtep".iter().fold(0xcbf2_9ce4_8422_2325, fnv);
    let version = match family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    let hash = [version].iter().chain(&vni.to_be_bytes()).fold(hash, fnv);
    let hash = match public_ip {
        IpAddr::V4(ip) => ip.octets().iter().fold(hash, fnv),
        IpAddr::V6(ip) => ip.octets().iter().fold(hash, fnv),
    };
    let [_, _, a, b, c, d, e, f] = hash.to_be_bytes();
    Mac([a & 0xfc | 0x02, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.into()).unwrap()
    }

    #[test]
    fn data_reads_back_as_written() {
        let json = r#"{"VNI":1,"VtepMAC":"ce:9c:a9:08:50:03"}"#;
        let vtep = Vtep::from_json(&raw(json)).unwrap();
        assert_eq!(vtep.to_json().unwrap().get(), json);
        let old = Vtep::from_json(&raw(r#"{"VtepMAC":"CE-9C-A9-08-50-03","New":{}}"#)).unwrap();
        assert_eq!((old.vni, old.mac), (None, vtep.mac));
        let large = Vtep {
            vni: Some(0x12_3456),
            mac: vtep.mac,
        }
        .to_json()
        .unwrap();
        assert_eq!(
            large.get(),
            r#"{"VNI":13398,"VtepMAC":"ce:9c:a9:08:50:03"}"#
        );
    }

    #[test]
    fn hostile_data_is_refused() {
        for json in [
            "{}",
            "[]",
            "7",
            "\"x\"",
            r#"{"VtepMAC":7}"#,
            r#"{"VtepMAC":null}"#,
            r#"{"VtepMAC":""}"#,
            r#"{"VtepMAC":"00:00:00:00:00:00"}"#,
            r#"{"VtepMAC":"01:00:5e:00:00:01"}"#,
            r#"{"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#,
            r#"{"VtepMAC":"ce:9c:a9:08:50"}"#,
            r#"{"VtepMAC":"ce:9c:a9:08:50:03:04"}"#,
            r#"{"VtepMAC":"ce:9c:a9:08:50:+3"}"#,
            r#"{"VNI":-1,"VtepMAC":"ce:9c:a9:08:50:03"}"#,
            r#"{"VNI":"1","VtepMAC":"ce:9c:a9:08:50:03"}"#,
        ] {
            assert!(mac_of(&raw(json)).is_err(), "{json} was taken");
        }
    }

    #[test]
    fn a_mac_is_kept_before_one_is_made() {
        let ip = "192.168.1.1".parse().unwrap();
        let (lease, device) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let choose = |lease, device| choose_mac(lease, device, &ip, 1, Family::V4);
        assert_eq!(choose(Some(lease), Some(device)), lease);
        assert_eq!(choose(Some(Mac([0; 6])), Some(device)), device);
        assert_eq!(
            choose(Some(Mac([0xff; 6])), Some(Mac([1; 6]))),
            choose(None, None)
        );
    }

    #[test]
    fn a_made_mac_never_changes() {
        let made = |ip: &str, vni, family| made_mac(&ip.parse().unwrap(), vni, family).to_string();
        assert_eq!(made("192.168.1.1", 1, Family::V4), "96:3b:ac:4f:b1:ff");
        assert_eq!(made("192.168.1.1", 2, Family::V4), "06:c0:cd:e5:f6:12");
        assert_eq!(made("fd00::1", 1, Family::V6), "82:6b:24:b6:5e:8d");
    }

    #[test]
    fn made_macs_differ_and_are_unicast() {
        let addresses = (0..50_000u32).map(|i| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + i)));
        let macs: BTreeSet<Mac> = addresses.map(|ip| made_mac(&ip, 1, Family::V4)).collect();
        assert_eq!(macs.len(), 50_000);
        assert!(macs.iter().all(|mac| mac.is_unicast() && mac.0[0] & 2 == 2));
    }
}
