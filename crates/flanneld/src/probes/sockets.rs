//! The sockets that probes go out of and come in by: one for each address of this node, so that nothing but what is
//! sent to that very address arrives, and answers leave from it.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use dataplane::datagram;
use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};
use model::Family;
use tracing::debug;

use super::mesh::View;
use super::packet::Wish;
use super::peer::Way;

/// How often a port that another program has is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Every address that this node may probe from.
pub(super) const PLACES: [(Family, Way); 4] = [
    (Family::V4, Way::Underlay),
    (Family::V4, Way::Overlay),
    (Family::V6, Way::Underlay),
    (Family::V6, Way::Overlay),
];

/// The sockets, in the order of [`PLACES`].
pub(super) struct Sockets {
    port: u16,
    open: [Option<Open>; PLACES.len()],
    retry_at: Instant,
    problem: Option<String>,
}

struct Open {
    ip: IpAddr,
    socket: UdpSocket,
    /// It has the port that other nodes send to.
    answers: bool,
}

impl Sockets {
    pub(super) fn new(port: u16) -> Sockets {
        Sockets {
            port,
            open: [None, None, None, None],
            retry_at: Instant::now(),
            problem: None,
        }
    }

    /// Opens and closes sockets as the node's addresses say.
    pub(super) fn follow(&mut self, view: &View, registry: &Registry) {
        let now = Instant::now();
        let retry = now >= self.retry_at;
        if retry {
            self.retry_at = now + RETRY;
            self.problem = None;
        }
        for (slot, (family, way)) in PLACES.into_iter().enumerate() {
            let ips = match way {
                Way::Underlay => &view.underlay,
                Way::Overlay => &view.overlay,
            };
            let wanted = ips.get(family).copied();
            let Some(open) = self.open.get_mut(slot) else {
                continue;
            };
            if let Some(open) = open.as_ref().filter(|open| Some(open.ip) == wanted) {
                let taken =
                    !open.answers && std::net::UdpSocket::bind((open.ip, self.port)).is_err();
                if retry && taken {
                    self.problem = Some(taken_port(self.port, open.ip));
                }
                if open.answers || !retry || taken {
                    continue;
                }
            }
            if let Some(mut old) = open.take()
                && let Err(error) = registry.deregister(&mut old.socket)
            {
                debug!(%error, "probes: deregister");
            }
            let Some(ip) = wanted else { continue };
            match bind(ip, self.port) {
                Ok(mut new) => {
                    let token = Token(slot);
                    let done = registry.register(&mut new.socket, token, Interest::READABLE);
                    if let Err(error) = done {
                        debug!(%error, "probes: register");
                        continue;
                    }
                    if !new.answers {
                        self.problem = Some(taken_port(self.port, ip));
                    }
                    *open = Some(new);
                }
                // A device that is not there yet, or an IPv6 address that is still checked for duplicates.
                Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {}
                Err(error) => {
                    self.problem = Some(format!(
                        "-probe-port {}: cannot send from {ip}: {error}",
                        self.port
                    ));
                }
            }
        }
    }

    /// Returns what keeps this node from answering probes, or from sending any.
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    fn at(&self, family: Family, way: Way) -> Option<&Open> {
        let slot = PLACES.iter().position(|place| *place == (family, way))?;
        self.open.get(slot)?.as_ref()
    }

    /// Returns whether this node can send that way.
    pub(super) fn is_ready(&self, family: Family, way: Way) -> bool {
        self.at(family, way).is_some()
    }

    /// Sends a probe.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn send(
        &self,
        family: Family,
        way: Way,
        to: IpAddr,
        bytes: &[u8],
    ) -> io::Result<()> {
        let open = self.at(family, way).ok_or(ErrorKind::NotConnected)?;
        let to = SocketAddr::new(to, self.port);
        open.socket.send_to(bytes, to).map(drop)
    }

    /// Answers a probe that arrived by the socket in this slot.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn answer(
        &self,
        slot: usize,
        to: SocketAddr,
        bytes: &[u8],
        wish: Wish,
    ) -> io::Result<()> {
        let open = self.open.get(slot).and_then(Option::as_ref);
        let open = open.ok_or(ErrorKind::NotConnected)?;
        // IPv6 packets have one always.
        let unchecked = wish.unchecked && to.is_ipv4();
        if unchecked {
            datagram::omit_checksum(&open.socket, true)?;
        }
        let sent = open.socket.send_to(bytes, to).map(drop);
        if unchecked {
            datagram::omit_checksum(&open.socket, false)?;
        }
        sent
    }

    /// Returns what has arrived by the socket in this slot; `None` if nothing has.
    pub(super) fn receive(&self, slot: usize, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
        let open = self.open.get(slot)?.as_ref()?;
        loop {
            match open.socket.recv_from(buffer) {
                Ok(received) => return Some(received),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                // Another host's report about a probe that was sent.
                Err(error) => debug!(%error, "probes: receive"),
            }
        }
    }
}

fn taken_port(port: u16, ip: IpAddr) -> String {
    format!(
        "-probe-port {port}: another program has that UDP port of {ip}: the other nodes' probes are not answered"
    )
}

/// Binds the port of the probes, or any if another program has it: then this node can still ask.
fn bind(ip: IpAddr, port: u16) -> io::Result<Open> {
    let (socket, answers) = match std::net::UdpSocket::bind((ip, port)) {
        Ok(socket) => (socket, true),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            (std::net::UdpSocket::bind((ip, 0))?, false)
        }
        Err(error) => return Err(error),
    };
    socket.set_nonblocking(true)?;
    datagram::never_fragment(&socket, Family::of(&ip))?;
    Ok(Open {
        ip,
        socket: UdpSocket::from_std(socket),
        answers,
    })
}
