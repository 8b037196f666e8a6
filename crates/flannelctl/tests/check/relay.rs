//! A wire that leaves checksums undone: frames pass through a program, which sees them before any
//! device has made their checksums, and passes them on so, except those of the tunnel itself. That is
//! what a device beneath a tunnel does that promises checksums and does not make those inside.

#![allow(unsafe_code, reason = "packet sockets")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use lab::Lab;

pub struct Relay {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Puts it into the wire of node 1.
    pub fn in_the_wire_of_node_1(lab: &Lab) -> Relay {
        let fabric = lab.fabric();
        for line in [
            "link set n1 nomaster",
            "link add relay type veth peer name plug",
            "link set plug master br0",
            "link set plug up",
            "link set relay up",
        ] {
            fabric.exec(format!("ip {line}").split(' ')).unwrap();
        }
        let sockets = fabric
            .run(|| ["n1", "relay"].map(|name| Arc::new(open(name).unwrap())))
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let [a, b] = sockets;
        let ways = [(a.clone(), b.clone()), (b, a)];
        let threads = ways.map(|(from, to)| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut frame = vec![0; 65_536];
                while !stop.load(Ordering::Relaxed) {
                    // It looks at `stop` now and then: a receive waits 100 ms at most.
                    // SAFETY: `frame` is as long as told.
                    let got = unsafe {
                        libc::recv(from.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0)
                    };
                    if let Ok(len) = usize::try_from(got) {
                        excuse(&mut frame[..len]);
                        // Frames too large for the wire are lost, as they are on wires.
                        // SAFETY: the first `len` bytes were written.
                        unsafe { libc::send(to.as_raw_fd(), frame.as_ptr().cast(), len, 0) };
                    }
                }
            })
        });
        Relay {
            stop,
            threads: threads.into(),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads
            .drain(..)
            .for_each(|thread| drop(thread.join()));
    }
}

/// Ethernet and IPv4 headers, then UDP's.
const UDP: usize = 14 + 20;

/// Takes the checksum off a tunnel's packet: "none", which every receiver takes for right.
fn excuse(frame: &mut [u8]) {
    let is_tunnels = frame.len() > UDP + 8
        && frame[12..14] == [8, 0]
        && frame[14 + 9] == 17
        && frame[UDP + 2..UDP + 4] == 8472u16.to_be_bytes();
    if is_tunnels {
        frame[UDP + 6..UDP + 8].fill(0);
    }
}

fn open(name: &str) -> io::Result<OwnedFd> {
    const PACKET_IGNORE_OUTGOING: i32 = 23;
    let checked = |done: i32| match done {
        -1 => Err(io::Error::last_os_error()),
        done => Ok(done),
    };
    let c_name = std::ffi::CString::new(name).unwrap();
    // SAFETY: plain system calls; every pointer is to a value that outlives its call and is as long as told.
    unsafe {
        let index = libc::if_nametoindex(c_name.as_ptr());
        let fd = checked(libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            0,
        ))?;
        let fd = OwnedFd::from_raw_fd(fd);
        let one = 1i32;
        let option = |level, name, value: *const libc::c_void, len: usize| {
            checked(libc::setsockopt(
                fd.as_raw_fd(),
                level,
                name,
                value,
                len as u32,
            ))
        };
        option(
            libc::SOL_PACKET,
            PACKET_IGNORE_OUTGOING,
            (&raw const one).cast(),
            4,
        )?;
        let patience = libc::timeval {
            tv_sec: 0,
            tv_usec: 100_000,
        };
        let len = size_of::<libc::timeval>();
        option(
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const patience).cast(),
            len,
        )?;
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        let len = size_of::<libc::sockaddr_ll>() as u32;
        checked(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len))?;
        Ok(fd)
    }
}
