//! A few probes of one node, in one family.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use flanneld::report::{MeshReport, PeerReport};
use model::Family;

use super::session::{Probe, Session, Way};
use super::{Link, links};

/// Probes of each kind.
const COUNT: u32 = 3;

/// What the probes have shown.
pub(crate) struct Quick {
    /// The way that containers' packets go is a tunnel.
    pub(crate) is_tunnel: bool,
    /// Time of the fastest answer by that way; `None` if there was none.
    pub(crate) rtt: Option<Duration>,
    /// Probes by that way that were lost, of so many.
    pub(crate) lost: (u32, u32),
    /// Bytes of packets of full size, if small ones arrive and none of these does.
    pub(crate) full_lost: Option<u32>,
    /// Ordinary ones are lost, those without a UDP checksum arrive.
    pub(crate) is_checksum: bool,
    /// Where it answers past the tunnel.
    pub(crate) public: Option<IpAddr>,
}

/// Probes a node; returns `None` if there is no way to it in this family.
///
/// # Errors
/// An address is not this host's.
pub(crate) fn probe(mesh: &MeshReport, peer: &PeerReport, family: Family) -> Result<Option<Quick>> {
    let only = |ips: &[IpAddr]| {
        let ips = ips.iter().copied();
        ips.filter(|ip| Family::of(ip) == family).collect()
    };
    let mesh = &MeshReport {
        underlay: only(&mesh.underlay),
        overlay: only(&mesh.overlay),
        ..mesh.clone()
    };
    let links = links(0, peer, mesh);
    let links: Vec<&Link> = links.iter().filter(|link| link.family == family).collect();
    // The tunnel comes first, where there is one.
    let Some(main) = links.first() else {
        return Ok(None);
    };
    let mut session = Session::open(mesh)?;
    let small: Vec<Probe> = links.iter().map(|link| Probe::small(link)).collect();
    let tallies = session.run(&small, COUNT)?;
    let Some(first) = tallies.first().copied() else {
        return Ok(None);
    };
    let mut answers = |probe: Probe| -> Result<bool> {
        let tallies = session.run(&[probe], COUNT)?;
        Ok(tallies.iter().any(|tally| tally.answered > 0))
    };
    let is_clean = first.answered == first.sent;
    let full = mesh.full_size;
    let full_lost = is_clean && !answers(Probe::full(main, full as usize))?;
    let is_tunnel = main.way == Way::Tunnel;
    let without = is_tunnel && family == Family::V4 && first.answered == 0;
    let is_checksum = without && answers(Probe::unchecked(main))?;
    let mut past = links.iter().zip(&tallies);
    let past = past.find(|(link, tally)| link.way == Way::Underlay && tally.answered > 0);
    Ok(Some(Quick {
        is_tunnel,
        rtt: first.least,
        lost: (first.sent - first.answered, first.sent),
        full_lost: full_lost.then_some(full),
        is_checksum,
        public: past.map(|(link, _)| link.to),
    }))
}
