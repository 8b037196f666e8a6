//! WireGuard's generic netlink messages (`linux/wireguard.h`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use model::object::{WgDevice, WgPeer};
use model::{Family, IfName, WgKey, WgSecret};
use netlink_sys::protocols::NETLINK_GENERIC;

use crate::failure::Failure;
use crate::netlink::socket::Requests;
use crate::netlink::uapi::{AF_INET, AF_INET6};
use crate::netlink::wire::{Attrs, Batch, Message, af, ip, u16_at};

// genetlink.h
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// Bytes of a generic netlink header: command, version, two unused.
const HEADER: usize = 4;

// wireguard.h
const GET_DEVICE: [u8; HEADER] = [0, 1, 0, 0];
const SET_DEVICE: [u8; HEADER] = [1, 1, 0, 0];
const DEVICE_IFNAME: u16 = 2;
const DEVICE_PRIVATE_KEY: u16 = 3;
const DEVICE_LISTEN_PORT: u16 = 6;
const DEVICE_PEERS: u16 = 8;
const PEER_PUBLIC_KEY: u16 = 1;
const PEER_PRESHARED_KEY: u16 = 2;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_LAST_HANDSHAKE: u16 = 6;
const PEER_ALLOWED: u16 = 9;
const REMOVE_ME: u32 = 1;
const REPLACE_ALLOWED: u32 = 2;
const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_MASK: u16 = 3;

/// How often a packet is asked for so that a handshake begins, in seconds. The setting is taken back at once.
const ANY_KEEPALIVE: u16 = 25;

/// A socket to the kernel's WireGuard.
pub(super) struct Connection {
    requests: Requests,
    family: u16,
}

/// A peer as the kernel holds it.
pub(super) struct Found {
    pub(super) key: WgKey,
    /// With the end point in use, whoever set it.
    pub(super) peer: WgPeer,
    /// When the last handshake ended; the epoch if there was none.
    pub(super) handshake: SystemTime,
}

impl Connection {
    /// Opens one. `None` if the kernel has no WireGuard, which it loads by itself if it can.
    pub(super) fn open() -> io::Result<Option<Connection>> {
        let mut requests = Requests::open_for(NETLINK_GENERIC)?;
        let mut family = None;
        let name = |batch: &mut Batch| {
            batch.attr(CTRL_ATTR_FAMILY_NAME, b"wireguard\0");
        };
        let ask = [CTRL_CMD_GETFAMILY, 1, 0, 0];
        let asked = requests.call(GENL_ID_CTRL, 0, &ask, name, |message| {
            let id = message
                .attrs(HEADER)
                .find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID);
            family = id.and_then(|(_, value)| u16_at(value, 0));
        });
        match asked {
            Err(failure) if failure.errno != libc::ENOENT => {
                Err(io::Error::from_raw_os_error(failure.errno))
            }
            Ok(()) | Err(_) => Ok(family.map(|family| Connection { requests, family })),
        }
    }

    /// Reads a device, and hands each of its peers to `each`. The settings are `None` without a private key.
    ///
    /// # Errors
    /// `ENODEV`: there is no such device; `EOPNOTSUPP`: it is of another kind; or the kernel's refusal.
    pub(super) fn read(
        &mut self,
        name: &IfName,
        mut each: impl FnMut(Found),
    ) -> Result<Option<WgDevice>, Failure> {
        let (mut private, mut port) = (None, 0);
        // A peer that does not fit into one message goes on in the next.
        let mut open: Option<Found> = None;
        let names = |batch: &mut Batch| put_name(batch, name);
        let mut message = |message: &Message| {
            for (kind, value) in message.attrs(HEADER) {
                match kind {
                    DEVICE_PRIVATE_KEY => private = key(value),
                    DEVICE_LISTEN_PORT => port = u16_at(value, 0).unwrap_or(0),
                    DEVICE_PEERS => {
                        for (_, value) in Attrs(value) {
                            let Some(next) = found(value) else { continue };
                            match &mut open {
                                Some(open) if open.key == next.key => {
                                    open.peer.allowed.extend(next.peer.allowed);
                                }
                                _ => open.replace(next).into_iter().for_each(&mut each),
                            }
                        }
                    }
                    _ => {}
                }
            }
        };
        self.requests
            .dump(self.family, &GET_DEVICE, names, &mut message)?;
        open.into_iter().for_each(each);
        let private = private.filter(|bytes| *bytes != [0; 32]).map(WgSecret);
        Ok(private.map(|private| WgDevice { private, port }))
    }

    /// Sets key and port of a device; without, takes the key away.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(super) fn set(&mut self, name: &IfName, device: Option<&WgDevice>) -> Result<(), Failure> {
        let settings = |batch: &mut Batch| {
            put_name(batch, name);
            batch.attr(
                DEVICE_PRIVATE_KEY,
                &device.map_or([0; 32], |device| device.private.0),
            );
            if let Some(device) = device {
                batch.attr(DEVICE_LISTEN_PORT, &device.port.to_ne_bytes());
            }
        };
        let done = self
            .requests
            .call(self.family, 0, &SET_DEVICE, settings, |_| {});
        done.map_err(|failure| match (failure.errno, device) {
            (libc::EADDRINUSE, Some(device)) => {
                let port = device.port;
                let text = format!(
                    "{}: another program uses UDP port {port} (ss -ulnp shows it): stop it, or set another Backend.ListenPort",
                    failure.text
                );
                Failure::because(failure.errno, text)
            }
            _ => failure,
        })
    }

    /// Makes changes of a device's peers, all of them or, if the kernel refuses one, perhaps only those before it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(super) fn change(&mut self, name: &IfName, changes: &[Change<'_>]) -> Result<(), Failure> {
        let message = |batch: &mut Batch| {
            put_name(batch, name);
            let peers = batch.nest(DEVICE_PEERS);
            changes.iter().for_each(|change| change.write(batch));
            batch.end(peers);
        };
        self.requests
            .call(self.family, 0, &SET_DEVICE, message, |_| {})
    }
}

/// A change of one peer.
pub(super) struct Change<'a> {
    pub(super) key: WgKey,
    /// What it is to be; `None` to remove it.
    pub(super) peer: Option<&'a WgPeer>,
    /// Begin a handshake at once.
    pub(super) greet: bool,
}

impl Change<'_> {
    /// Returns the most bytes that it takes in a message.
    pub(super) fn size(&self) -> usize {
        let nets = self.peer.map_or(0, |peer| peer.allowed.len());
        256 + 48 * nets
    }

    fn write(&self, batch: &mut Batch) {
        let Some(peer) = self.peer else {
            let entry = self.begin(batch);
            batch.attr_u32(PEER_FLAGS, REMOVE_ME);
            return batch.end(entry);
        };
        let entry = self.begin(batch);
        batch.attr_u32(PEER_FLAGS, REPLACE_ALLOWED);
        batch.attr(
            PEER_PRESHARED_KEY,
            &peer.preshared.map_or([0; 32], |key| key.0),
        );
        if let Some(endpoint) = peer.endpoint {
            batch.attr(PEER_ENDPOINT, &raw(endpoint));
        }
        // A device that is up sends a packet when this becomes more than zero.
        let keepalive = if self.greet && peer.keepalive == 0 {
            ANY_KEEPALIVE
        } else {
            peer.keepalive
        };
        batch.attr(PEER_KEEPALIVE, &keepalive.to_ne_bytes());
        let all = batch.nest(PEER_ALLOWED);
        for net in &peer.allowed {
            let one = batch.nest(0);
            let family = u16::from(af(Family::of_net(net)));
            batch.attr(ALLOWED_FAMILY, &family.to_ne_bytes());
            batch.attr_ip(ALLOWED_ADDRESS, &net.addr());
            batch.attr(ALLOWED_MASK, &[net.prefix_len()]);
            batch.end(one);
        }
        batch.end(all);
        batch.end(entry);
        if keepalive != peer.keepalive {
            let entry = self.begin(batch);
            batch.attr(PEER_KEEPALIVE, &peer.keepalive.to_ne_bytes());
            batch.end(entry);
        }
    }

    fn begin(&self, batch: &mut Batch) -> crate::netlink::wire::Nest {
        let entry = batch.nest(0);
        batch.attr(PEER_PUBLIC_KEY, &self.key.0);
        entry
    }
}

fn put_name(batch: &mut Batch, name: &IfName) {
    batch.attr(DEVICE_IFNAME, &[name.as_str().as_bytes(), &[0]].concat());
}

fn key(value: &[u8]) -> Option<[u8; 32]> {
    value.try_into().ok()
}

/// Reads a peer. `None` without a public key.
fn found(value: &[u8]) -> Option<Found> {
    let mut public = None;
    let mut handshake = SystemTime::UNIX_EPOCH;
    let mut peer = WgPeer {
        endpoint: None,
        allowed: Vec::new(),
        preshared: None,
        keepalive: 0,
    };
    for (kind, value) in Attrs(value) {
        match kind {
            PEER_PUBLIC_KEY => public = key(value),
            PEER_PRESHARED_KEY => {
                peer.preshared = key(value).filter(|key| *key != [0; 32]).map(WgSecret);
            }
            PEER_ENDPOINT => peer.endpoint = endpoint(value),
            PEER_KEEPALIVE => peer.keepalive = u16_at(value, 0).unwrap_or(0),
            PEER_LAST_HANDSHAKE => handshake = time(value).unwrap_or(handshake),
            PEER_ALLOWED => {
                let nets = Attrs(value).filter_map(|(_, value)| allowed(value));
                peer.allowed = nets.collect();
            }
            _ => {}
        }
    }
    public.map(|public| Found {
        key: WgKey(public),
        peer,
        handshake,
    })
}

fn allowed(value: &[u8]) -> Option<IpNet> {
    let (mut address, mut mask) = (None, None);
    for (kind, value) in Attrs(value) {
        match kind {
            ALLOWED_ADDRESS => address = ip(value),
            ALLOWED_MASK => mask = value.first().copied(),
            _ => {}
        }
    }
    IpNet::new(address?, mask?).ok()
}

/// A `struct __kernel_timespec`.
fn time(value: &[u8]) -> Option<SystemTime> {
    let seconds = i64::from_ne_bytes(value.get(..8)?.try_into().ok()?);
    let nanoseconds = i64::from_ne_bytes(value.get(8..16)?.try_into().ok()?);
    let seconds = Duration::from_secs(u64::try_from(seconds).ok()?);
    let nanoseconds = Duration::from_nanos(u64::try_from(nanoseconds).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(seconds + nanoseconds)
}

/// A `struct sockaddr_in` or `sockaddr_in6`.
fn raw(endpoint: SocketAddr) -> Vec<u8> {
    let port = endpoint.port().to_be_bytes();
    match endpoint {
        SocketAddr::V4(v4) => [
            &u16::from(AF_INET).to_ne_bytes()[..],
            &port,
            &v4.ip().octets(),
            &[0; 8],
        ]
        .concat(),
        SocketAddr::V6(v6) => [
            &u16::from(AF_INET6).to_ne_bytes()[..],
            &port,
            &[0; 4],
            &v6.ip().octets(),
            &v6.scope_id().to_ne_bytes(),
        ]
        .concat(),
    }
}

fn endpoint(value: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(value.get(2..4)?.try_into().ok()?);
    let address: IpAddr = if u16_at(value, 0)? == u16::from(AF_INET) {
        ip(value.get(4..8)?)?
    } else {
        ip(value.get(8..24)?)?
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_points_read_back() {
        for text in ["192.0.2.7:51820", "[2001:db8::7]:1"] {
            let at: SocketAddr = text.parse().unwrap();
            assert_eq!(endpoint(&raw(at)), Some(at));
        }
        assert_eq!(raw("192.0.2.7:1".parse().unwrap()).len(), 16);
        assert_eq!(raw("[::1]:1".parse().unwrap()).len(), 28);
        assert_eq!(endpoint(&[2, 0, 1]), None);
    }

    #[test]
    fn a_peer_reads_back_as_it_was_written() {
        let peer = WgPeer {
            endpoint: Some("192.0.2.7:51820".parse().unwrap()),
            allowed: vec![
                "10.1.4.0/24".parse().unwrap(),
                "fd00:4::/64".parse().unwrap(),
            ],
            preshared: Some(WgSecret([3; 32])),
            keepalive: 7,
        };
        let change = Change {
            key: WgKey([9; 32]),
            peer: Some(&peer),
            greet: false,
        };
        let mut batch = Batch::default();
        batch.open(20, 0, &SET_DEVICE);
        change.write(&mut batch);
        batch.close();
        assert!(batch.bytes().len() <= change.size());
        let (_, value) = Attrs(&batch.bytes()[16 + HEADER..]).next().unwrap();
        let read = found(value).unwrap();
        assert_eq!((read.key, read.peer), (WgKey([9; 32]), peer));
        assert_eq!(read.handshake, SystemTime::UNIX_EPOCH);
        for cut in 0..value.len() {
            // Never a panic.
            drop(found(&value[..cut]));
        }
    }
}
