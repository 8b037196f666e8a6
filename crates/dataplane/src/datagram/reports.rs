//! What other hosts report about packets of a socket that they did not pass on (ICMP).

use std::io::{self, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use model::Family;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};

/// Bytes of a packet that are read of what a report quotes.
const QUOTED: usize = 128;

/// Room for one report, with the reporting host's address.
const CONTROL: usize = 256;

/// A report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Who reports. Anybody who guesses the packet's ports can forge it.
    pub by: IpAddr,
    /// What became of the packet.
    pub fate: Fate,
    /// The beginning of the packet's payload, as far as the reporting host quotes it.
    pub quoted: Vec<u8>,
}

/// What became of a packet that was not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nobody listens on the port, or a firewall says so.
    PortClosed,
    /// A rule or a policy forbids it.
    Prohibited,
    /// There is no way to the destination, or a firewall says so.
    Unreachable,
}

/// Has the kernel keep what other hosts report about this socket's packets, for [`next`].
///
/// # Errors
/// The kernel's refusal; none is expected.
pub fn keep(socket: &impl AsFd, family: Family) -> io::Result<()> {
    let (level, option) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_RECVERR),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    };
    super::set(socket.as_fd(), level, option, 1)
}

/// Returns the oldest report that was not read yet, without waiting; `None` if there is none.
pub fn next(socket: &impl AsFd) -> Option<Report> {
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    // Others, such as a path's MTU, are of no interest.
    for _ in 0..16 {
        let mut bytes = [0; QUOTED];
        let mut pieces = [IoSliceMut::new(&mut bytes)];
        let mut control = vec![0; CONTROL];
        let fd = socket.as_fd().as_raw_fd();
        let read = recvmsg::<SockaddrStorage>(fd, &mut pieces, Some(&mut control), flags).ok()?;
        let len = read.bytes;
        let found = read.cmsgs().ok()?.find_map(|message| match message {
            ControlMessageOwned::Ipv4RecvErr(error, Some(by)) => {
                let by = IpAddr::from(by.sin_addr.s_addr.to_ne_bytes());
                Some((by, fate(&error)?))
            }
            ControlMessageOwned::Ipv6RecvErr(error, Some(by)) => {
                Some((IpAddr::from(by.sin6_addr.s6_addr), fate(&error)?))
            }
            _ => None,
        });
        if let Some((by, fate)) = found {
            let quoted = bytes.get(..len).unwrap_or_default().to_vec();
            return Some(Report { by, fate, quoted });
        }
    }
    None
}

/// Reads type and code, as RFC 792, 1812 and 4443 number them.
fn fate(error: &libc::sock_extended_err) -> Option<Fate> {
    match (error.ee_origin, error.ee_type, error.ee_code) {
        (libc::SO_EE_ORIGIN_ICMP, 3, 3) | (libc::SO_EE_ORIGIN_ICMP6, 1, 4) => {
            Some(Fate::PortClosed)
        }
        (libc::SO_EE_ORIGIN_ICMP, 3, 9 | 10 | 13) | (libc::SO_EE_ORIGIN_ICMP6, 1, 1 | 5 | 6) => {
            Some(Fate::Prohibited)
        }
        // A packet that is too large (code 4) shows nothing of the way's end.
        (libc::SO_EE_ORIGIN_ICMP, 3, code) if code != 4 => Some(Fate::Unreachable),
        (libc::SO_EE_ORIGIN_ICMP6, 1, _) => Some(Fate::Unreachable),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_closed_port_is_reported_with_who_says_so_and_the_packet() {
        for (ip, family) in [("127.0.0.1", Family::V4), ("::1", Family::V6)] {
            let ip: IpAddr = ip.parse().unwrap();
            let Ok(taken) = UdpSocket::bind((ip, 0)) else {
                continue;
            };
            let port = taken.local_addr().unwrap().port();
            drop(taken);
            let socket = UdpSocket::bind((ip, 0)).unwrap();
            keep(&socket, family).unwrap();
            assert_eq!(next(&socket), None);
            socket.send_to(b"a packet", (ip, port)).unwrap();
            let end = Instant::now() + Duration::from_secs(60);
            let report = loop {
                match next(&socket) {
                    Some(report) => break report,
                    None => assert!(Instant::now() < end),
                }
            };
            let expected = Report {
                by: ip,
                fate: Fate::PortClosed,
                quoted: b"a packet".to_vec(),
            };
            assert_eq!(report, expected);
        }
    }
}
