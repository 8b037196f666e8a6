//! The other nodes: whether packets of full size reach them, and whether the tunnel carries more
//! than pings.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use backend::vxlan;
use model::subnet::first;
use model::{BackendType, Family, IfName, NetConfig, SubnetKey};
use store::ListedLease;

use super::checksum::Watch;
use super::icmp::{self, Echo, Pinger};
use super::probe;
use super::report::Report;

const ABOUT: &str = "peers";
const PATIENCE: Duration = Duration::from_millis(500);
const TRIES: u16 = 3;
/// As large as ping's own.
const SMALL: usize = 84;
/// Ports of which one may be let through: any answer will do, a refusal too.
const PORTS: [u16; 3] = [22, 10_250, 8_473];

/// What is asked of every peer.
pub(crate) struct Question<'a> {
    pub(crate) config: &'a NetConfig,
    /// The MTU that containers are told.
    pub(crate) mtu: u32,
    /// Our tunnel devices that are there.
    pub(crate) devices: &'a [IfName],
    /// At most so many peers.
    pub(crate) most: usize,
}

/// One way to one peer.
struct Way {
    key: SubnetKey,
    family: Family,
    /// Its public address.
    underlay: IpAddr,
    /// Its address in the flannel network, where there is a tunnel to it.
    overlay: Option<IpAddr>,
}

/// What came of it.
struct Outcome {
    way: Way,
    small: Result<Echo, String>,
    full: Result<Echo, String>,
    /// The largest packet that gets through, if not the full one.
    largest: Option<usize>,
    /// Ping and TCP through the tunnel.
    overlay: Option<(bool, bool)>,
}

impl Question<'_> {
    /// Bytes of the largest packet between two nodes.
    fn size(&self) -> usize {
        let overhead = match self.config.backend.kind {
            BackendType::Vxlan => self.config.families().map(vxlan::overhead).max(),
            _ => None,
        };
        (self.mtu + overhead.unwrap_or(0)) as usize
    }

    fn ways(&self, peers: &[&ListedLease]) -> Vec<Way> {
        let step = peers.len().div_ceil(self.most.max(1)).max(1);
        let mut ways = Vec::new();
        for peer in peers.iter().step_by(step) {
            let Ok(attrs) = &peer.attrs else { continue };
            for family in self.config.families() {
                let Some(underlay) = attrs.public_ip.get(family) else {
                    continue;
                };
                let tunnel = self.config.backend.kind == BackendType::Vxlan
                    && attrs.backend_type == Some(BackendType::Vxlan)
                    && !self.devices.is_empty();
                let net = peer.key.nets().get(family).filter(|_| tunnel);
                ways.push(Way {
                    key: peer.key,
                    family,
                    underlay: *underlay,
                    overlay: net.map(|net| first(net).addr()),
                });
            }
        }
        ways
    }
}

/// Sends probes to some of `peers`.
pub(crate) fn check(report: &mut Report, question: &Question<'_>, peers: &[&ListedLease]) {
    let ways = question.ways(peers);
    if ways.is_empty() {
        return report.ok(ABOUT, "there are no other nodes yet");
    }
    if !icmp::allowed() {
        return report.skip(
            ABOUT,
            "the other nodes cannot be probed: sending pings was denied (CAP_NET_RAW is missing)",
            "run this command as root, in a container with CAP_NET_RAW",
        );
    }
    let watches = question
        .devices
        .iter()
        .filter_map(|name| Watch::on(name).ok());
    let watches: Vec<Watch> = watches.collect();
    let size = question.size();
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let asked: Vec<_> = ways
            .into_iter()
            .map(|way| scope.spawn(move || ask(way, size)))
            .collect();
        asked
            .into_iter()
            .filter_map(|one| one.join().ok())
            .collect()
    });
    for outcome in &outcomes {
        tell(report, outcome, size);
    }
    let mut tallies = BTreeMap::new();
    watches.iter().for_each(|watch| watch.count(&mut tallies));
    if !watches.is_empty() {
        probe::tell_tallies(report, &tallies);
    }
}

fn ask(way: Way, size: usize) -> Outcome {
    let ping = |to, size| {
        let pinger = Pinger {
            to,
            patience: PATIENCE,
            tries: TRIES,
        };
        pinger.ping(size).map_err(|e| e.to_string())
    };
    let small = ping(way.underlay, SMALL);
    let full = match &small {
        Ok(Echo::Answered) => ping(way.underlay, size),
        other => other.clone(),
    };
    let largest = (small == Ok(Echo::Answered) && full == Ok(Echo::Silent)).then(|| {
        let (mut good, mut bad) = (SMALL, size);
        while bad - good > 1 {
            let middle = good.midpoint(bad);
            match ping(way.underlay, middle) {
                Ok(Echo::Answered) => good = middle,
                _ => bad = middle,
            }
        }
        good
    });
    let overlay = way.overlay.map(|to| {
        let answers = ping(to, SMALL) == Ok(Echo::Answered);
        (answers, answers && tcp_answers(to))
    });
    Outcome {
        way,
        small,
        full,
        largest,
        overlay,
    }
}

/// Whether TCP hears anything from there.
fn tcp_answers(to: IpAddr) -> bool {
    let heard =
        |port: u16| match TcpStream::connect_timeout(&SocketAddr::new(to, port), PATIENCE * 4) {
            Ok(_) => true,
            Err(e) => !matches!(e.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock),
        };
    thread::scope(|scope| {
        let tries = PORTS.map(|port| scope.spawn(move || heard(port)));
        tries.into_iter().any(|one| one.join().unwrap_or(false))
    })
}

fn tell(report: &mut Report, outcome: &Outcome, size: usize) {
    let Way {
        key,
        family,
        underlay,
        overlay,
    } = &outcome.way;
    let who = format!("{key} at {underlay}");
    match (&outcome.small, &outcome.full, outcome.largest) {
        (Err(why), _, _) => report.fail(
            ABOUT,
            format!("{who}: {why}"),
            "is there a route to that address? (ip route get)",
        ),
        (Ok(Echo::Answered), Ok(Echo::Answered), _) => {
            report.ok(ABOUT, format!("{who}: packets of {size} bytes arrive"));
        }
        (Ok(Echo::Answered), _, Some(largest)) => report.fail(
            "mtu",
            format!("{who}: packets of {size} bytes do not arrive, only up to {largest}: large transfers hang"),
            format!("\"MTU\": {largest} in Backend (flannelctl config set), restart flanneld, then the containers; or mend the MTU on the way"),
        ),
        (Ok(Echo::Answered), _, None) => report.fail(
            "mtu",
            format!("{who}: this host cannot send packets of {size} bytes there"),
            "a route or device on the way has a smaller MTU: \"MTU\" in Backend must not be above it",
        ),
        _ => report.warn(
            ABOUT,
            format!("{who}: no answer to pings"),
            "is the node up? If pings are not let through there, this tells nothing",
        ),
    }
    let Some(overlay) = overlay else { return };
    match outcome.overlay {
        Some((true, true)) => report.ok(ABOUT, format!("{overlay}: answers pings and TCP through the tunnel")),
        Some((true, false)) => report.warn(
            probe::ABOUT,
            format!("{overlay}: pings pass through the tunnel, TCP gets no answer: either checksums arrive wrong, or a firewall there drops it"),
            format!("`flannelctl check --answer` there and `flannelctl check --probe {overlay}` here tell which; if it is the checksums: {}", probe::CURE),
        ),
        Some((false, _)) if outcome.small == Ok(Echo::Answered) => report.fail(
            ABOUT,
            format!("{overlay}: no answer through the tunnel, though {underlay} answers"),
            format!("let the tunnel's UDP port (8472) through between the nodes ({family}); does flanneld run there?"),
        ),
        _ => {}
    }
}
