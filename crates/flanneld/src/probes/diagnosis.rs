//! A closer look at a node that does not answer: pings and a probe past the tunnel; pings, a probe without a checksum
//! and an ordinary one through it. It takes a few seconds, with sockets of its own.
//!
//! For a node that was never heard, such as one of upstream's, it begins with half of that, which is repeated once: a
//! cluster may have thousands of them.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use dataplane::datagram;
use dataplane::datagram::reports::{self, Fate, Report};
use model::{Dual, Family};
use socket2::{Domain, Protocol, Socket, Type};

use super::mesh::{Case, View};
use super::packet::{self, Datagram, Wish};
use super::verdict::{Evidence, Filter, Underlay};

/// Steps, one a second, after which what is missing counts as lost. A neighbour that does not exist is reported after
/// three seconds.
const STEPS: u8 = 4;
/// Steps after which nothing more is waited for if all is known.
const FEWEST: u8 = 2;

/// A closer look under way.
pub(super) struct Diagnosis {
    pub(super) case: Case,
    nonce: u64,
    port: u16,
    /// Where packets through the tunnel go from and to.
    through: Option<(IpAddr, IpAddr)>,
    /// Probes go through the tunnel, too, and everything is sent every second.
    whole: bool,
    steps: u8,
    underlay: Option<UdpSocket>,
    unchecked: Option<UdpSocket>,
    ordinary: Option<UdpSocket>,
    underlay_ping: Option<Ping>,
    overlay_ping: Option<Ping>,
    evidence: Evidence,
    /// What the other node says that it has received.
    pub(super) seen: Option<u16>,
    /// What rejects packets past the tunnel.
    pub(super) filter: Option<Filter>,
    /// Where packets past the tunnel leave from.
    own: Option<IpAddr>,
}

impl Diagnosis {
    /// Sends the first packets.
    pub(super) fn start(case: Case, view: &View, port: u16, nonce: u64) -> Diagnosis {
        let own = |ips: &Dual<IpAddr>| ips.get(case.family).copied();
        let past = own(&view.underlay).zip(case.public_ip);
        let through = own(&view.overlay).zip(case.overlay);
        let connect = |(from, to): (IpAddr, IpAddr)| connected(from, to, port).ok();
        let ping = |(from, to): (IpAddr, IpAddr)| Ping::new(from, to, nonce).ok();
        let mut diagnosis = Diagnosis {
            case,
            nonce,
            port,
            through,
            whole: false,
            steps: 0,
            underlay: past.and_then(connect),
            unchecked: None,
            ordinary: None,
            underlay_ping: past.and_then(ping),
            overlay_ping: through.and_then(ping),
            evidence: Evidence::default(),
            seen: None,
            filter: None,
            own: own(&view.underlay),
        };
        diagnosis.evidence.underlay_ping = diagnosis.underlay_ping.as_ref().map(|_| false);
        diagnosis.evidence.overlay_ping = diagnosis.overlay_ping.as_ref().map(|_| false);
        if case.heard {
            diagnosis.look_closer();
        }
        diagnosis.send();
        diagnosis
    }

    /// Has probes sent through the tunnel, too.
    fn look_closer(&mut self) {
        let connect = |(from, to): (IpAddr, IpAddr)| connected(from, to, self.port).ok();
        self.ordinary = self.through.and_then(connect);
        self.unchecked = self.through.and_then(connect).filter(|socket| {
            self.case.family == Family::V4 && datagram::omit_checksum(socket, true).is_ok()
        });
        self.whole = true;
        self.steps = 0;
    }

    /// Hosts report few rejected packets, about one a second: what is not known yet goes first.
    fn send(&mut self) {
        if self.evidence.underlay == Underlay::Silent {
            self.send_past();
            self.ping_past();
        } else {
            self.ping_past();
            self.send_past();
        }
        if let Some(ping) = &self.overlay_ping {
            // What cannot be sent is not answered.
            let _ = ping.send();
        }
        if let Some(socket) = &self.unchecked {
            let wish = Wish {
                unchecked: true,
                ..Wish::default()
            };
            let _ = socket.send(&packet::request(self.nonce, packet::HEADER, wish));
        }
        // Last: where any of the others passes because the fault is over, this one passes, too.
        if let Some(socket) = &self.ordinary {
            let _ = socket.send(&packet::request(
                self.nonce,
                packet::HEADER,
                Wish::default(),
            ));
        }
    }

    fn send_past(&mut self) {
        let Some(socket) = &self.underlay else { return };
        let request = packet::request(self.nonce, packet::HEADER, Wish::default());
        match socket.send(&request) {
            Err(error) if is_own_firewall(&error) => self.note_own_filter(),
            // An error is what the packet before has met.
            Err(error) => {
                self.evidence.underlay = met(&error).unwrap_or(self.evidence.underlay);
            }
            Ok(_) => {}
        }
    }

    fn ping_past(&mut self) {
        if let Some(Err(error)) = self.underlay_ping.as_ref().map(Ping::send)
            && is_own_firewall(&error)
        {
            self.note_own_filter();
            self.evidence.pings_rejected = true;
        }
    }

    /// Takes in what has arrived, once a second. Returns the evidence when it is complete.
    pub(super) fn step(&mut self) -> Option<Evidence> {
        self.steps += 1;
        if !self.whole && !self.steps.is_multiple_of(2) {
            return None;
        }
        self.receive();
        self.evidence.is_filtered = self.filter.is_some();
        let e = &self.evidence;
        let known = e.underlay != Underlay::Silent && e.underlay_ping != Some(false);
        let through = e.overlay_ping != Some(false) || e.underlay == Underlay::Answered;
        if e.answered {
            return Some(self.evidence);
        }
        // What was not heard before can be: something keeps its probes away.
        let answers = e.underlay == Underlay::Answered || e.overlay_ping == Some(true);
        if !self.whole && answers {
            self.look_closer();
            self.send();
            return None;
        }
        if self.steps >= STEPS || (self.steps >= FEWEST && known && through) {
            return Some(self.evidence);
        }
        self.send();
        None
    }

    /// Takes in what other hosts report about the packets.
    fn hear(&mut self) {
        let all = |socket: &UdpSocket| -> Vec<Report> {
            std::iter::from_fn(|| reports::next(socket))
                .take(16)
                .collect()
        };
        for report in self.underlay.as_ref().map(all).unwrap_or_default() {
            // The host itself says that the port is closed whether or not it has a firewall.
            if report.fate != Fate::PortClosed || Some(report.by) != self.case.public_ip {
                self.note_filter(&report);
            }
        }
        let underlay_ping = self.underlay_ping.as_ref();
        for report in underlay_ping
            .map(|ping| all(&ping.socket))
            .unwrap_or_default()
        {
            let is_firewall = self.note_filter(&report);
            self.evidence.pings_rejected |= is_firewall && self.is_quoted(&report);
        }
        // What the node rejects has passed the tunnel.
        let overlay_ping = self.overlay_ping.as_ref().map(|ping| &ping.socket);
        let through = [
            self.unchecked.as_ref(),
            self.ordinary.as_ref(),
            overlay_ping,
        ];
        let mut heard = through.into_iter().flatten().flat_map(all);
        if heard.any(|report| Some(report.by) == self.case.overlay && self.is_quoted(&report)) {
            self.evidence.overlay_ping = Some(true);
        }
    }

    /// Returns whether a report quotes the number, which nobody can guess who has not received the packet.
    fn is_quoted(&self, report: &Report) -> bool {
        let number = self.nonce.to_be_bytes();
        let mut parts = report.quoted.windows(number.len());
        parts.any(|part| part == number)
    }

    fn note_own_filter(&mut self) {
        self.filter = self.own.map(|by| Filter { by, is_own: true });
    }

    /// Records who rejects packets, if that is what is reported. Returns whether it is.
    fn note_filter(&mut self, report: &Report) -> bool {
        // This host and routers say so of hosts that do not exist; a host does not say so of itself.
        let is_firewall =
            report.fate != Fate::Unreachable || Some(report.by) == self.case.public_ip;
        if is_firewall {
            let is_own = Some(report.by) == self.own;
            let by = report.by;
            self.filter.get_or_insert(Filter { by, is_own });
        }
        is_firewall
    }

    fn receive(&mut self) {
        if let Some(socket) = &self.underlay {
            match answer(socket, self.nonce) {
                Some(Ok(seen)) => {
                    self.evidence.underlay = Underlay::Answered;
                    self.seen = Some(seen);
                    // Two of these probes went through the tunnel.
                    self.evidence.arrived |= seen == packet::low(self.nonce);
                }
                Some(Err(error)) if self.evidence.underlay != Underlay::Answered => {
                    self.evidence.underlay = met(&error).unwrap_or(self.evidence.underlay);
                }
                _ => {}
            }
        }
        if let Some(socket) = &self.unchecked {
            self.evidence.unchecked |= matches!(answer(socket, self.nonce), Some(Ok(_)));
        }
        for (ping, answered) in [
            (&self.underlay_ping, &mut self.evidence.underlay_ping),
            (&self.overlay_ping, &mut self.evidence.overlay_ping),
        ] {
            if ping.as_ref().is_some_and(Ping::is_answered) {
                *answered = Some(true);
            }
        }
        self.hear();
        if let Some(socket) = &self.ordinary {
            self.evidence.answered |= matches!(answer(socket, self.nonce), Some(Ok(_)));
        }
    }
}

/// What an error of a connected socket says of the other host.
fn met(error: &io::Error) -> Option<Underlay> {
    match error.kind() {
        ErrorKind::ConnectionRefused => Some(Underlay::Refused),
        // The last one is what IPv6 makes of a firewall's report.
        ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::NetworkDown
        | ErrorKind::PermissionDenied => Some(Underlay::Unreachable),
        _ => None,
    }
}

/// Returns whether this host's own firewall has dropped what was to be sent.
fn is_own_firewall(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPERM)
}

/// Returns what the last answer says the other node has seen, or what a request has met; `None` if nothing has arrived.
fn answer(socket: &UdpSocket, nonce: u64) -> Option<io::Result<u16>> {
    let mut buffer = [0; 64];
    let mut last = None;
    // Only the other host's port is heard; it cannot fill this for ever.
    for _ in 0..16 {
        match socket.recv(&mut buffer) {
            Ok(len) => {
                if let Some(Datagram::Answer {
                    nonce: number,
                    seen,
                    ..
                }) = packet::parse(buffer.get(..len)?)
                    && number == nonce
                {
                    last = Some(Ok(seen));
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => last = last.filter(Result::is_ok).or(Some(Err(error))),
        }
    }
    last
}

fn connected(from: IpAddr, to: IpAddr, port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((from, 0))?;
    socket.connect((to, port))?;
    socket.set_nonblocking(true)?;
    reports::keep(&socket, Family::of(&to))?;
    Ok(socket)
}

/// Pings to one address.
struct Ping {
    socket: UdpSocket,
    to: IpAddr,
    nonce: u64,
}

impl Ping {
    /// # Errors
    /// Pings are not allowed here, or there is no route.
    fn new(from: IpAddr, to: IpAddr, nonce: u64) -> io::Result<Ping> {
        let (domain, protocol) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        // The kernel lets groups of users ping without a privilege; raw sockets need one.
        let socket = Socket::new(domain, Type::DGRAM, Some(protocol))
            .or_else(|_| Socket::new(domain, Type::RAW, Some(protocol)))?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        socket.connect(&SocketAddr::new(to, 0).into())?;
        socket.set_nonblocking(true)?;
        reports::keep(&socket, Family::of(&to))?;
        Ok(Ping {
            socket: UdpSocket::from(OwnedFd::from(socket)),
            to,
            nonce,
        })
    }

    fn send(&self) -> io::Result<()> {
        let echo = if self.to.is_ipv4() { 8 } else { 128 };
        let mut bytes = vec![echo, 0, 0, 0];
        bytes.extend((self.nonce as u32).to_be_bytes());
        bytes.extend(self.nonce.to_be_bytes());
        if self.to.is_ipv4() {
            let sum = checksum(&bytes).to_be_bytes();
            bytes.splice(2..4, sum);
        }
        self.socket.send(&bytes).map(drop)
    }

    fn is_answered(&self) -> bool {
        let kind = if self.to.is_ipv4() { 0 } else { 129 };
        let mut buffer = [0; 128];
        for _ in 0..64 {
            let len = match self.socket.recv(&mut buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                // What an earlier ping has met.
                Err(_) => continue,
            };
            let bytes = buffer.get(..len).unwrap_or_default();
            // 8 bytes of ICMP, then the number; before them, on a raw socket, the IP header.
            let at = len.checked_sub(16).and_then(|at| bytes.get(at));
            if at == Some(&kind) && bytes.ends_with(&self.nonce.to_be_bytes()) {
                return true;
            }
        }
        false
    }
}

/// The Internet checksum.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let [high, low] = [pair.first(), pair.get(1)].map(|b| b.copied().unwrap_or_default());
        u32::from(u16::from_be_bytes([high, low]))
    });
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_checked_message_is_zero() {
        let mut bytes = vec![8, 0, 0, 0, 0xff, 0xfe, 1, 2, 3, 4, 5, 6];
        let sum = checksum(&bytes).to_be_bytes();
        bytes.splice(2..4, sum);
        assert_eq!(checksum(&bytes), 0);
    }

    #[test]
    fn this_host_refuses_a_closed_port() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let taken = UdpSocket::bind((ip, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        drop(taken);
        let view = View {
            underlay: Dual {
                v4: Some(ip),
                v6: None,
            },
            ..View::default()
        };
        let case = Case {
            key: "10.1.2.0-24".parse().unwrap(),
            family: Family::V4,
            public_ip: Some(ip),
            overlay: None,
            heard: true,
        };
        let mut diagnosis = Diagnosis::start(case, &view, port, 7);
        let evidence = (0..STEPS).find_map(|_| diagnosis.step()).unwrap();
        assert_eq!(evidence.underlay, Underlay::Refused);
        assert_ne!(evidence.underlay_ping, Some(false));
        assert_eq!(evidence.overlay_ping, None);
    }

    #[test]
    fn a_node_that_answers_again_is_noticed() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let node = UdpSocket::bind((ip, 0)).unwrap();
        let port = node.local_addr().unwrap().port();
        let view = View {
            overlay: Dual {
                v4: Some(ip),
                v6: None,
            },
            ..View::default()
        };
        let case = Case {
            key: "10.1.2.0-24".parse().unwrap(),
            family: Family::V4,
            public_ip: None,
            overlay: Some(ip),
            heard: true,
        };
        let mut diagnosis = Diagnosis::start(case, &view, port, 7);
        // One without a checksum and one with it.
        for _ in 0..2 {
            let mut buffer = [0; 64];
            let (len, from) = node.recv_from(&mut buffer).unwrap();
            let Some(Datagram::Request { nonce, wish, .. }) = packet::parse(&buffer[..len]) else {
                panic!("{buffer:?}")
            };
            let answer = packet::answer(nonce, wish, len, true, 0);
            node.send_to(&answer, from).unwrap();
        }
        let ordinary = diagnosis.ordinary.as_ref().unwrap();
        ordinary.set_nonblocking(false).unwrap();
        ordinary.peek(&mut [0; 64]).unwrap();
        ordinary.set_nonblocking(true).unwrap();
        let evidence = diagnosis.step().unwrap();
        assert!(evidence.answered && evidence.unchecked, "{evidence:?}");
    }
}
