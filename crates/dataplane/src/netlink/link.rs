//! Devices: few of them, so one request each.

use model::object::{Link, LinkKind};
use model::{IfName, Object, Op};

use super::decode::{self, RawLink};
use super::socket::Requests;
use super::uapi::*;
use super::{distrust, encode, ethtool, kind, wire::Batch};
use crate::failure::Failure;

/// Below this MTU the kernel has no IPv6 on a device.
const LEAST_OF_IPV6: u32 = 1280;

/// A device as it was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its index.
    pub index: u32,
    /// The index of the device that it is enslaved to; 0 for none.
    pub master: u32,
    /// Up and with a carrier.
    pub running: bool,
    /// Some program keeps its carrier off.
    pub proto_down: bool,
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

/// Returns the index of the device `name`.
///
/// # Errors
/// `ENODEV` that names it, or the kernel's refusal.
pub fn index_of(requests: &mut Requests, name: &IfName) -> Result<u32, Failure> {
    let mut index = None;
    get(requests, 0, Some(name), |link| {
        index = is_called(link, name).then_some(link.index);
    })?;
    let absent = || Failure::because(libc::ENODEV, format!("there is no device {name}"));
    index.ok_or_else(absent)
}

/// The kernel finds a device by its alternative names too. Those are not ours: whoever gave one to a
/// network card does not want the card deleted.
fn is_called(link: &RawLink, name: &IfName) -> bool {
    link.name == Some(*name)
}

/// Returns the name of the device `index`; `None` if there is none.
///
/// # Errors
/// The kernel's refusal.
pub fn find_name(requests: &mut Requests, index: u32) -> Result<Option<IfName>, Failure> {
    let mut name = None;
    get(requests, index, None, |link| name = link.name)?;
    Ok(name)
}

/// Returns the name of the device `index`, if the kernel says it.
pub fn name_of(requests: &mut Requests, index: u32) -> Option<IfName> {
    find_name(requests, index).ok().flatten()
}

/// Looks at the device `name`.
///
/// # Errors
/// The kernel's refusal; that there is none is no error.
pub fn look(requests: &mut Requests, name: &IfName) -> Result<Option<Found>, Failure> {
    let mut found = None;
    get(requests, 0, Some(name), |raw| {
        found = is_called(raw, name).then(|| Found {
            index: raw.index,
            master: raw.master,
            running: raw.running(),
            proto_down: raw.proto_down,
            link: raw.link(),
        });
    })?;
    if let Some(found) = &mut found {
        look_closer(found.index, name, &mut found.link);
    }
    Ok(found)
}

/// Adds to `link` what no link message says.
pub fn look_closer(index: u32, name: &IfName, link: &mut Link) {
    match &mut link.kind {
        LinkKind::Vxlan(vxlan) => vxlan.tx_checksum = ethtool::tx_checksum(index, name),
        LinkKind::Ipip(_) | LinkKind::Tun(_) | LinkKind::Wireguard(_) | LinkKind::Foreign(_) => {}
    }
}

/// Creates, changes or deletes a device. One that is there and cannot be turned into what is wanted
/// is replaced, once it is known that the new one can be created.
///
/// # Errors
/// The kernel's refusal; or the device beneath the new one does not exist.
pub fn apply(requests: &mut Requests, op: &Op) -> Result<(), Failure> {
    match op {
        Op::Put(Object::Link(name, link)) => match look(requests, name)? {
            None => {
                check(requests, link)?;
                if rename_back(requests, name, link)?
                    && let Some(found) = look(requests, name)?
                {
                    return change(requests, name, &found, link);
                }
                create(requests, name, link)
            }
            Some(old) if old.link.can_become(link) => change(requests, name, &old, link),
            Some(old) => {
                check(requests, link)?;
                delete(requests, old.index)?;
                create(requests, name, link)
            }
        },
        Op::Del(Object::Link(name, _)) => match index_of(requests, name) {
            Err(failure) if failure.errno == libc::ENODEV => Ok(()),
            Err(failure) => Err(failure),
            Ok(index) => delete(requests, index),
        },
        Op::Put(_) | Op::Del(_) => Err(Failure::errno(libc::EINVAL)),
    }
}

/// Gives our device its name again, if somebody gave it another one: under that one it keeps the new
/// device from being created. Returns whether there was such a device and it is called `name` now.
fn rename_back(requests: &mut Requests, name: &IfName, link: &Link) -> Result<bool, Failure> {
    if link.mark.is_none() {
        return Ok(false);
    }
    let mut renamed = None;
    let skip_stats = |batch: &mut Batch| {
        batch.attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    };
    requests.dump(RTM_GETLINK, &[0; 16], skip_stats, |message| {
        let raw = decode::link(message);
        // A device that does not keep the new one from being created may be another one of ours: of TUN devices a
        // dual-stack node has two, alike but for their names.
        let ours = raw.filter(|raw| {
            let found = raw.link();
            raw.mark == link.mark && found.can_become(link) && found.kind.excludes(&link.kind)
        });
        renamed = renamed.or(ours.map(|raw| raw.index));
    })?;
    let Some(index) = renamed else {
        return Ok(false);
    };
    let body = encode::link_body(index, None);
    let attrs = |batch: &mut Batch| encode::link_name(batch, name);
    match requests.call(RTM_NEWLINK, 0, &body, attrs, |_| {}) {
        Ok(()) => Ok(true),
        // Linux before 6.2 renames no device that is up.
        Err(failure) if failure.errno == libc::EBUSY => {
            delete(requests, index)?;
            Ok(false)
        }
        Err(failure) => Err(failure),
    }
}

fn delete(requests: &mut Requests, index: u32) -> Result<(), Failure> {
    let body = encode::link_body(index, None);
    requests.call(RTM_DELLINK, 0, &body, |_| {}, |_| {})
}

/// Checks whether a device can be created, as far as that can be known before.
fn check(requests: &mut Requests, link: &Link) -> Result<(), Failure> {
    if let LinkKind::Foreign(kind) = &link.kind {
        let text = format!("a device of kind {kind} is never created");
        return Err(Failure::because(libc::EOPNOTSUPP, text));
    }
    match link.kind.beneath() {
        Some(beneath) if find_name(requests, beneath.index)?.is_none() => {
            let index = beneath.index;
            let text = format!("there is no device {beneath} (index {index})");
            Err(Failure::because(libc::ENODEV, text))
        }
        Some(_) | None => Ok(()),
    }
}

fn create(requests: &mut Requests, name: &IfName, link: &Link) -> Result<(), Failure> {
    if let LinkKind::Tun(_) = &link.kind {
        kind::tun::create(name)?;
        let Some(made) = look(requests, name)? else {
            return Ok(());
        };
        distrust::distrust(requests, made.index, name, &link.kind);
        return change(requests, name, &made, link);
    }
    let attrs = |batch: &mut Batch| {
        encode::link_name(batch, name);
        encode::link_settings(batch, link.mac, Some(link.mtu));
        kind::encode(batch, &link.kind);
    };
    // Down at first: an IPv6 link-local address is made, and router advertisements are listened to,
    // at the moment a device comes up.
    let body = encode::link_body(0, None);
    let done = requests.call(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body, attrs, |_| {});
    done.map_err(|failure| explain(requests, name, &link.kind, failure))?;
    let Some(made) = look(requests, name)? else {
        return Ok(());
    };
    distrust::distrust(requests, made.index, name, &link.kind);
    if link.up || link.mark.is_some() {
        let body = encode::link_body(made.index, link.up.then_some(true));
        let mark = |batch: &mut Batch| {
            link.mark
                .iter()
                .for_each(|mark| encode::link_mark(batch, mark));
        };
        requests.call(RTM_NEWLINK, 0, &body, mark, |_| {})?;
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

/// Adds to the kernel's refusal to create a device of this kind what can be done about it.
fn explain(requests: &mut Requests, name: &IfName, wanted: &LinkKind, failure: Failure) -> Failure {
    let kind = wanted.name();
    let text = match failure.errno {
        // The kernel has loaded the module by itself if it could.
        libc::EOPNOTSUPP => format!(
            "{}: this kernel has no {kind} devices: load the module (modprobe {kind}) or use a kernel that has it",
            failure.text
        ),
        libc::EEXIST => match in_the_way(requests, wanted) {
            Some(other) => {
                let what = match wanted {
                    LinkKind::Vxlan(vxlan) => format!("VNI {} and port {}", vxlan.vni, vxlan.port),
                    LinkKind::Ipip(ipip) => format!("addresses (local {}, remote any)", ipip.local),
                    LinkKind::Tun(_) | LinkKind::Wireguard(_) | LinkKind::Foreign(_) => {
                        "settings".to_owned()
                    }
                };
                format!(
                    "{}: the {kind} device {other} has the same {what}: delete it (ip link del {other}) if nobody needs it",
                    failure.text
                )
            }
            None => match called_also(requests, name) {
                Some(other) => format!(
                    "{}: {name} is an alternative name of {other}: ip link property del dev {other} altname {name}",
                    failure.text
                ),
                None => return failure,
            },
        },
        _ => return failure,
    };
    Failure::because(failure.errno, text)
}

/// Returns the device that has `name` as an alternative name.
fn called_also(requests: &mut Requests, name: &IfName) -> Option<IfName> {
    let mut found = None;
    let shown = get(requests, 0, Some(name), |link| {
        found = link.name.filter(|other| other != name);
    });
    shown.ok().and(found)
}

/// Returns the device beside which the kernel does not create one of this kind.
fn in_the_way(requests: &mut Requests, wanted: &LinkKind) -> Option<IfName> {
    let mut found = None;
    let attrs = |batch: &mut Batch| {
        batch.attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    };
    let shown = requests.dump(RTM_GETLINK, &encode::link_body(0, None), attrs, |message| {
        if let Some(raw) = decode::link(message)
            && raw.link().kind.excludes(wanted)
        {
            found = found.or(raw.name);
        }
    });
    shown.ok().and(found)
}

/// Checksum offload, the one setting that needs a request of another kind.
fn offload(name: &IfName, found: &Found, link: &Link) -> Result<(), Failure> {
    let (wanted, is) = match (&link.kind, &found.link.kind) {
        (LinkKind::Vxlan(wanted), LinkKind::Vxlan(is)) => (wanted.tx_checksum, is.tx_checksum),
        (
            LinkKind::Vxlan(_)
            | LinkKind::Ipip(_)
            | LinkKind::Tun(_)
            | LinkKind::Wireguard(_)
            | LinkKind::Foreign(_),
            _,
        ) => {
            return Ok(());
        }
    };
    match wanted {
        Some(on) if is != Some(on) => ethtool::set_tx_checksum(found.index, name, on),
        Some(_) | None => Ok(()),
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
    let mac = link.mac.filter(|_| old.mac != link.mac);
    let mtu = Some(link.mtu).filter(|_| old.mtu != link.mtu);
    let up = Some(link.up).filter(|_| old.up != link.up);
    let mark = link.mark.filter(|_| old.mark != link.mark);
    let free = old.enslaved && !link.enslaved;
    if mac.is_none() && mtu.is_none() && up.is_none() && mark.is_none() && !free {
        return offload(name, found, link);
    }
    let body = encode::link_body(*index, up);
    let attrs = |batch: &mut Batch| {
        encode::link_settings(batch, mac, mtu);
        mark.iter().for_each(|mark| encode::link_mark(batch, mark));
        if found.proto_down && up == Some(true) {
            batch.attr(IFLA_PROTO_DOWN, &[0]);
        }
        if free {
            batch.attr_u32(IFLA_MASTER, 0);
        }
    };
    let done = requests.call(RTM_NEWLINK, 0, &body, attrs, |_| {});
    done.map_err(|failure| match mtu {
        Some(mtu) if failure.errno == libc::EINVAL => {
            let text = format!("{} (does MTU {mtu} fit the device beneath?)", failure.text);
            Failure::because(libc::EINVAL, text)
        }
        _ => failure,
    })?;
    if old.mtu < LEAST_OF_IPV6 {
        // IPv6 begins anew on it, with what new devices are given.
        distrust::distrust(requests, *index, name, &link.kind);
    }
    offload(name, found, link)
}
