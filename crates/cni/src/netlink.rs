//! The few things about a bridge that the kernel is asked and told. Not by way of `/sys`, which shows the
//! network namespace of whoever mounted it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_GETLINK: u16 = 18;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const IFLA_MASTER: u16 = 10;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// The kernel's numbers of the address families.
const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Sizes of the fixed parts of messages, in bytes.
const HEADER: usize = 16;
const LINK: usize = 16;
const ADDRESS: usize = 8;

/// The index of the interface `name`; `None` where there is none. Not asked over netlink, where the answer waits
/// for the lock under which all interfaces of the host are changed: half a second has been seen.
///
/// # Errors
/// The system's.
pub fn index(name: &str) -> io::Result<Option<u32>> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    match name_to_index(&socket, name) {
        Err(Errno::NODEV) => Ok(None),
        // Longer than any interface's name.
        Err(Errno::INVAL) => Ok(None),
        other => Ok(Some(other?)),
    }
}

/// A socket in the calling process's network namespace.
pub struct Netlink(Socket);

impl Netlink {
    /// Opens one.
    pub fn open() -> io::Result<Netlink> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink(socket))
    }

    /// The addresses of the interface `index`, with their prefix lengths.
    pub fn addresses(&self, index: u32) -> io::Result<Vec<IpNet>> {
        let mut found = Vec::new();
        let mut body = [0; ADDRESS];
        body[0] = AF_UNSPEC;
        self.ask(RTM_GETADDR, DUMP, &body, |message| {
            if number(message, 4) == Some(index) {
                found.extend(address(message));
            }
        })?;
        Ok(found)
    }

    /// How many interfaces are ports of the bridge `index`.
    pub fn ports(&self, index: u32) -> io::Result<usize> {
        let mut ports = 0;
        self.ask(RTM_GETLINK, DUMP, &[0; LINK], |link| {
            let master = attribute(link, LINK, IFLA_MASTER).and_then(|value| number(value, 0));
            ports += usize::from(master == Some(index));
        })?;
        Ok(ports)
    }

    /// Takes an address off the interface `index`. One that is gone already is no error.
    pub fn remove_address(&self, index: u32, net: &IpNet) -> io::Result<()> {
        let (family, bytes) = match net.addr() {
            IpAddr::V4(ip) => (AF_INET, ip.octets().to_vec()),
            IpAddr::V6(ip) => (AF_INET6, ip.octets().to_vec()),
        };
        let mut body = vec![family, net.prefix_len(), 0, 0];
        body.extend(index.to_ne_bytes());
        push_attribute(&mut body, IFA_LOCAL, &bytes);
        match self.ask(RTM_DELADDR, ACK, &body, |_| ()) {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(()),
            other => other,
        }
    }

    /// Sends one request, a dump or one that wants an ack, and hands the body of every answer to `each`.
    fn ask(
        &self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut request = Vec::with_capacity(HEADER + body.len());
        request.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend((REQUEST | flags).to_ne_bytes());
        request.extend([0; 8]);
        request.extend(body);
        self.0.send(&request, 0)?;
        loop {
            let (datagram, _) = self.0.recv_from_full()?;
            for (kind, body) in Messages(&datagram) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        return match number(body, 0).map(|errno| errno as i32) {
                            Some(0) => Ok(()),
                            Some(errno) => Err(io::Error::from_raw_os_error(errno.wrapping_neg())),
                            None => Err(io::ErrorKind::InvalidData.into()),
                        };
                    }
                    _ => each(body),
                }
            }
        }
    }
}

/// The messages of a datagram: type and body. Ends at the first that is cut off.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = number(self.0, 0)? as usize;
        let kind = half(self.0, 4)?;
        let body = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    }
}

/// The attribute `kind` that follows a fixed part of `skip` bytes.
fn attribute(message: &[u8], skip: usize, kind: u16) -> Option<&[u8]> {
    let mut rest = message.get(skip..)?;
    loop {
        let length = usize::from(half(rest, 0)?);
        let value = rest.get(4..length)?;
        if half(rest, 2)? & 0x3fff == kind {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// The address that an address message is about: the interface's own, not a peer's.
fn address(message: &[u8]) -> Option<IpNet> {
    let bytes = attribute(message, ADDRESS, IFA_LOCAL)
        .or_else(|| attribute(message, ADDRESS, IFA_ADDRESS))?;
    let ip = match *message.first()? {
        AF_INET => IpAddr::from(<[u8; 4]>::try_from(bytes).map(Ipv4Addr::from).ok()?),
        AF_INET6 => IpAddr::from(<[u8; 16]>::try_from(bytes).map(Ipv6Addr::from).ok()?),
        _ => return None,
    };
    IpNet::new(ip, *message.get(1)?).ok()
}

fn push_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    bytes.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_seen_as_the_kernel_has_it() {
        let netlink = Netlink::open().unwrap();
        let lo = index("lo").unwrap().unwrap();
        assert_eq!(lo, 1);
        let addresses = netlink.addresses(lo).unwrap();
        assert!(
            addresses.contains(&"127.0.0.1/8".parse().unwrap()),
            "{addresses:?}"
        );
        assert_eq!(netlink.ports(lo).unwrap(), 0);
        assert_eq!(index("no-such-device").unwrap(), None);
        assert_eq!(index("much-longer-than-any-name").unwrap(), None);
    }

    #[test]
    fn what_is_cut_off_is_not_read() {
        assert_eq!(Messages(&[1, 2, 3]).count(), 0);
        assert_eq!(Messages(&[0; 64]).count(), 0);
        assert_eq!(Messages(&[255; 64]).count(), 0);
        assert_eq!(attribute(&[0; 32], 8, 1), None);
        assert_eq!(attribute(&[255; 32], 8, 1), None);
        assert_eq!(address(&[]), None);
    }
}
