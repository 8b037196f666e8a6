//! The sockets of one test: sends probes at a pace that nodes answer, and tallies what comes back.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dataplane::datagram;
use flanneld::probes::packet::{self, Datagram, HEADER, Wish};
use flanneld::report::MeshReport;
use model::Family;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Link;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long answers are waited for between two probes.
const PACE: Duration = Duration::from_millis(2);

/// The least time between two probes of one node, on average: it answers 20 a second, its daemon's own probes among
/// them.
const EACH_NODE: Duration = Duration::from_millis(80);

/// Through the tunnel or past it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    Tunnel,
    Underlay,
}

/// What to send, and where.
pub(super) struct Probe {
    node: usize,
    family: Family,
    way: Way,
    to: IpAddr,
    len: usize,
    unchecked: bool,
}

impl Probe {
    pub(super) fn small(link: &Link) -> Probe {
        Probe {
            node: link.node,
            family: link.family,
            way: link.way,
            to: link.to,
            len: HEADER,
            unchecked: false,
        }
    }

    /// A packet of `size` bytes, IP header included.
    pub(super) fn full(link: &Link, size: usize) -> Probe {
        Probe {
            len: size.saturating_sub(super::headers(link.family)).max(HEADER),
            ..Probe::small(link)
        }
    }

    pub(super) fn unchecked(link: &Link) -> Probe {
        Probe {
            unchecked: true,
            ..Probe::small(link)
        }
    }
}

/// What came of several probes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) sent: u32,
    pub(super) answered: u32,
    pub(super) least: Option<Duration>,
}

/// The sockets.
pub(super) struct Session {
    port: u16,
    sockets: Vec<(Family, Way, UdpSocket)>,
}

impl Session {
    /// Opens a socket on each address that this node's own probes come from: others answer only those.
    ///
    /// # Errors
    /// An address is not this host's.
    pub(super) fn open(mesh: &MeshReport) -> Result<Session> {
        let tunnel = mesh.overlay.iter().map(|ip| (Way::Tunnel, *ip));
        let past = mesh.underlay.iter().map(|ip| (Way::Underlay, *ip));
        let mut sockets = Vec::new();
        for (way, ip) in tunnel.chain(past) {
            let bound = UdpSocket::bind((ip, 0));
            let socket = bound.with_context(|| {
                format!(
                    "cannot send from {ip}: run this command on the node, in the host's network"
                )
            })?;
            let family = Family::of(&ip);
            socket.set_nonblocking(true)?;
            datagram::never_fragment(&socket, family)?;
            sockets.push((family, way, socket));
        }
        Ok(Session {
            port: mesh.port,
            sockets,
        })
    }

    /// Sends each probe `count` times, in rounds: as slowly as the nodes answer. Returns what came of each.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn run(&mut self, probes: &[Probe], count: u32) -> Result<Vec<Tally>> {
        let mut tallies = vec![Tally::default(); probes.len()];
        let least = least_round(probes);
        for _ in 0..count {
            let end = Instant::now() + least;
            let mut waiting: HashMap<u64, (usize, Instant)> = HashMap::new();
            for (at, probe) in probes.iter().enumerate() {
                let nonce = fastrand::u64(..);
                waiting.insert(nonce, (at, Instant::now()));
                if let Some(tally) = tallies.get_mut(at) {
                    tally.sent += 1;
                }
                self.send(probe, nonce)?;
                self.receive(probes, &mut waiting, &mut tallies, PACE)?;
            }
            let until = Instant::now() + PATIENCE;
            while !waiting.is_empty() && Instant::now() < until {
                let left = until.saturating_duration_since(Instant::now());
                self.receive(probes, &mut waiting, &mut tallies, left)?;
            }
            while let Some(left) = end.checked_duration_since(Instant::now())
                && !left.is_zero()
            {
                self.receive(probes, &mut waiting, &mut tallies, left)?;
            }
        }
        Ok(tallies)
    }

    fn send(&self, probe: &Probe, nonce: u64) -> Result<()> {
        let mut all = self.sockets.iter();
        let found = all.find(|(family, way, _)| (*family, *way) == (probe.family, probe.way));
        let Some((_, _, socket)) = found else {
            return Ok(());
        };
        let wish = Wish {
            unchecked: probe.unchecked,
            ..Wish::default()
        };
        let bytes = packet::request(nonce, probe.len, wish);
        if probe.unchecked {
            datagram::omit_checksum(socket, true)?;
        }
        // What this host cannot send is not answered: the tally shows it.
        let _ = socket.send_to(&bytes, SocketAddr::new(probe.to, self.port));
        if probe.unchecked {
            datagram::omit_checksum(socket, false)?;
        }
        Ok(())
    }

    /// Takes in answers for so long, or until some have arrived.
    fn receive(
        &self,
        probes: &[Probe],
        waiting: &mut HashMap<u64, (usize, Instant)>,
        tallies: &mut [Tally],
        limit: Duration,
    ) -> Result<()> {
        let all = self.sockets.iter();
        let mut fds: Vec<PollFd<'_>> = all
            .map(|(_, _, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
            .collect();
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
        match poll(&mut fds, limit) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut buffer = vec![0; 65_536];
        for (_, _, socket) in &self.sockets {
            loop {
                let (len, from) = match socket.recv_from(&mut buffer) {
                    Ok(received) => received,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => continue,
                };
                let read = buffer.get(..len).and_then(packet::parse);
                let Some(Datagram::Answer {
                    nonce,
                    intact: true,
                    ..
                }) = read
                else {
                    continue;
                };
                let known = waiting.get(&nonce).copied();
                let Some((at, sent)) = known else { continue };
                if probes.get(at).is_none_or(|probe| probe.to != from.ip()) {
                    continue;
                }
                waiting.remove(&nonce);
                if let Some(tally) = tallies.get_mut(at) {
                    let rtt = sent.elapsed();
                    tally.answered += 1;
                    tally.least = Some(tally.least.map_or(rtt, |least| least.min(rtt)));
                }
            }
        }
        Ok(())
    }
}

/// Returns how long one round takes at least, so that no node gets more than it answers.
fn least_round(probes: &[Probe]) -> Duration {
    let mut counts: HashMap<usize, u32> = HashMap::new();
    for probe in probes {
        *counts.entry(probe.node).or_default() += 1;
    }
    EACH_NODE * counts.into_values().max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_as_slow_as_the_node_with_most_ways_answers() {
        let probe = |node, way| Probe {
            node,
            family: Family::V4,
            way,
            to: IpAddr::from([127, 0, 0, 1]),
            len: HEADER,
            unchecked: false,
        };
        assert_eq!(least_round(&[]), Duration::ZERO);
        let probes = [
            probe(0, Way::Tunnel),
            probe(1, Way::Tunnel),
            probe(1, Way::Underlay),
        ];
        assert_eq!(least_round(&probes), Duration::from_millis(160));
    }
}
