//! `flannelctl connectivity`: probes from this node to every other one, through the tunnel and past it, in both families,
//! small and of full size; a matrix at the end. The other nodes' flanneld answers, so nothing has to be installed. With
//! `--kubernetes`, between pods that it makes on all nodes ([`cluster`]).

pub(crate) mod agent;
mod cluster;
mod junit;
mod matrix;
mod namespace;
mod objects;
mod pairs;
pub(crate) mod quick;
mod session;
mod signals;
mod views;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use flanneld::report::{MeshReport, NodeReport, PeerReport, PeersReport, ProbeState};
use model::Family;
use model::subnet::first;
use serde::{Deserialize, Serialize};

use crate::kube_args::{KubeArgs, WHOLE_CLUSTERS};
use crate::runtime::wait_for;
use crate::status_socket::{self, SocketArgs};
use crate::{output, status};
use session::{Probe, Session, Way};

/// Bytes of the IP and UDP headers.
const HEADERS: [(Family, usize); 2] = [(Family::V4, 28), (Family::V6, 48)];

/// Probes of full size that each node gets, in each family.
const FULL: u32 = 3;

/// Arguments of `flannelctl connectivity`.
#[derive(Args)]
pub(crate) struct ConnectivityArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// How many small probes each node gets in each family, through the tunnel and past it
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=30))]
    count: u32,
    #[command(flatten)]
    kube: KubeArgs,
    /// With --kubernetes: how many pairs of nodes are tested; if there are more, so many at random
    #[arg(long, value_name = "N", default_value_t = 200)]
    pairs: usize,
    /// All pairs: with --kubernetes however many; else what the probes of every node show, which needs
    /// -health-page=all on the nodes
    #[arg(long, conflicts_with = "pairs")]
    all: bool,
    /// With --all: the port of the nodes' health servers [default: this node's]
    #[arg(long, value_name = "PORT", requires = "all")]
    health_port: Option<u16>,
    /// With --kubernetes: measure TCP throughput too, from each node to one other, one after the other
    #[arg(long)]
    throughput: bool,
    /// With --kubernetes: the image of the test's pods [default: that of flannel's pod on the node]
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// With --kubernetes: how long pods may take to start, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=900))]
    start_limit: u64,
    /// How to write the result
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Write the result to this file, as JUnit's XML, too
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Only nodes whose subnet or public IP begins with this; with --kubernetes, whose name does
    #[arg(value_name = "PREFIX")]
    only: Option<String>,
}

#[derive(Clone, Copy, Eq, PartialEq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One JSON object
    Json,
}

/// Everything that was found.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    /// This node's subnets.
    from: Vec<String>,
    /// Bytes of the packets of full size.
    full_size: u32,
    nodes: Vec<NodeFound>,
}

/// What was found of one node.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeFound {
    subnets: Vec<String>,
    public_ips: Vec<IpAddr>,
    checks: Vec<Check>,
}

/// One family and one way to a node.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Check {
    /// Such as `IPv4 tunnel`.
    name: String,
    result: Outcome,
    sent: u32,
    answered: u32,
    /// Microseconds until the fastest answer.
    rtt_micros: Option<u64>,
    /// Megabits a second, where throughput was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mbits: Option<u64>,
    /// What is wrong.
    text: Option<String>,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Outcome {
    /// Every probe was answered.
    Good,
    /// Some were.
    Loss,
    /// None was.
    Fail,
    /// The node answers no probes at all.
    Skip,
}

/// Probes all nodes and prints what was found.
///
/// # Errors
/// The daemon does not answer, or probes are off.
pub(crate) fn run(args: &ConnectivityArgs) -> Result<ExitCode> {
    if args.kube.is_given()? && WHOLE_CLUSTERS {
        return wait_for(cluster::run(args));
    }
    if args.all {
        return views::run(args);
    }
    let socket = &args.socket.socket;
    let node: NodeReport = status_socket::get(socket, "/v1/status")?;
    let Some(mesh) = node.mesh else {
        bail!(
            "probes are turned off on this node (-probe-port=0), or its flanneld is older than this program"
        );
    };
    let mut report: PeersReport = status_socket::get(socket, "/v1/peers")?;
    let known = mesh.reachable + mesh.failing + mesh.silent + mesh.unknown;
    if report.peers.is_empty() && known > 0 {
        bail!("flanneld is too busy to list the other nodes: try again");
    }
    if let Some(prefix) = &args.only {
        report.peers.retain(|peer| begins(peer, prefix));
        if report.peers.is_empty() {
            bail!("{}", no_such_node(prefix));
        }
    }
    let from = node.network.map(|network| network.subnets);
    let found = Found {
        from: from.unwrap_or_default(),
        full_size: mesh.full_size,
        nodes: probe_all(&mesh, &report.peers, args.count)?,
    };
    match args.output {
        Format::Json => output::line(&serde_json::to_string_pretty(&found)?),
        Format::Text => lines(&found).iter().for_each(|line| output::line(line)),
    }
    if let Some(file) = &args.junit {
        let suite = |node: &NodeFound| node.subnets.join(",");
        let nodes = found.nodes.iter();
        let suites: Vec<_> = nodes.map(|node| (suite(node), &node.checks[..])).collect();
        junit::write(file, &suites)?;
    }
    let mut checks = found.nodes.iter().flat_map(|node| &node.checks);
    Ok(if checks.any(Check::is_bad) {
        status::no()
    } else {
        ExitCode::SUCCESS
    })
}

fn no_such_node(prefix: &str) -> String {
    format!(
        "{prefix}: no other node's subnet or public IP begins with this (flannelctl peers lists them)"
    )
}

fn begins(peer: &PeerReport, prefix: &str) -> bool {
    let ips = peer.public_ips.iter().map(ToString::to_string);
    let mut names = peer.subnets.iter().cloned().chain(ips);
    names.any(|name| name.starts_with(prefix))
}

/// A family of a node, by one way.
struct Link {
    node: usize,
    family: Family,
    way: Way,
    to: IpAddr,
}

/// The links of a node, in the order of the columns.
fn links(node: usize, peer: &PeerReport, mesh: &MeshReport) -> Vec<Link> {
    let mut links = Vec::new();
    for family in Family::ALL {
        let has = |ips: &[IpAddr]| ips.iter().any(|ip| Family::of(ip) == family);
        let nets = peer.subnets.iter().filter_map(|net| net.parse().ok());
        let mut overlay = nets.map(|net: ipnet::IpNet| first(&net.trunc()).addr());
        if has(&mesh.overlay)
            && let Some(to) = overlay.find(|ip| Family::of(ip) == family)
        {
            links.push(Link {
                node,
                family,
                way: Way::Tunnel,
                to,
            });
        }
        let mut public = peer.public_ips.iter().copied();
        if has(&mesh.underlay)
            && let Some(to) = public.find(|ip| Family::of(ip) == family)
        {
            links.push(Link {
                node,
                family,
                way: Way::Underlay,
                to,
            });
        }
    }
    links
}

fn probe_all(mesh: &MeshReport, peers: &[PeerReport], count: u32) -> Result<Vec<NodeFound>> {
    let mut session = Session::open(mesh)?;
    let all = peers.iter().enumerate();
    let links: Vec<Link> = all.flat_map(|(at, peer)| links(at, peer, mesh)).collect();
    if links.is_empty() && !peers.is_empty() {
        bail!(
            "flanneld has no address to probe from yet: try again when flannelctl status says that the node is ready"
        );
    }
    let small: Vec<Probe> = links.iter().map(Probe::small).collect();
    output::progress(&format!(
        "{} nodes: {count} small probes by each of {} ways",
        peers.len(),
        links.len()
    ));
    let tallies = session.run(&small, count)?;
    // The way that containers' packets go.
    let main = |link: &&Link| {
        link.way == Way::Tunnel
            || !links
                .iter()
                .any(|l| (l.node, l.family, l.way) == (link.node, link.family, Way::Tunnel))
    };
    let main: Vec<&Link> = links.iter().filter(main).collect();
    output::progress(&format!(
        "{FULL} probes of {} bytes by each of {} ways",
        mesh.full_size,
        main.len()
    ));
    let full: Vec<Probe> = main
        .iter()
        .map(|link| Probe::full(link, mesh.full_size as usize))
        .collect();
    let full = session.run(&full, FULL)?;
    let silent: Vec<&Link> = links
        .iter()
        .zip(&tallies)
        .filter(|(link, tally)| {
            tally.answered == 0 && link.way == Way::Tunnel && link.family == Family::V4
        })
        .map(|(link, _)| link)
        .collect();
    let unchecked: Vec<Probe> = silent.iter().map(|link| Probe::unchecked(link)).collect();
    let unchecked = if unchecked.is_empty() {
        Vec::new()
    } else {
        output::progress(&format!(
            "{} ways are silent: probes without checksums",
            unchecked.len()
        ));
        session.run(&unchecked, FULL)?
    };
    let mut found: Vec<NodeFound> = peers
        .iter()
        .map(|peer| NodeFound {
            subnets: peer.subnets.clone(),
            public_ips: peer.public_ips.clone(),
            checks: Vec::new(),
        })
        .collect();
    // A node that answers by no way is not known to be broken, unless its flanneld once answered.
    let heard = |node: usize| {
        let mut all = links.iter().zip(&tallies);
        all.any(|(link, tally)| link.node == node && tally.answered > 0)
            || peers
                .get(node)
                .and_then(|peer| peer.probe.as_ref())
                .is_some_and(|probe| probe.state == ProbeState::Failing)
    };
    for (link, tally) in links.iter().zip(&tallies) {
        let way = match link.way {
            Way::Tunnel => "tunnel",
            Way::Underlay => "underlay",
        };
        let without = silent.iter().zip(&unchecked);
        let mut without =
            without.filter(|(other, _)| (other.node, other.to) == (link.node, link.to));
        let wrong_checksums = without.any(|(_, tally)| tally.answered > 0);
        let text = wrong_checksums.then_some("packets without a UDP checksum arrive, with one they do not: -tx-checksum-offload=off on the nodes");
        let check = Check::new(
            format!("{} {way}", link.family),
            tally,
            heard(link.node),
            text,
        );
        if let Some(node) = found.get_mut(link.node) {
            node.checks.push(check);
        }
        let whole = main.iter().zip(&full);
        let mut whole = whole.filter(|(other, _)| std::ptr::eq(**other, link));
        if let Some((_, large)) = whole.next()
            && let Some(node) = found.get_mut(link.node)
        {
            // Where small packets are lost, too, the size is not what is wrong.
            let text = (tally.answered > 0).then_some(
                "packets of full size are lost: large transfers hang; lower \"MTU\" in Backend, or raise that of the way",
            );
            let name = format!("{} full size", link.family);
            node.checks
                .push(Check::new(name, large, heard(link.node), text));
        }
    }
    Ok(found)
}

impl Check {
    fn new(name: String, tally: &session::Tally, heard: bool, text: Option<&str>) -> Check {
        let result = match tally.answered {
            0 if heard => Outcome::Fail,
            0 => Outcome::Skip,
            n if n < tally.sent => Outcome::Loss,
            _ => Outcome::Good,
        };
        let text = match result {
            Outcome::Good => None,
            Outcome::Loss => Some(format!(
                "{} of {} probes were not answered",
                tally.sent - tally.answered,
                tally.sent
            )),
            Outcome::Fail => Some(text.unwrap_or("no probe was answered: flannelctl peers -o wide has the reason").to_owned()),
            Outcome::Skip => Some("the node answers no probes: upstream's flannel, an older version, or UDP of the probes is filtered".to_owned()),
        };
        Check {
            name,
            result,
            sent: tally.sent,
            answered: tally.answered,
            rtt_micros: tally.least.map(|rtt| rtt.as_micros() as u64),
            mbits: None,
            text,
        }
    }

    fn is_bad(&self) -> bool {
        matches!(self.result, Outcome::Fail | Outcome::Loss)
    }

    fn cell(&self) -> String {
        match (self.result, self.rtt_micros) {
            (Outcome::Good, Some(us)) => output::milliseconds(us),
            (Outcome::Good, None) => "ok".to_owned(),
            (Outcome::Loss, _) => {
                // A pod's answer may hold any numbers.
                let lost = u64::from(self.sent.saturating_sub(self.answered));
                format!("{} % lost", lost * 100 / u64::from(self.sent.max(1)))
            }
            (Outcome::Fail, _) => "LOST".to_owned(),
            (Outcome::Skip, _) => "no answer".to_owned(),
        }
    }
}

fn lines(found: &Found) -> Vec<String> {
    let mut columns: Vec<&str> = Vec::new();
    for check in found.nodes.iter().flat_map(|node| &node.checks) {
        if !columns.contains(&check.name.as_str()) {
            columns.push(&check.name);
        }
    }
    let mut head = vec!["NODE".to_owned(), "PUBLIC IP".to_owned()];
    head.extend(columns.iter().map(|name| name.to_uppercase()));
    let mut rows = vec![head];
    for node in &found.nodes {
        let ips: Vec<String> = node.public_ips.iter().map(ToString::to_string).collect();
        let mut row = vec![node.subnets.join(","), ips.join(",")];
        for name in &columns {
            let check = node.checks.iter().find(|check| check.name == *name);
            row.push(check.map_or("-".to_owned(), Check::cell));
        }
        rows.push(row);
    }
    let mut lines = output::table(&rows);
    let mut bad = 0;
    for node in &found.nodes {
        for check in &node.checks {
            if check.is_bad() {
                bad += 1;
                let text = check.text.as_deref().unwrap_or_default();
                lines.push(format!(
                    "{}: {}: {text}",
                    node.subnets.join(","),
                    check.name
                ));
            }
        }
    }
    let (nodes, size) = (found.nodes.len(), found.full_size);
    lines.push(if bad == 0 {
        format!("{nodes} nodes; full size is {size} bytes; nothing is lost")
    } else {
        format!("{nodes} nodes; full size is {size} bytes; {bad} ways lose packets")
    });
    lines
}

fn headers(family: Family) -> usize {
    let all = HEADERS.iter().find(|(of, _)| *of == family);
    all.map_or(0, |(_, bytes)| *bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use session::Tally;

    fn check(answered: u32, heard: bool) -> Check {
        let tally = Tally {
            sent: 5,
            answered,
            least: (answered > 0).then(|| std::time::Duration::from_micros(250)),
        };
        Check::new("IPv4 tunnel".to_owned(), &tally, heard, None)
    }

    #[test]
    fn the_matrix_names_what_is_lost_below_it() {
        let node = |subnet: &str, checks: Vec<Check>| NodeFound {
            subnets: vec![subnet.to_owned()],
            public_ips: vec![],
            checks,
        };
        let found = Found {
            from: vec![],
            full_size: 1450,
            nodes: vec![
                node("10.1.2.0/24", vec![check(5, true)]),
                node("10.1.3.0/24", vec![check(0, true)]),
                node("10.1.4.0/24", vec![check(0, false)]),
                node("10.1.5.0/24", vec![check(4, true)]),
            ],
        };
        let lines = lines(&found);
        assert_eq!(lines[0], "NODE         PUBLIC IP  IPV4 TUNNEL");
        assert!(lines[1].ends_with("0.25 ms"), "{lines:?}");
        assert!(lines[2].ends_with("LOST"));
        assert!(lines[3].ends_with("no answer"));
        assert!(lines[4].ends_with("20 % lost"));
        assert!(lines[5].starts_with("10.1.3.0/24: IPv4 tunnel: no probe"));
        assert!(lines[7].ends_with("2 ways lose packets"));
        let nodes = found.nodes.iter();
        let suites: Vec<_> = nodes
            .map(|node| ("n".to_owned(), &node.checks[..]))
            .collect();
        let xml = junit::text(&suites);
        assert!(
            xml.contains("tests=\"4\" failures=\"2\" skipped=\"1\""),
            "{xml}"
        );
    }
}
