//! The TUN device: opening, offloads, reading and writing whole packets.

#![allow(unsafe_code, reason = "ioctls of the TUN driver")]

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::virtio::Header;

const PATH: &str = "/dev/net/tun";

/// Why a TUN device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel has no TUN devices, or we may not use them.
    #[error(
        "{PATH}: {0}: the kernel needs the module `tun` (modprobe tun), and this process access to the device file"
    )]
    Open(io::Error),
    /// The name is empty or too long.
    #[error("device name {0:?}: it must have 1 to 15 bytes and no NUL")]
    Name(String),
    /// The device was refused.
    #[error("TUN device {name}: {error}{}", remedy(.error))]
    Attach {
        /// Its name.
        name: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// A setting was refused.
    #[error("TUN device {name}: {what}: {error}")]
    Set {
        /// Its name.
        name: String,
        /// The setting.
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EINVAL) => {
            ": a device of this name exists that is no TUN device, or was made with other settings: delete it (ip link delete)"
        }
        Some(libc::EBUSY) => ": another process uses the device",
        Some(libc::EPERM) => ": this process needs CAP_NET_ADMIN",
        _ => "",
    }
}

/// One queue of a TUN device. Packets are read and written with a [`Header`] before them.
#[derive(Debug)]
pub(crate) struct Queue {
    file: File,
}

/// What the kernel takes and gives in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offloads {
    /// Joined UDP datagrams (kernel 6.2).
    pub(crate) udp: bool,
}

impl Queue {
    /// Opens `count` queues of the device `name`, which exists.
    pub(crate) fn open_all(name: &str, count: usize) -> Result<(Vec<Queue>, Offloads), TunError> {
        let queues = (0..count.max(1))
            .map(|_| Queue::open(name))
            .collect::<Result<Vec<_>, _>>()?;
        let mut offloads = Offloads { udp: false };
        if let Some(queue) = queues.first() {
            let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
            let all = tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6;
            // They belong to the device, not to a queue.
            offloads.udp = queue
                .set(name, "TUNSETOFFLOAD", libc::TUNSETOFFLOAD, all)
                .is_ok();
            if !offloads.udp {
                queue.set(name, "TUNSETOFFLOAD", libc::TUNSETOFFLOAD, tcp)?;
            }
        }
        Ok((queues, offloads))
    }

    fn open(name: &str) -> Result<Queue, TunError> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
            return Err(TunError::Name(name.to_owned()));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(PATH)
            .map_err(TunError::Open)?;
        // SAFETY: a structure of plain numbers, for which zero is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *place = byte as libc::c_char;
        }
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
        if done < 0 {
            return Err(TunError::Attach {
                name: name.to_owned(),
                error: io::Error::last_os_error(),
            });
        }
        Ok(Queue { file })
    }

    fn set(
        &self,
        name: &str,
        what: &'static str,
        request: libc::Ioctl,
        value: libc::c_uint,
    ) -> Result<(), TunError> {
        // SAFETY: these requests take a number, no pointer.
        let done =
            unsafe { libc::ioctl(self.file.as_raw_fd(), request, libc::c_ulong::from(value)) };
        if done < 0 {
            let error = io::Error::last_os_error();
            return Err(TunError::Set {
                name: name.to_owned(),
                what,
                error,
            });
        }
        Ok(())
    }

    /// Reads one packet into `buffer`, behind the bytes of its header. Returns the header and the
    /// packet's length; `None` if there is none at present.
    ///
    /// # Errors
    /// The device is gone.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<(Header, usize)>> {
        loop {
            match io::Read::read(&mut &self.file, buffer) {
                Ok(read) => {
                    // It may be more than there was room for.
                    let read = buffer.get(..read).unwrap_or(buffer);
                    return Ok(read
                        .split_first_chunk()
                        .map(|(header, packet)| (Header::decode(header), packet.len())));
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(None),
                    io::ErrorKind::Interrupted => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// Writes one packet: `head`, then the `pieces` of `data`. `scratch` is for reuse.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(crate) fn write(
        &self,
        header: &Header,
        head: &[u8],
        data: &[u8],
        pieces: &[Range<usize>],
        scratch: &mut Vec<libc::iovec>,
    ) -> io::Result<()> {
        let virtio = header.encode();
        let part = |bytes: &[u8]| libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        scratch.clear();
        scratch.push(part(&virtio));
        scratch.push(part(head));
        scratch.extend(pieces.iter().map(|piece| part(&data[piece.clone()])));
        let count = c_int::try_from(scratch.len()).unwrap_or(c_int::MAX);
        loop {
            // SAFETY: each entry is a live slice, which `writev` only reads.
            let done = unsafe { libc::writev(self.file.as_raw_fd(), scratch.as_ptr(), count) };
            if done >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
