//! The whole mesh without Kubernetes: what every node's own probes show, from the page that its flanneld serves.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flanneld::report::{NodeReport, PeerReport, PeersReport, ProbeState};
use serde::{Deserialize, Serialize};

use super::{Check, ConnectivityArgs, Format, Outcome, junit};
use crate::check::settings::Settings;
use crate::{output, status, status_socket};

/// How long one node may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Nodes that are asked at the same time.
const AT_ONCE: usize = 32;

/// Bytes of a node's answer.
const LARGEST: usize = 64 << 20;

/// What a node's page has.
#[derive(Deserialize)]
struct Page {
    node: NodeReport,
    peers: Vec<PeerReport>,
}

/// What one node reports of the others.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    subnets: Vec<String>,
    public_ips: Vec<IpAddr>,
    reachable: usize,
    /// The nodes that it does not reach, and why.
    failing: Vec<Failing>,
    /// Nodes that it knows nothing of: they answer no probes, or were not probed yet.
    unknown: usize,
    /// Why it does not say.
    error: Option<String>,
}

#[derive(Serialize)]
struct Failing {
    to: String,
    reason: String,
}

impl View {
    fn of(peer: &PeerReport, page: Result<Page>) -> View {
        let mut view = View {
            subnets: peer.subnets.clone(),
            public_ips: peer.public_ips.clone(),
            reachable: 0,
            failing: Vec::new(),
            unknown: 0,
            error: None,
        };
        match page {
            Err(error) => view.error = Some(format!("{error:#}")),
            Ok(page) if page.node.mesh.is_none() => {
                view.error = Some("its probes are turned off (-probe-port=0)".to_owned());
            }
            Ok(page) => view.take(&page.peers),
        }
        view
    }

    fn take(&mut self, peers: &[PeerReport]) {
        for peer in peers {
            let probe = peer.probe.as_ref();
            match probe.map(|probe| probe.state) {
                Some(ProbeState::Reachable) => self.reachable += 1,
                Some(ProbeState::Failing) => {
                    let reason = probe.and_then(|probe| probe.reason.clone());
                    self.failing.push(Failing {
                        to: peer.subnets.join(","),
                        reason: reason.unwrap_or_else(|| "packets are lost".to_owned()),
                    });
                }
                Some(ProbeState::Silent | ProbeState::Unknown) | None => self.unknown += 1,
            }
        }
    }

    fn row(&self) -> [String; 6] {
        let ips: Vec<String> = self.public_ips.iter().map(ToString::to_string).collect();
        let number = |number: usize| match self.error {
            Some(_) => "?".to_owned(),
            None => number.to_string(),
        };
        [
            self.subnets.join(","),
            ips.join(","),
            number(self.reachable),
            number(self.failing.len()),
            number(self.unknown),
            self.error.clone().unwrap_or_default(),
        ]
        .map(|cell| output::visible(&cell))
    }

    fn checks(&self) -> Vec<Check> {
        let check = |name: String, result, text| Check {
            name,
            result,
            sent: 0,
            answered: 0,
            rtt_micros: None,
            mbits: None,
            text,
        };
        let failing = self.failing.iter();
        let failing =
            failing.map(|one| check(one.to.clone(), Outcome::Fail, Some(one.reason.clone())));
        let own = match &self.error {
            Some(error) => check("reports".to_owned(), Outcome::Skip, Some(error.clone())),
            None => check("reports".to_owned(), Outcome::Good, None),
        };
        failing.chain([own]).collect()
    }
}

/// Asks every node that this node's flanneld knows what its probes show, and prints it.
///
/// # Errors
/// The daemon of this host does not answer, or the port is not known.
pub(super) fn run(args: &ConnectivityArgs) -> Result<ExitCode> {
    let socket = &args.socket.socket;
    let own: NodeReport = status_socket::get(socket, "/v1/status")?;
    let peers: PeersReport = status_socket::get(socket, "/v1/peers")?;
    if peers.peers.is_empty() && own.counts.peers + own.counts.refused_leases > 0 {
        bail!("flanneld is too busy to list the other nodes: try again");
    }
    let port = port(args)?;
    let is_wanted = |peer: &&PeerReport| {
        let prefix = args.only.as_deref();
        prefix.is_none_or(|prefix| super::begins(peer, prefix))
    };
    let wanted: Vec<&PeerReport> = peers.peers.iter().filter(is_wanted).collect();
    if let Some(prefix) = args.only.as_deref()
        && wanted.is_empty()
    {
        bail!("{}", super::no_such_node(prefix));
    }
    output::progress(&format!(
        "{} nodes: GET /mesh.json at port {port}",
        wanted.len()
    ));
    let queue = Mutex::new(wanted.iter().enumerate().collect::<VecDeque<_>>());
    let found = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(wanted.len()) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().ok().and_then(|mut queue| queue.pop_front());
                    let Some((at, peer)) = next else { break };
                    let view = View::of(peer, page(peer, port));
                    if let Ok(mut found) = found.lock() {
                        found.push((at, view));
                    }
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_default();
    found.sort_by_key(|(at, _)| *at);
    let mut views: Vec<View> = found.into_iter().map(|(_, view)| view).collect();
    if args.only.is_none() {
        let network = own.network.as_ref();
        let mut here = View {
            subnets: network
                .map(|network| network.subnets.clone())
                .unwrap_or_default(),
            public_ips: network
                .map(|network| network.public_ips.clone())
                .unwrap_or_default(),
            reachable: 0,
            failing: Vec::new(),
            unknown: 0,
            error: None,
        };
        here.take(&peers.peers);
        views.insert(0, here);
    }
    print(args, &views)
}

/// The port of the other nodes' health servers: that of this node's, which an installation sets alike.
fn port(args: &ConnectivityArgs) -> Result<u16> {
    if let Some(port) = args.health_port {
        return Ok(port);
    }
    let settings = Settings::find(&[], None)?;
    let is_variable = |word: &String| word.starts_with("FLANNELD_");
    let (variables, words): (Vec<String>, Vec<String>) =
        settings.given.into_iter().partition(is_variable);
    let variable = |name: &str| {
        let value = |word: &String| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned());
        variables.iter().find_map(value)
    };
    let given = flanneld::flags::parse(words, variable)?;
    let given = given.value("healthz-port").parse().ok();
    match given {
        Some(port) if port != 0 => Ok(port),
        _ => bail!(
            "--all asks the health port of every node, and this node's flanneld has none: set -healthz-port and -health-page=all on the nodes, or name the port with --health-port"
        ),
    }
}

fn page(peer: &PeerReport, port: u16) -> Result<Page> {
    let ip = peer
        .public_ips
        .first()
        .context("it has no public address")?;
    let place = SocketAddr::from((*ip, port));
    let text = fetch(place).with_context(|| {
        format!("{place} does not serve /mesh.json: set -health-page=all and -healthz-port there")
    })?;
    serde_json::from_str(&text).with_context(|| format!("{place}: not the expected JSON"))
}

fn fetch(place: SocketAddr) -> Result<String> {
    let began = Instant::now();
    let mut stream = TcpStream::connect_timeout(&place, LIMIT)?;
    stream.set_write_timeout(Some(LIMIT))?;
    write!(stream, "GET /mesh.json HTTP/1.0\r\nHost: {place}\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        let left = LIMIT.checked_sub(began.elapsed());
        let left = left.filter(|left| !left.is_zero());
        let left = left.ok_or_else(|| io::Error::from(io::ErrorKind::TimedOut))?;
        stream.set_read_timeout(Some(left))?;
        let len = stream.read(&mut piece)?;
        let Some(data) = piece.get(..len).filter(|data| !data.is_empty()) else {
            break;
        };
        answer.extend_from_slice(data);
        if answer.len() > LARGEST {
            bail!("the answer is longer than {} MiB", LARGEST >> 20);
        }
    }
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .context("the answer is not HTTP")?;
    let code = head.split(' ').nth(1).unwrap_or_default();
    if code != "200" {
        bail!("HTTP status {}", model::Outside(code));
    }
    Ok(body.to_owned())
}

fn print(args: &ConnectivityArgs, views: &[View]) -> Result<ExitCode> {
    let failing: usize = views.iter().map(|view| view.failing.len()).sum();
    let mute = views.iter().filter(|view| view.error.is_some()).count();
    if args.output == Format::Json {
        output::line(&serde_json::to_string_pretty(
            &serde_json::json!({ "nodes": views }),
        )?);
    } else {
        let head = [
            "NODE",
            "PUBLIC IP",
            "REACHES",
            "LOSES",
            "UNKNOWN",
            "PROBLEM",
        ];
        let rows = views.iter().map(View::row);
        let rows: Vec<[String; 6]> = std::iter::once(head.map(str::to_owned))
            .chain(rows)
            .collect();
        output::table(&rows)
            .iter()
            .for_each(|line| output::line(line));
        for view in views {
            for one in &view.failing {
                let text = format!("{} > {}: {}", view.subnets.join(","), one.to, one.reason);
                output::line(&output::visible(&text));
            }
        }
        output::line(&format!(
            "{} nodes, {mute} of which do not report; {failing} ways lose packets",
            views.len()
        ));
    }
    if let Some(file) = &args.junit {
        let suites: Vec<_> = views
            .iter()
            .map(|view| (view.subnets.join(","), view.checks()))
            .collect();
        let suites: Vec<_> = suites
            .iter()
            .map(|(name, checks)| (name.clone(), checks.as_slice()))
            .collect();
        junit::write(file, &suites)?;
    }
    Ok(if failing == 0 && mute == 0 {
        ExitCode::SUCCESS
    } else {
        status::no()
    })
}
