//! `flannelctl status`, `peers` and `version`: what the flanneld of this host reports, for people and for programs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use flanneld::report::{NodeReport, PeerReport, PeerStatus, PeersReport, ProbeReport, ProbeState};
use flanneld::version;
use serde::Serialize;
use store::{Administer, ListedLease, Timing};

use crate::check::settings::Settings;
use crate::kube_args::{KubeArgs, WHOLE_CLUSTERS, in_every_pod};
use crate::runtime::wait_for;
use crate::status_socket::{self, SocketArgs};
use crate::{output, status, yaml};

/// Arguments of `flannelctl status`.
#[derive(Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// How to write it
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// All nodes, as the store of this node's flanneld has them
    #[arg(long)]
    cluster: bool,
    /// Read FLANNELD_… variables from this file [default: /etc/flannel/flanneld.env, if there is one]
    #[arg(long, value_name = "FILE", requires = "cluster")]
    env_file: Option<PathBuf>,
    #[command(flatten)]
    kube: KubeArgs,
    /// flanneld's flags, with --cluster
    #[arg(last = true, value_name = "FLAG", requires = "cluster")]
    flags: Vec<String>,
}

/// Arguments of `flannelctl version`.
#[derive(Args)]
pub(crate) struct VersionArgs {
    #[command(flatten)]
    socket: SocketArgs,
    #[command(flatten)]
    kube: KubeArgs,
}

/// Arguments of `flannelctl log-level`.
#[derive(Args)]
pub(crate) struct LogLevelArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// info, debug (every operation) or trace; without one the present level is printed
    #[arg(value_name = "LEVEL")]
    level: Option<String>,
}

/// Arguments of `flannelctl peers`.
#[derive(Args)]
pub(crate) struct PeersArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// How to write them
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Only peers in this state; may be given again
    #[arg(long, value_enum)]
    state: Vec<StateArg>,
    /// Only peers whose subnet or public IP begins with this
    #[arg(value_name = "PREFIX")]
    only: Option<String>,
}

#[derive(Clone, Copy, Eq, PartialEq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For people, with the reason of every peer in full
    Wide,
    /// One JSON object
    Json,
    /// The same as YAML
    Yaml,
}

impl Format {
    /// Writes it, if this format is for programs. Returns whether it is.
    fn write(self, report: &impl Serialize) -> Result<bool> {
        match self {
            Format::Text | Format::Wide => return Ok(false),
            Format::Json => output::line(&serde_json::to_string_pretty(report)?),
            Format::Yaml => output::line(&yaml::text(&serde_json::to_value(report)?)?),
        }
        Ok(true)
    }
}

#[derive(Clone, Copy, Eq, PartialEq, ValueEnum)]
enum StateArg {
    Installed,
    Pending,
    Failing,
    Unusable,
    Refused,
}

impl StateArg {
    fn is(self, state: PeerStatus) -> bool {
        let own = match self {
            StateArg::Installed => PeerStatus::Installed,
            StateArg::Pending => PeerStatus::Pending,
            StateArg::Failing => PeerStatus::Failing,
            StateArg::Unusable => PeerStatus::Unusable,
            StateArg::Refused => PeerStatus::Refused,
        };
        own == state
    }
}

/// Shows this node.
///
/// # Errors
/// The daemon does not answer.
pub(crate) fn status(args: &StatusArgs) -> Result<ExitCode> {
    if args.kube.is_given()? && WHOLE_CLUSTERS {
        return kube_cluster(args);
    }
    if args.cluster {
        return cluster(args);
    }
    let report: NodeReport = status_socket::get(&args.socket.socket, "/v1/status")?;
    if !args.output.write(&report)? {
        node_lines(&report)
            .iter()
            .for_each(|line| output::line(line));
    }
    Ok(if report.ready {
        ExitCode::SUCCESS
    } else {
        status::no()
    })
}

/// Lists the other nodes.
///
/// # Errors
/// The daemon does not answer.
pub(crate) fn peers(args: &PeersArgs) -> Result<ExitCode> {
    let mut report: PeersReport = status_socket::get(&args.socket.socket, "/v1/peers")?;
    let broken = report.peers.iter().any(|peer| {
        let probe = peer.probe.as_ref();
        peer.state != PeerStatus::Installed
            || probe.is_some_and(|probe| probe.state == ProbeState::Failing)
    });
    report.peers.retain(|peer| is_wanted(args, peer));
    if !args.output.write(&report)? {
        let lines = peer_lines(&report.peers, args.output == Format::Wide);
        lines.iter().for_each(|line| output::line(line));
    }
    Ok(if broken {
        status::no()
    } else {
        ExitCode::SUCCESS
    })
}

/// Shows all leases of the store.
fn cluster(args: &StatusArgs) -> Result<ExitCode> {
    let settings = Settings::find(&args.flags, args.env_file.as_deref())?;
    let leases = wait_for(async {
        let store = settings.options.store.open(Timing::default())?;
        let read = tokio::time::timeout(STORE_LIMIT, store.leases());
        let leases = read.await.context("the store does not answer")??;
        anyhow::Ok(leases)
    })?;
    let nodes: Vec<LeaseReport> = leases.iter().map(LeaseReport::of).collect();
    let all_good = nodes.iter().all(|node| node.problem.is_none());
    if !args.output.write(&serde_json::json!({ "nodes": nodes }))? {
        let head = ["SUBNET", "PUBLIC IP", "BACKEND", "KIND", "PROBLEM"].map(str::to_owned);
        let rows = nodes.iter().map(LeaseReport::row);
        let rows: Vec<[String; 5]> = std::iter::once(head).chain(rows).collect();
        output::table(&rows)
            .iter()
            .for_each(|line| output::line(line));
    }
    Ok(if all_good {
        ExitCode::SUCCESS
    } else {
        status::no()
    })
}

/// A node of a Kubernetes cluster, as its own flanneld reports it.
#[derive(Serialize)]
struct ClusterNode {
    node: String,
    /// What its flanneld reports; absent if nothing does.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<NodeReport>,
    /// Why there is no report.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl ClusterNode {
    fn is_good(&self) -> bool {
        let failing = |report: &NodeReport| report.mesh.as_ref().map_or(0, |mesh| mesh.failing);
        let status = self.status.as_ref();
        status.is_some_and(|report| report.ready && failing(report) == 0)
    }

    fn row(&self) -> [String; 8] {
        let none = || "-".to_owned();
        let Some(report) = &self.status else {
            let error = output::visible(self.error.as_deref().unwrap_or_default());
            let node = self.node.clone();
            return [
                node,
                "?".into(),
                none(),
                none(),
                none(),
                none(),
                none(),
                error,
            ];
        };
        let network = report.network.as_ref();
        let mesh = report.mesh.as_ref();
        let problems = report.problems.iter().cloned();
        let problems = problems.chain(mesh.and_then(|mesh| mesh.problem.clone()));
        let problems: Vec<String> = problems.collect();
        [
            self.node.clone(),
            if report.ready { "yes" } else { "no" }.to_owned(),
            network.map_or_else(none, |network| list(&network.subnets)),
            network.map_or_else(none, |network| network.backend.clone()),
            format!("{}+{}", report.counts.peers, report.counts.refused_leases),
            mesh.map_or_else(none, |mesh| format!("{}/{}", mesh.reachable, mesh.failing)),
            report.version.clone(),
            problems.join("; "),
        ]
        .map(|cell| output::visible(&cell))
    }
}

/// Shows all nodes of a Kubernetes cluster, as their own flannelds report them.
fn kube_cluster(args: &StatusArgs) -> Result<ExitCode> {
    let found = wait_for(in_every_pod(&args.kube, &["status", "-o", "json"]))?;
    let nodes: Vec<ClusterNode> = found
        .into_iter()
        .map(|(pod, said)| {
            let read = said.and_then(|text| {
                serde_json::from_str(&text)
                    .map_err(|error| format!("not the expected JSON: {error}"))
            });
            let (status, error) = match read {
                Ok(status) => (Some(status), None),
                Err(error) => (None, Some(format!("pod {}: {error}", pod.name))),
            };
            ClusterNode {
                node: pod.node,
                status,
                error,
            }
        })
        .collect();
    let all_good = nodes.iter().all(ClusterNode::is_good);
    if !args.output.write(&serde_json::json!({ "nodes": nodes }))? {
        let head = [
            "NODE",
            "READY",
            "SUBNET",
            "BACKEND",
            "PEERS",
            "REACHED/LOST",
            "VERSION",
            "PROBLEM",
        ];
        let rows = nodes.iter().map(ClusterNode::row);
        let rows: Vec<[String; 8]> = std::iter::once(head.map(str::to_owned))
            .chain(rows)
            .collect();
        output::table(&rows)
            .iter()
            .for_each(|line| output::line(line));
    }
    Ok(if all_good {
        ExitCode::SUCCESS
    } else {
        status::no()
    })
}

/// How long the store may take.
const STORE_LIMIT: Duration = Duration::from_secs(30);

/// A node as the store has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LeaseReport {
    subnets: Vec<String>,
    public_ips: Vec<String>,
    backend: String,
    /// It does not end.
    reserved: bool,
    /// Why no node can use it.
    problem: Option<String>,
}

impl LeaseReport {
    fn of(lease: &ListedLease) -> LeaseReport {
        let nets = lease.key.nets().iter();
        let attrs = lease.attrs.as_ref().ok();
        let ips = attrs.map(|attrs| attrs.public_ip.iter().map(|(_, ip)| ip.to_string()));
        let backend = attrs.and_then(|attrs| attrs.backend_type.as_ref());
        LeaseReport {
            subnets: nets.map(|(_, net)| net.to_string()).collect(),
            public_ips: ips.map(Iterator::collect).unwrap_or_default(),
            backend: backend.map(ToString::to_string).unwrap_or_default(),
            reserved: lease.reserved,
            problem: lease.attrs.as_ref().err().map(ToString::to_string),
        }
    }

    fn row(&self) -> [String; 5] {
        let kind = if self.reserved {
            "reservation"
        } else {
            "lease"
        };
        [
            list(&self.subnets),
            list(&self.public_ips),
            self.backend.clone(),
            kind.to_owned(),
            self.problem.clone().unwrap_or_default(),
        ]
    }
}

/// Prints the level of the daemon's log, or changes it.
///
/// # Errors
/// The daemon does not answer, or knows no such level.
pub(crate) fn log_level(args: &LogLevelArgs) -> Result<ExitCode> {
    let socket = &args.socket.socket;
    let answer = match &args.level {
        Some(level) => status_socket::put(socket, &format!("/v1/log-level/{level}"))?,
        None => status_socket::text(socket, "/v1/log-level", STORE_LIMIT)?,
    };
    output::line(answer.trim());
    Ok(ExitCode::SUCCESS)
}

/// Prints the versions: of this program, of this host's flanneld, and of flannel's pods with `--kubernetes`.
///
/// # Errors
/// The API server does not answer. A daemon or a pod that does not answer is said to be unknown.
pub(crate) fn version(args: &VersionArgs) -> Result<ExitCode> {
    output::line(&format!("flannelctl {}", version::with_commit()));
    if args.kube.is_given()? && WHOLE_CLUSTERS {
        let found = wait_for(in_every_pod(&args.kube, &["version"]))?;
        let head = ["NODE", "FLANNELD", "IMAGE"].map(str::to_owned);
        let rows = found.iter().map(|(pod, said)| {
            let version = match said {
                Ok(text) => {
                    let mut lines = text.lines();
                    let line = lines.find_map(|line| line.strip_prefix("flanneld"));
                    line.unwrap_or("unknown").trim().to_owned()
                }
                Err(error) => format!("unknown ({error})"),
            };
            [pod.node.clone(), version, pod.image.clone()].map(|cell| output::visible(&cell))
        });
        let rows: Vec<[String; 3]> = std::iter::once(head).chain(rows).collect();
        output::table(&rows)
            .iter()
            .for_each(|line| output::line(line));
        return Ok(ExitCode::SUCCESS);
    }
    let daemon = status_socket::get::<NodeReport>(&args.socket.socket, "/v1/status");
    match daemon {
        Ok(report) => {
            let commit = report.commit.map(|commit| format!(" (commit {commit})"));
            let commit = output::visible(&commit.unwrap_or_default());
            output::line(&format!("flanneld   {}{commit}", report.version));
        }
        Err(error) => output::line(&format!("flanneld   unknown ({error:#})")),
    }
    Ok(ExitCode::SUCCESS)
}

fn is_wanted(args: &PeersArgs, peer: &PeerReport) -> bool {
    let state = args.state.is_empty() || args.state.iter().any(|state| state.is(peer.state));
    let begins = |prefix: &str| {
        let subnets = peer.subnets.iter().cloned();
        let mut names = subnets.chain(peer.public_ips.iter().map(ToString::to_string));
        names.any(|name| name.starts_with(prefix))
    };
    state && args.only.as_deref().is_none_or(begins)
}

fn list(items: &[impl ToString]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    if items.is_empty() {
        "-".to_owned()
    } else {
        items.join(",")
    }
}

fn node_lines(report: &NodeReport) -> Vec<String> {
    let mut lines = Vec::new();
    let mut put =
        |name: &str, value: &str| lines.push(format!("{name:<12}{}", output::visible(value)));
    put("ready", if report.ready { "yes" } else { "no" });
    for problem in &report.problems {
        put("problem", problem);
    }
    if let Some(what) = &report.degraded {
        put("not served", what);
    }
    if let Some(network) = &report.network {
        put("subnet", &list(&network.subnets));
        put("network", &list(&network.networks));
        put(
            "backend",
            &format!("{}, MTU {}", network.backend, network.mtu),
        );
        put("public IP", &list(&network.public_ips));
        put("interface", &network.interface);
        put("devices", &list(&network.devices));
    }
    let reachable = if report.store_reachable {
        "reachable"
    } else {
        "unreachable"
    };
    put("store", &format!("{}, {reachable}", report.store));
    let counts = &report.counts;
    put(
        "peers",
        &format!(
            "{} used, {} not used (flannelctl peers)",
            counts.peers, counts.refused_leases
        ),
    );
    if let Some(mesh) = &report.mesh {
        put(
            "mesh",
            &format!(
                "{} reachable, {} failing, {} silent, {} not probed yet",
                mesh.reachable, mesh.failing, mesh.silent, mesh.unknown
            ),
        );
        if let Some(problem) = &mesh.problem {
            put("problem", problem);
        }
    }
    put(
        "kernel",
        &format!(
            "{} routes, {} operations refused, {} repairs, {} repairs of traffic rules",
            counts.routes, counts.pending_operations, counts.repairs, counts.rules_repairs
        ),
    );
    put(
        "flanneld",
        &format!(
            "{}, process {}, up for {} s",
            report.version, report.pid, report.uptime_seconds
        ),
    );
    lines
}

/// Characters of a reason that a table shows.
const REASON: usize = 60;

fn peer_lines(peers: &[PeerReport], wide: bool) -> Vec<String> {
    let row = |peer: &PeerReport| {
        let probe = peer.probe.as_ref();
        let found = probe.and_then(|probe| probe.reason.as_deref());
        let found = found.filter(|_| wide || probe.is_some_and(is_failing));
        let reason = peer.reason.as_deref().or(found).unwrap_or("");
        let short: String = reason.chars().take(REASON).collect();
        let reason = if wide || short.len() == reason.len() {
            reason.to_owned()
        } else {
            format!("{short}…")
        };
        [
            list(&peer.subnets),
            list(&peer.public_ips),
            peer.backend.clone(),
            peer.state.name().to_owned(),
            probe.map_or("-", |probe| probe.state.name()).to_owned(),
            probe.and_then(rtt).unwrap_or_else(|| "-".to_owned()),
            probe.and_then(loss).unwrap_or_else(|| "-".to_owned()),
            reason,
        ]
        .map(|cell| output::visible(&cell))
    };
    let head = [
        "SUBNET",
        "PUBLIC IP",
        "BACKEND",
        "STATE",
        "PROBES",
        "RTT",
        "LOSS",
        "REASON",
    ]
    .map(str::to_owned);
    let rows: Vec<[String; 8]> = std::iter::once(head).chain(peers.iter().map(row)).collect();
    output::table(&rows)
}

fn is_failing(probe: &ProbeReport) -> bool {
    probe.state == ProbeState::Failing
}

/// The slower family's.
fn rtt(probe: &ProbeReport) -> Option<String> {
    let all = probe.families.iter().filter_map(|family| family.rtt_micros);
    all.max().map(output::milliseconds)
}

/// The worse family's.
fn loss(probe: &ProbeReport) -> Option<String> {
    let all = probe.families.iter().filter_map(|family| family.loss);
    let worst = all.reduce(f64::max)?;
    Some(format!("{:.0}%", worst * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(subnet: &str, state: PeerStatus, reason: Option<&str>) -> PeerReport {
        PeerReport {
            reached_by: None,
            subnets: vec![subnet.to_owned()],
            public_ips: vec!["192.168.0.2".parse().unwrap()],
            backend: "vxlan".to_owned(),
            state,
            reason: reason.map(str::to_owned),
            probe: None,
        }
    }

    #[test]
    fn the_table_is_aligned_and_reasons_are_cut_unless_wide() {
        let long = "x".repeat(100);
        let peers = [
            peer("10.244.1.0/24", PeerStatus::Installed, None),
            peer("10.244.100.0/24", PeerStatus::Refused, Some(&long)),
        ];
        let lines = peer_lines(&peers, false);
        assert_eq!(
            lines[0],
            "SUBNET           PUBLIC IP    BACKEND  STATE      PROBES  RTT  LOSS  REASON"
        );
        assert_eq!(
            lines[1],
            "10.244.1.0/24    192.168.0.2  vxlan    installed  -       -    -"
        );
        assert!(lines[2].ends_with(&format!(
            "refused    -       -    -     {}…",
            "x".repeat(60)
        )));
        assert!(peer_lines(&peers, true)[2].ends_with(&long));
    }

    #[test]
    fn what_other_nodes_publish_cannot_forge_a_line() {
        let mut hostile = peer(
            "10.244.1.0/24",
            PeerStatus::Refused,
            Some("a\u{1b}[2Jb\u{202e}"),
        );
        hostile.backend = "vx\n10.244.9.0/24 FORGED\r".to_owned();
        for wide in [true, false] {
            let lines = peer_lines(std::slice::from_ref(&hostile), wide);
            assert_eq!(lines.len(), 2);
            assert!(!lines[1].contains(model::outside::is_unsafe), "{lines:?}");
            assert!(
                lines[1].contains(r"vx\u{a}10.244.9.0/24 FORGED\u{d}"),
                "{lines:?}"
            );
        }
    }
}
