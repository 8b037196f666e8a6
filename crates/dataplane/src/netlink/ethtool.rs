//! Whether a device leaves checksums to the hardware beneath it: through ethtool's netlink (kernel
//! ≥ 5.6), else through the older ioctl.
//!
//! Every change of it, by whoever, is told as a link notice (`RTM_NEWLINK`), though the notice itself
//! does not say how it now stands. So nothing needs to be listened to besides those. Asked for
//! rarely, with a socket of its own each time.

#![allow(unsafe_code, reason = "an ioctl with a structure of its own")]

use std::os::fd::RawFd;

use model::IfName;
use netlink_sys::protocols::NETLINK_GENERIC;

use super::socket::Requests;
use super::wire::{Attrs, Batch, text, u16_at};
use crate::failure::Failure;

// genetlink.h
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// Bytes of a generic netlink header: command, version, two unused.
const HEADER: usize = 4;

// ethtool_netlink.h
const FEATURES_GET: u8 = 11;
const FEATURES_SET: u8 = 12;
const A_HEADER: u16 = 1;
const A_HEADER_DEV_INDEX: u16 = 1;
const A_FEATURES_WANTED: u16 = 3;
const A_FEATURES_ACTIVE: u16 = 4;
const A_BITSET_BITS: u16 = 3;
const A_BITSET_BIT: u16 = 1;
const A_BIT_NAME: u16 = 2;
const A_BIT_VALUE: u16 = 3;

// ethtool.h
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;

/// What `ethtool -K DEV tx` switches, as far as IP is concerned. A device has some of them.
const CHECKSUMS: [&str; 3] = [
    "tx-checksum-ipv4",
    "tx-checksum-ip-generic",
    "tx-checksum-ipv6",
];

/// Whether the device leaves checksums to what is beneath; `None` if the kernel does not tell.
pub fn tx_checksum(index: u32, name: &IfName) -> Option<bool> {
    let mut door = Door::open().ok()?;
    match door.family {
        Some(family) => door.get(family, index).ok(),
        None => ioctl(door.requests.fd(), name, ETHTOOL_GTXCSUM, 0)
            .ok()
            .map(|value| value != 0),
    }
}

/// Has the device leave checksums to what is beneath, or make them itself.
///
/// # Errors
/// The kernel's refusal; or it took the request and did not do it.
pub fn set_tx_checksum(index: u32, name: &IfName, on: bool) -> Result<(), Failure> {
    let mut door = Door::open()?;
    let now = match door.family {
        Some(family) => {
            door.set(family, index, on)?;
            door.get(family, index)?
        }
        None => {
            let fd = door.requests.fd();
            ioctl(fd, name, ETHTOOL_STXCSUM, u32::from(on))?;
            ioctl(fd, name, ETHTOOL_GTXCSUM, 0)? != 0
        }
    };
    match now == on {
        true => Ok(()),
        false => Err(Failure::because(
            libc::EOPNOTSUPP,
            format!("{name} does not let its checksum offload be changed"),
        )),
    }
}

struct Door {
    requests: Requests,
    /// The number that this kernel gave to ethtool's netlink, if it has it.
    family: Option<u16>,
}

impl Door {
    fn open() -> Result<Door, Failure> {
        let mut requests = Requests::open_for(NETLINK_GENERIC)?;
        let mut family = None;
        let asked = requests.call(
            GENL_ID_CTRL,
            0,
            &[CTRL_CMD_GETFAMILY, 1, 0, 0],
            |batch| {
                batch.attr(CTRL_ATTR_FAMILY_NAME, b"ethtool\0");
            },
            |message| {
                let mut attrs = message.attrs(HEADER);
                let id = attrs.find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID);
                family = id.and_then(|(_, value)| u16_at(value, 0));
            },
        );
        match asked {
            Err(failure) if failure.errno != libc::ENOENT => Err(failure),
            _ => Ok(Door { requests, family }),
        }
    }

    fn get(&mut self, family: u16, index: u32) -> Result<bool, Failure> {
        let mut on = false;
        let device = |batch: &mut Batch| put_device(batch, index);
        self.requests
            .call(family, 0, &[FEATURES_GET, 1, 0, 0], device, |message| {
                let mut attrs = message.attrs(HEADER);
                let active = attrs.find(|(kind, _)| *kind == A_FEATURES_ACTIVE);
                on |= active.is_some_and(|(_, set)| holds_checksum(set));
            })?;
        Ok(on)
    }

    fn set(&mut self, family: u16, index: u32, on: bool) -> Result<(), Failure> {
        let wish = |batch: &mut Batch| {
            put_device(batch, index);
            let wanted = batch.nest(A_FEATURES_WANTED);
            let bits = batch.nest(A_BITSET_BITS);
            for name in CHECKSUMS {
                let bit = batch.nest(A_BITSET_BIT);
                batch.attr(A_BIT_NAME, &[name.as_bytes(), &[0]].concat());
                if on {
                    batch.attr(A_BIT_VALUE, &[]);
                }
                batch.end(bit);
            }
            batch.end(bits);
            batch.end(wanted);
        };
        self.requests
            .call(family, 0, &[FEATURES_SET, 1, 0, 0], wish, |_| {})
    }
}

fn put_device(batch: &mut Batch, index: u32) {
    let header = batch.nest(A_HEADER);
    batch.attr_u32(A_HEADER_DEV_INDEX, index);
    batch.end(header);
}

/// Whether one of the checksum features is in a set that lists what is on and nothing else.
fn holds_checksum(set: &[u8]) -> bool {
    let bits = Attrs(set).filter(|(kind, _)| *kind == A_BITSET_BITS);
    let mut bits = bits.flat_map(|(_, bits)| Attrs(bits));
    bits.any(|(_, bit)| {
        let name = Attrs(bit).find(|(kind, _)| *kind == A_BIT_NAME);
        name.and_then(|(_, name)| text(name))
            .is_some_and(|name| CHECKSUMS.contains(&name))
    })
}

/// One ethtool command that takes or gives one number. Returns the number.
fn ioctl(fd: RawFd, name: &IfName, command: u32, value: u32) -> Result<u32, Failure> {
    /// `struct ethtool_value`.
    #[repr(C)]
    struct Value {
        command: u32,
        value: u32,
    }
    let mut data = Value { command, value };
    // SAFETY: all zeros is a value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut data).cast();
    // SAFETY: `request` names a device, NUL at its end, and points to `data`; both outlive the call.
    match unsafe { libc::ioctl(fd, libc::SIOCETHTOOL as _, &raw mut request) } {
        0 => Ok(data.value),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}

#[cfg(test)]
mod tests;
