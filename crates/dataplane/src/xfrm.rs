//! The door to the kernel's IPsec policies.
//!
//! Ours are those between subnets of the network that ask for associations by flannel's number, and those
//! that bear our priority: a policy has no other mark.

#![allow(unsafe_code, reason = "registers a descriptor with the runtime")]

use std::net::IpAddr;

use ipnet::IpNet;
use model::object::{IPSEC_PRIORITY, IPSEC_REQUEST, XfrmDir, XfrmPolicy, XfrmPolicyKey};
use model::{Dual, Family, Object, Op};
use netlink_sys::{Socket, protocols::NETLINK_XFRM};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::door::Door;
use crate::failure::Failure;
use crate::netlink::refused;
use crate::netlink::room::Room;
use crate::netlink::socket::Requests;
use crate::netlink::uapi::{AF_INET, AF_INET6};
use crate::netlink::wire::{Message, Messages, u16_at, u32_at};
use crate::{KernelError, KernelEvent, Outcome, Scope};

// xfrm.h
const DELPOLICY: u16 = 0x14;
const GETPOLICY: u16 = 0x15;
const UPDPOLICY: u16 = 0x19;
const TEMPLATES: u16 = 5;
const MARK: u16 = 21;
const INTERFACE: u16 = 31;
const GROUP_POLICY: u32 = 4;
const TUNNEL: u8 = 1;
const BLOCK: u8 = 1;
const ESP: u8 = 50;
/// Sizes of `xfrm_selector`, `xfrm_lifetime_cfg`, `xfrm_userpolicy_info`, `xfrm_user_tmpl`.
const SELECTOR: usize = 56;
const LIMITS: usize = 64;
const POLICY: usize = 168;
const TEMPLATE: usize = 64;

/// IPsec policies of the network namespace in which they were first asked for.
#[derive(Default)]
pub(crate) struct XfrmPolicies {
    sockets: Option<Sockets>,
    network: Dual<IpNet>,
}

struct Sockets {
    requests: Requests,
    events: AsyncFd<Socket>,
}

impl Sockets {
    fn open() -> std::io::Result<Sockets> {
        let mut events = Socket::new(NETLINK_XFRM)?;
        events.bind_auto()?;
        events.set_non_blocking(true)?;
        events.add_membership(GROUP_POLICY)?;
        Ok(Sockets {
            requests: Requests::open_for(NETLINK_XFRM)?,
            // SAFETY: `Socket` owns its descriptor, and keeps it open and the same until it is dropped.
            events: unsafe { AsyncFd::register_with_interest(events, Interest::READABLE)? },
        })
    }

    /// Reads all notifications. Returns whether another program changed something.
    fn drain(&mut self) -> bool {
        let mut others = false;
        let mut room = Room::take();
        loop {
            let socket = self.events.get_ref();
            match socket.recv(&mut &mut room[..], libc::MSG_DONTWAIT) {
                Ok(len) => {
                    let bytes = room.get(..len).unwrap_or(&room);
                    let ours = self.requests.port();
                    others |= Messages(bytes).any(|message| message.port != ours);
                }
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => return others,
                // Lost.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => others = true,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(_) => return others,
            }
        }
    }
}

impl XfrmPolicies {
    fn sockets(&mut self) -> Result<&mut Sockets, Failure> {
        if self.sockets.is_none() {
            let opened = Sockets::open().map_err(|error| {
                let text = format!("the kernel offers no IPsec here (modprobe xfrm_user): {error}");
                Failure::because(error.raw_os_error().unwrap_or(libc::EOPNOTSUPP), text)
            })?;
            self.sockets = Some(opened);
        }
        self.sockets
            .as_mut()
            .ok_or_else(|| Failure::errno(libc::EOPNOTSUPP))
    }

    fn change(&mut self, op: &Op) -> Result<(), Failure> {
        let (kind, body, templates) = match op {
            Op::Put(Object::XfrmPolicy(key, value)) => {
                let (body, templates) = policy(key, value)?;
                (UPDPOLICY, body, templates)
            }
            Op::Del(Object::XfrmPolicy(key, _)) => {
                let mut body = selector(key);
                // Not by its number.
                body.extend_from_slice(&[0; 4]);
                body.extend_from_slice(&[number(key.dir), 0, 0, 0]);
                (DELPOLICY, body, Vec::new())
            }
            Op::Put(_) | Op::Del(_) => return Err(Failure::errno(libc::EINVAL)),
        };
        let sockets = self.sockets()?;
        let attrs = |batch: &mut crate::netlink::wire::Batch| {
            if !templates.is_empty() {
                batch.attr(TEMPLATES, &templates);
            }
        };
        match sockets.requests.call(kind, 0, &body, attrs, |_| {}) {
            Err(failure) if kind == DELPOLICY && failure.errno == libc::ENOENT => Ok(()),
            done => done,
        }
    }

    fn inside(&self, net: &IpNet) -> bool {
        let network = self.network.get(Family::of_net(net));
        network.is_some_and(|network| network.contains(net))
    }
}

impl Door for XfrmPolicies {
    fn set_scope(&mut self, scope: &Scope) {
        self.network = scope.network;
    }

    async fn observe(&mut self, each: &mut dyn FnMut(Object)) -> Result<(), KernelError> {
        // A kernel without IPsec has no policies.
        if self.sockets().is_err() {
            return Ok(());
        }
        let mut seen = Vec::new();
        if let Some(sockets) = &mut self.sockets {
            sockets.drain();
            let dumped =
                sockets
                    .requests
                    .dump(GETPOLICY, &[], |_| {}, |message| seen.extend(read(message)));
            match dumped {
                Err(failure)
                    if !matches!(failure.errno, libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) =>
                {
                    return Err(refused("ip xfrm policy", failure));
                }
                _ => {}
            }
        }
        for (key, value) in seen {
            if self.inside(&key.src) && self.inside(&key.dst) {
                each(Object::XfrmPolicy(key, value));
            }
        }
        Ok(())
    }

    async fn apply(&mut self, ops: &[Op]) -> Vec<Outcome> {
        let one = |op: &Op| self.change(op).map_err(|failure| failure.of(op)).into();
        ops.iter().map(one).collect()
    }

    async fn event(&mut self) -> KernelEvent {
        loop {
            let Some(sockets) = &mut self.sockets else {
                return std::future::pending().await;
            };
            match sockets.events.readable().await {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => return std::future::pending().await,
            }
            if sockets.drain() {
                return KernelEvent::LookAgain;
            }
        }
    }
}

fn number(dir: XfrmDir) -> u8 {
    match dir {
        XfrmDir::In => 0,
        XfrmDir::Out => 1,
        XfrmDir::Fwd => 2,
    }
}

fn wide(ip: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match ip {
        IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes = ip.octets(),
    }
    bytes
}

fn family(ip: &IpAddr) -> [u8; 2] {
    let family = match ip {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    };
    u16::from(family).to_ne_bytes()
}

/// A `xfrm_selector`.
fn selector(key: &XfrmPolicyKey) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(POLICY);
    bytes.extend_from_slice(&wide(key.dst.network()));
    bytes.extend_from_slice(&wide(key.src.network()));
    // Ports and their masks.
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&family(&key.dst.network()));
    bytes.extend_from_slice(&[key.dst.prefix_len(), key.src.prefix_len()]);
    bytes.resize(SELECTOR, 0);
    bytes
}

/// A `xfrm_userpolicy_info` and its templates.
fn policy(key: &XfrmPolicyKey, value: &XfrmPolicy) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let (priority, action) = match value {
        XfrmPolicy::Tunnel { .. } => (0, 0),
        XfrmPolicy::Block => (IPSEC_PRIORITY, BLOCK),
        XfrmPolicy::Allow => (IPSEC_PRIORITY - 1, 0),
        XfrmPolicy::Foreign => return Err(Failure::errno(libc::EOPNOTSUPP)),
    };
    let mut bytes = selector(key);
    // No limits: 4 of bytes and packets, then 4 of time.
    bytes.extend_from_slice(&[0xff; LIMITS / 2]);
    bytes.extend_from_slice(&[0; LIMITS / 2]);
    // Counters so far.
    bytes.extend_from_slice(&[0; 32]);
    bytes.extend_from_slice(&u32::to_ne_bytes(priority));
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[number(key.dir), action, 0, 0]);
    bytes.resize(POLICY, 0);
    let mut template = Vec::new();
    if let XfrmPolicy::Tunnel { src, dst, or_plain } = value {
        template.extend_from_slice(&wide(*dst));
        template.extend_from_slice(&[0; 4]);
        template.extend_from_slice(&[ESP, 0, 0, 0]);
        template.extend_from_slice(&family(dst));
        template.extend_from_slice(&[0; 2]);
        template.extend_from_slice(&wide(*src));
        template.extend_from_slice(&IPSEC_REQUEST.to_ne_bytes());
        template.extend_from_slice(&[TUNNEL, 0, u8::from(*or_plain), 0]);
        // No algorithms are excluded.
        template.extend_from_slice(&[0xff; 12]);
    }
    Ok((bytes, template))
}

/// Reads a policy that may be ours.
fn read(message: &Message) -> Option<(XfrmPolicyKey, XfrmPolicy)> {
    let body = message.body;
    let family = u16_at(body, 40)?;
    let net = |at, len: usize| IpNet::new(address(body, at, family)?, *body.get(len)?).ok();
    let dir = match *body.get(160)? {
        0 => XfrmDir::In,
        1 => XfrmDir::Out,
        2 => XfrmDir::Fwd,
        _ => return None,
    };
    let key = XfrmPolicyKey {
        dir,
        src: net(16, 43)?,
        dst: net(0, 42)?,
    };
    // Ports, a protocol or an interface make it another policy.
    if body.get(32..40)? != [0; 8] || body.get(44..56)?.iter().any(|byte| *byte != 0) {
        return None;
    }
    let (priority, action) = (u32_at(body, 152)?, *body.get(161)?);
    let mut tunnel = None;
    let mut plain = true;
    for (kind, value) in message.attrs(POLICY) {
        match kind {
            MARK | INTERFACE => return None,
            TEMPLATES => {
                plain = false;
                tunnel = template(value);
            }
            _ => {}
        }
    }
    match (plain, tunnel) {
        (true, _) if priority == IPSEC_PRIORITY && action == BLOCK => {
            Some((key, XfrmPolicy::Block))
        }
        (true, _) if priority == IPSEC_PRIORITY - 1 && action == 0 => {
            Some((key, XfrmPolicy::Allow))
        }
        (true, _) if (IPSEC_PRIORITY - 1..=IPSEC_PRIORITY).contains(&priority) => {
            Some((key, XfrmPolicy::Foreign))
        }
        (true, _) => None,
        (false, Some(tunnel)) if priority == 0 && action == 0 => Some((key, tunnel)),
        (false, Some(_)) => Some((key, XfrmPolicy::Foreign)),
        (false, None) => None,
    }
}

/// Reads the one template of a policy by which flannel's packets are encrypted.
fn template(bytes: &[u8]) -> Option<XfrmPolicy> {
    let family = u16_at(bytes, 24)?;
    let flannels = bytes.len() == TEMPLATE
        && u32_at(bytes, 44)? == IPSEC_REQUEST
        && *bytes.get(48)? == TUNNEL
        && *bytes.get(20)? == ESP;
    flannels.then_some(XfrmPolicy::Tunnel {
        src: address(bytes, 28, family)?,
        dst: address(bytes, 0, family)?,
        or_plain: *bytes.get(50)? != 0,
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::wire::{Batch, Messages};

    #[test]
    fn fuzzed_policies() {
        let mut batch = Batch::default();
        let mut body = vec![0; POLICY];
        (body[40], body[42], body[43], body[160]) = (2, 24, 24, 1);
        batch.open(19, 0, &body).attr(TEMPLATES, &[2; 64]);
        batch.close();
        fuzz::run("xfrm policies", &[batch.bytes()], |input| {
            Messages(input).filter_map(|message| read(&message)).count()
        });
    }
}
