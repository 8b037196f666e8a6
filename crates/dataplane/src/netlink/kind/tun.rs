//! TUN devices: `IFLA_TUN_*`, and `/dev/net/tun`, which alone creates them.

#![allow(unsafe_code, reason = "ioctls of the TUN driver")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;

use model::IfName;
use model::object::Tun;

use crate::failure::Failure;
use crate::netlink::uapi::*;
use crate::netlink::wire::Attrs;

const PATH: &str = "/dev/net/tun";

/// Reads a TUN device. `None` if it goes with its program, or has one queue only, which cannot be changed.
pub fn decode(data: Attrs) -> Option<Tun> {
    let (mut tun, mut persistent, mut queues) = (false, false, false);
    for (kind, value) in data {
        match kind {
            IFLA_TUN_TYPE => tun = value.first() == Some(&(libc::IFF_TUN as u8)),
            IFLA_TUN_PERSIST => persistent = value.first() == Some(&1),
            IFLA_TUN_MULTI_QUEUE => queues = value.first() == Some(&1),
            _ => {}
        }
    }
    (tun && persistent && queues).then_some(Tun)
}

/// Creates a TUN device that outlives this process, down and without an address.
///
/// # Errors
/// The kernel has no TUN devices, this process may not use them, or a device of this name exists.
pub fn create(name: &IfName) -> Result<(), Failure> {
    let opened = OpenOptions::new().read(true).write(true).open(PATH);
    let file = opened.map_err(|error| {
        let text = format!(
            "{PATH}: {error}: the kernel needs the module tun (modprobe tun), and this process access to the device file"
        );
        Failure::because(error.raw_os_error().unwrap_or(libc::ENODEV), text)
    })?;
    // SAFETY: a structure of plain numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *place = byte as libc::c_char;
    }
    let flags = libc::IFF_TUN
        | libc::IFF_NO_PI
        | libc::IFF_VNET_HDR
        | libc::IFF_MULTI_QUEUE
        | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    check(made, name)?;
    // SAFETY: TUNSETPERSIST takes a number, no pointer.
    let kept = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) };
    check(kept, name)
}

fn check(done: libc::c_int, name: &IfName) -> Result<(), Failure> {
    if done >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
    Err(Failure::because(errno, format!("{PATH}: {name}: {error}")))
}
