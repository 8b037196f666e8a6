//! Devices: few of them, so one request each.

use model::kernel::{Link, LinkKind};
use model::{IfName, Object, Op};

use super::decode::{self, RawLink};
use super::socket::{Failure, Requests};
use super::uapi::*;
use super::{distrust, encode, ethtool, wire::Batch};

/// A device as it was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its index.
    pub index: u32,
    /// Up and with a carrier.
    pub running: bool,
    /// What it is.
    pub link: Link,
}

/// Shows the device of this name to `each`; `false` if there is none.
fn get(
    requests: &mut Requests,
    index: u32,
    name: Option<&IfName>,
    mut each: impl FnMut(&RawLink),
) -> Result<bool, Failure> {
    let attrs = |batch: &mut Batch| {
        batch.attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        if let Some(name) = name {
            encode::link_name(batch, name);
        }
    };
    let body = encode::link_body(index, None);
    let got = requests.call(RTM_GETLINK, 0, &body, attrs, |message| {
        if let Some(link) = decode::link(message) {
            each(&link);
        }
    });
    match got {
        Err(failure) if failure.errno == libc::ENODEV => Ok(false),
        other => other.map(|()| true),
    }
}

/// The index of the device `name`.
///
/// # Errors
/// `ENODEV` that names it, or the kernel's refusal.
pub fn index_of(requests: &mut Requests, name: &IfName) -> Result<u32, Failure> {
    let mut index = 0;
    match get(requests, 0, Some(name), |link| index = link.index)? {
        true => Ok(index),
        false => Err(Failure::because(
            libc::ENODEV,
            format!("there is no device {name}"),
        )),
    }
}

/// The name of the device `index`.
pub fn name_of(requests: &mut Requests, index: u32) -> Option<IfName> {
    let mut name = None;
    get(requests, index, None, |link| name = link.name).ok()?;
    name
}

/// Looks at the device `name`.
///
/// # Errors
/// The kernel's refusal; that there is none is no error.
pub fn look(requests: &mut Requests, name: &IfName) -> Result<Option<Found>, Failure> {
    let mut beneath = 0;
    get(requests, 0, Some(name), |link| {
        beneath = link.beneath().unwrap_or_default()
    })?;
    let beneath = if beneath == 0 {
        None
    } else {
        name_of(requests, beneath)
    };
    let mut found = None;
    get(requests, 0, Some(name), |raw| {
        let link = raw.link(|_| beneath);
        found = Some(Found {
            index: raw.index,
            running: raw.running(),
            link,
        });
    })?;
    if let Some(found) = &mut found {
        look_closer(found.index, name, &mut found.link);
    }
    Ok(found)
}

/// Adds to `link` what no link message tells.
pub fn look_closer(index: u32, name: &IfName, link: &mut Link) {
    if ethtool::concerns(&link.kind) {
        link.tx_checksum = ethtool::tx_checksum(index, name);
    }
}

/// Makes or deletes a device.
///
/// # Errors
/// The kernel's refusal; or what stands there cannot be turned into what is wanted.
pub fn apply(requests: &mut Requests, op: &Op) -> Result<(), Failure> {
    match op {
        Op::Put(Object::Link(name, link)) => match look(requests, name)? {
            None => create(requests, name, link),
            Some(old) => change(requests, name, &old, link),
        },
        Op::Del(Object::Link(name, _)) => match index_of(requests, name) {
            Err(failure) if failure.errno == libc::ENODEV => Ok(()),
            Err(failure) => Err(failure),
            Ok(index) => {
                let body = encode::link_body(index, None);
                requests.call(RTM_DELLINK, 0, &body, |_| {}, |_| {})
            }
        },
        _ => Err(Failure::errno(libc::EINVAL)),
    }
}

fn create(requests: &mut Requests, name: &IfName, link: &Link) -> Result<(), Failure> {
    let beneath = match &link.kind {
        LinkKind::Vxlan(vxlan) => index_of(requests, &vxlan.dev)?,
        LinkKind::Foreign(_) => {
            return Err(Failure::because(
                libc::EOPNOTSUPP,
                "this kind of device is never made",
            ));
        }
    };
    let attrs = |batch: &mut Batch| {
        encode::link_name(batch, name);
        encode::link_settings(batch, link.mac, Some(link.mtu));
        encode::link_kind(batch, &link.kind, beneath);
    };
    // Down at first: an IPv6 link-local address is made, and router advertisements are listened to,
    // at the moment a device comes up.
    let body = encode::link_body(0, None);
    requests.call(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body, attrs, |_| {})?;
    let Some(made) = look(requests, name)? else {
        return Ok(());
    };
    distrust::distrust(requests, made.index, name, &link.kind);
    if link.up {
        let body = encode::link_body(made.index, Some(true));
        requests.call(RTM_NEWLINK, 0, &body, |_| {}, |_| {})?;
    }
    offload(name, &made, link)?;
    // The kernel silently makes the MTU of a new vxlan device fit the one beneath.
    let got = made.link.mtu;
    if got < link.mtu {
        let text =
            format!("the kernel made it with MTU {got}: more does not fit the device beneath");
        return Err(Failure::because(libc::EINVAL, text));
    }
    Ok(())
}

/// Checksum offload, the one setting that needs a request of another kind.
fn offload(name: &IfName, found: &Found, link: &Link) -> Result<(), Failure> {
    match link.tx_checksum {
        Some(on) if found.link.tx_checksum != Some(on) => {
            ethtool::set_tx_checksum(found.index, name, on)
        }
        _ => Ok(()),
    }
}

fn change(
    requests: &mut Requests,
    name: &IfName,
    found: &Found,
    link: &Link,
) -> Result<(), Failure> {
    let Found {
        index, link: old, ..
    } = found;
    if !old.can_become(link) {
        let text = format!("{name} exists and is made otherwise; it has to be deleted first");
        return Err(Failure::because(libc::EEXIST, text));
    }
    let mac = link.mac.filter(|_| old.mac != link.mac);
    let mtu = Some(link.mtu).filter(|_| old.mtu != link.mtu);
    let up = Some(link.up).filter(|_| old.up != link.up);
    if mac.is_none() && mtu.is_none() && up.is_none() {
        return offload(name, found, link);
    }
    let body = encode::link_body(*index, up);
    let attrs = |batch: &mut Batch| encode::link_settings(batch, mac, mtu);
    let done = requests.call(RTM_NEWLINK, 0, &body, attrs, |_| {});
    done.map_err(|failure| match mtu {
        Some(mtu) if failure.errno == libc::EINVAL => {
            let text = format!("{} (does MTU {mtu} fit the device beneath?)", failure.text);
            Failure::because(libc::EINVAL, text)
        }
        _ => failure,
    })?;
    offload(name, found, link)
}
