//! What the ipsec backend leaves: policies with its request number, or with our priority, between subnets
//! of its network, and the states that they use.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use model::object::IPSEC_PRIORITY;
use netlink_sys::protocols::NETLINK_XFRM;

use super::Written;
use crate::KernelError;
use crate::failure::Failure;
use crate::netlink::refused;
use crate::netlink::socket::Requests;
use crate::netlink::uapi::{AF_INET, AF_INET6};
use crate::netlink::wire::{Message, u16_at, u32_at};

// xfrm.h
const DELSA: u16 = 0x11;
const GETSA: u16 = 0x12;
const DELPOLICY: u16 = 0x14;
const GETPOLICY: u16 = 0x15;
const TEMPLATES: u16 = 5;
const SOURCE: u16 = 13;
const MARK: u16 = 21;
const INTERFACE: u16 = 31;
const TUNNEL: u8 = 1;
/// Sizes of `xfrm_selector`, `xfrm_userpolicy_info`, `xfrm_user_tmpl`, `xfrm_usersa_info`.
const SELECTOR: usize = 56;
const POLICY: usize = 168;
const TEMPLATE: usize = 64;
const STATE: usize = 224;

/// The number by which upstream's policies ask for their states. Other programs may use it too, so it
/// alone says nothing.
const FLANNELS: u32 = 11;

/// A policy or a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xfrm {
    shown: String,
    kind: u16,
    body: Vec<u8>,
    source: Option<IpAddr>,
}

impl fmt::Display for Xfrm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Looks for policies within the networks of `written`, and for their states.
pub fn find(written: &[Written]) -> Result<Vec<Xfrm>, KernelError> {
    if written.is_empty() {
        return Ok(Vec::new());
    }
    // A kernel without xfrm has no such socket.
    let Ok(mut requests) = Requests::open_for(NETLINK_XFRM) else {
        return Ok(Vec::new());
    };
    let (mut found, mut ends) = (Vec::new(), Vec::new());
    let dumped = requests.dump(
        GETPOLICY,
        &[],
        |_| {},
        |message| {
            let Some((policy, between)) = policy(message, written) else {
                return;
            };
            found.push(policy);
            ends.extend(between);
        },
    );
    shown(dumped, "ip xfrm policy")?;
    if found.is_empty() {
        return Ok(found);
    }
    let dumped = requests.dump(
        GETSA,
        &[],
        |_| {},
        |message| {
            found.extend(state(message, &ends));
        },
    );
    shown(dumped, "ip xfrm state")?;
    Ok(found)
}

fn shown(dumped: Result<(), Failure>, command: &str) -> Result<(), KernelError> {
    match dumped {
        Err(failure) if matches!(failure.errno, libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => Ok(()),
        dumped => dumped.map_err(|failure| refused(command, failure)),
    }
}

/// Removes one; what is gone already is no error.
///
/// # Errors
/// The kernel's refusal.
pub fn remove_xfrm(xfrm: &Xfrm) -> Result<(), KernelError> {
    let failed = |failure| refused(&xfrm.shown, failure);
    let mut requests = Requests::open_for(NETLINK_XFRM).map_err(|err| failed(err.into()))?;
    let attrs = |batch: &mut crate::netlink::wire::Batch| {
        if let Some(ip) = xfrm.source {
            batch.attr(SOURCE, &wide(ip));
        }
    };
    match requests.call(xfrm.kind, 0, &xfrm.body, attrs, |_| {}) {
        Err(failure) if !matches!(failure.errno, libc::ENOENT | libc::ESRCH) => {
            Err(failed(failure))
        }
        _ => Ok(()),
    }
}

/// A policy of flannel's, and the two ends of its tunnel if it has one: those that only drop packets, or leave
/// them as they are, bear our priority.
fn policy(message: &Message, written: &[Written]) -> Option<(Xfrm, Option<(IpAddr, IpAddr)>)> {
    let body = message.body;
    let (to, from) = selected(body)?;
    let inside = written.iter().any(|w| w.has(&to) && w.has(&from));
    let mut ends = None;
    let mut ours = (IPSEC_PRIORITY - 1..=IPSEC_PRIORITY).contains(&u32_at(body, 152)?);
    for (kind, value) in message.attrs(POLICY) {
        match kind {
            TEMPLATES if value.len() == TEMPLATE => {
                ends = template(value);
                ours = ends.is_some();
            }
            // Several templates, a mark, an interface: none of flannel's.
            TEMPLATES | MARK | INTERFACE => return None,
            _ => {}
        }
    }
    if !inside || !ours {
        return None;
    }
    let index = u32_at(body, 156)?;
    let dir = match *body.get(160)? {
        0 => "in",
        1 => "out",
        2 => "fwd",
        _ => return None,
    };
    let mut id = body.get(..SELECTOR)?.to_vec();
    id.extend_from_slice(&index.to_ne_bytes());
    id.extend_from_slice(&[*body.get(160)?, 0, 0, 0]);
    let shown = format!("ip xfrm policy delete src {from} dst {to} dir {dir}");
    let policy = Xfrm {
        shown,
        kind: DELPOLICY,
        body: id,
        source: None,
    };
    Some((policy, ends))
}

/// The ends of the tunnel that a template of flannel's asks for: source and destination.
fn template(bytes: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let family = u16_at(bytes, 24)?;
    let flannels = u32_at(bytes, 44)? == FLANNELS && *bytes.get(48)? == TUNNEL;
    let ends = (address(bytes, 28, family)?, address(bytes, 0, family)?);
    flannels.then_some(ends)
}

/// A state between two such ends, in either direction.
fn state(message: &Message, ends: &[(IpAddr, IpAddr)]) -> Option<Xfrm> {
    let body = message.body;
    let family = u16_at(body, 212)?;
    let (from, to) = (address(body, 80, family)?, address(body, 56, family)?);
    let flannels = u32_at(body, 208)? == FLANNELS && *body.get(214)? == TUNNEL;
    let known = ends.contains(&(from, to)) || ends.contains(&(to, from));
    let odd = message
        .attrs(STATE)
        .any(|(kind, _)| matches!(kind, MARK | INTERFACE));
    if !flannels || !known || odd {
        return None;
    }
    let (spi, proto) = (body.get(72..76)?, *body.get(76)?);
    let mut id = wide(to).to_vec();
    id.extend_from_slice(spi);
    id.extend_from_slice(&family.to_ne_bytes());
    id.extend_from_slice(&[proto, 0]);
    let number = u32::from_be_bytes(spi.try_into().ok()?);
    let name = match proto {
        50 => "esp".to_owned(),
        51 => "ah".to_owned(),
        other => other.to_string(),
    };
    Some(Xfrm {
        shown: format!("ip xfrm state delete src {from} dst {to} proto {name} spi {number:#x}"),
        kind: DELSA,
        body: id,
        source: Some(from),
    })
}

/// Destination and source of a selector.
fn selected(body: &[u8]) -> Option<(IpNet, IpNet)> {
    let family = u16_at(body, 40)?;
    let net = |at, len: usize| IpNet::new(address(body, at, family)?, *body.get(len)?).ok();
    Some((net(0, 42)?, net(16, 43)?))
}

/// An `xfrm_address_t`.
fn address(bytes: &[u8], at: usize, family: u16) -> Option<IpAddr> {
    let len = match u8::try_from(family).ok()? {
        AF_INET => 4,
        AF_INET6 => 16,
        _ => return None,
    };
    crate::netlink::wire::ip(bytes.get(at..at + len)?)
}

fn wide(ip: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match ip {
        IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes = ip.octets(),
    }
    bytes
}
