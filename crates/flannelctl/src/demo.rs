//! `flannelctl demo`: a small cluster, shown, broken, healed and taken down.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::{Lab, Node, Ping, Pinger};
use model::Family;

use crate::output::{self, Ink, line};

/// How many pings are sent around a fault, at least.
const PINGS: usize = 30;

/// How soon a repair must be done.
const REPAIR: Duration = Duration::from_secs(5);

/// Shows it all. Anything that does not work ends it with an error.
pub(crate) fn run() -> Result<ExitCode> {
    let ink = Ink::of_stdout();
    let start = Instant::now();
    lab::become_root()?;

    title(
        ink,
        "A cluster on this machine: 3 nodes, 6 pods, vxlan, leases in a directory",
    );
    let steps = Arc::new(Steps::new(ink));
    let tell = steps.clone();
    let built = Lab::builder()
        .nodes(3)
        .pods_per_node(2)
        .progress(move |text| tell.begin(text))
        .build()
        .and_then(|lab| {
            lab.start()?;
            steps.begin("until every pod answers every other");
            lab.wait_mesh(REPAIR)?;
            Ok(lab)
        });
    steps.end(built.is_ok());
    let lab = built?;

    title(ink, "Pings from every pod to every other, in milliseconds");
    mesh(ink, &lab)?;

    title(ink, "The leases: a file each");
    for (key, value) in lab.leases()? {
        let lease: serde_json::Value =
            serde_json::from_str(&value).with_context(|| format!("lease {key}: {value}"))?;
        let shown = |name: &str| {
            lease[name]
                .as_str()
                .map_or_else(|| lease[name].to_string(), String::from)
        };
        let about = ["PublicIP", "BackendType", "BackendData"]
            .map(shown)
            .join("  ");
        line(&format!("  {key}  {}", ink.dim(&about)));
    }

    let n1 = lab.node(1);
    title(ink, "The routes of n1 (ip route)");
    n1.exec(["ip", "route"])?
        .lines()
        .for_each(|route| line(&format!("  {}", route.trim_end())));

    title(
        ink,
        "Faults on n1, under a ping from n1-p1 to n2-p1 every 10 ms",
    );
    let peer = lab
        .node(2)
        .subnet_env()?
        .cidr(Family::V4)
        .context("n2 has no IPv4 subnet")?;
    broken(ink, &lab, n1, &["ip", "route", "del", &peer.to_string()])?;
    broken(ink, &lab, n1, &["ip", "link", "set", "flannel.1", "down"])?;
    broken(ink, &lab, n1, &["ip", "link", "del", "flannel.1"])?;

    title(ink, "The pings again");
    mesh(ink, &lab)?;

    title(ink, "What n1 says of itself (flannelctl status)");
    let ctl = std::env::current_exe()?.display().to_string();
    n1.exec([&ctl, "status"])?
        .lines()
        .for_each(|said| line(&format!("  {said}")));

    let taking_down = Instant::now();
    let guard = lab.handles().guard;
    drop(lab);
    if std::path::Path::new(&format!("/proc/{guard}")).exists() {
        bail!("process {guard} of the lab is still there");
    }
    line("");
    let (down, all) = (
        taking_down.elapsed().as_millis(),
        start.elapsed().as_secs_f32(),
    );
    line(&format!(
        "{} {}",
        ink.good("✓ taken down"),
        ink.dim(&format!(
            "in {down} ms: no process, namespace, link, mount or file is left"
        ))
    ));
    line(&format!(
        "{} in {all:.1} s. Now yours:",
        ink.bold("All of it worked,")
    ));
    let ctl = this_program();
    for (command, about) in [
        ("lab up", "such a cluster, in the background"),
        ("lab exec n1", "a shell on its first node: ip, bridge, ping"),
        ("lab down", "and away with it"),
    ] {
        let width = ctl.len() + " lab exec n1".len();
        line(&format!(
            "  {:<width$}  {}",
            format!("{ctl} {command}"),
            ink.dim(about)
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// This program as one would call it from here.
fn this_program() -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_else(|_| "flannelctl".into());
    program
        .strip_prefix(here)
        .unwrap_or(&program)
        .display()
        .to_string()
}

/// What is being done, and when it is done how long it took.
struct Steps {
    ink: Ink,
    current: Mutex<Option<(String, Instant)>>,
}

impl Steps {
    fn new(ink: Ink) -> Steps {
        Steps {
            ink,
            current: Mutex::default(),
        }
    }

    /// The step before is done, `text` begins.
    fn begin(&self, text: &str) {
        self.end(true);
        output::unfinished(self.ink, &format!("  … {text}"));
        *self.current() = Some((text.into(), Instant::now()));
    }

    /// The last step is done, or has failed.
    fn end(&self, done: bool) {
        if let Some((text, begun)) = self.current().take() {
            let took = self.ink.dim(&format!("{} ms", begun.elapsed().as_millis()));
            line(&format!(
                "  {} {text} {took}",
                if done {
                    self.ink.good("✓")
                } else {
                    self.ink.bad("✗")
                }
            ));
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<(String, Instant)>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn title(ink: Ink, text: &str) {
    line("");
    line(&ink.bold(text));
}

/// The matrix as a table; every ping must be answered.
fn mesh(ink: Ink, lab: &Lab) -> Result<()> {
    let pings = lab.ping_matrix()?;
    let pods: Vec<String> = lab
        .pods()
        .iter()
        .map(|pod| pod.name().to_string())
        .collect();
    let heads: String = pods.iter().map(|name| format!("{name:>8}")).collect();
    line(&format!("  {:<7}{}", "", ink.dim(&heads)));
    for from in &pods {
        let mut row = format!("  {}", ink.dim(&format!("{from:<7}")));
        for to in &pods {
            let _ = write!(
                row,
                "{}",
                cell(ink, pings.iter().find(|p| p.from == *from && p.to == *to))
            );
        }
        line(&row);
    }
    let lost = pings.iter().filter(|p| p.rtt.is_none()).count();
    match lost {
        0 => Ok(()),
        _ => bail!("{lost} of {} pings were lost", pings.len()),
    }
}

fn cell(ink: Ink, ping: Option<&Ping>) -> String {
    match ping.map(|ping| ping.rtt) {
        None => format!("{:>8}", "-"),
        Some(Some(rtt)) => format!("{:>8.2}", rtt.as_secs_f64() * 1000.0),
        Some(None) => ink.bad(&format!("{:>8}", "lost")),
    }
}

/// Breaks something, and tells how long it stayed broken and what that cost.
fn broken(ink: Ink, lab: &Lab, node: &Node, command: &[&str]) -> Result<()> {
    let (from, to) = (&node.pods()[0], &lab.node(2).pods()[0]);
    let ip = to.ip(Family::V4).context("the pod has no IPv4 address")?;
    let pinger = Pinger::start(from, ip, Duration::from_millis(10))?;
    let repair = node.measure_repair(|| node.exec(command).map(drop), REPAIR);
    let again = lab.wait_mesh(REPAIR);
    let enough = || {
        if pinger.sent() >= PINGS {
            Ok(())
        } else {
            Err(pinger.sent())
        }
    };
    lab::wait_for("pings enough to judge", REPAIR, enough)?;
    let pings = pinger.stop();
    let log = || {
        format!(
            "the log of n1's flanneld ends with:\n{}",
            node.flanneld().log_tail(20)
        )
    };
    let repair = repair.with_context(log)?;
    again.with_context(log)?;
    let took = format!("{:.1} ms", repair.took.as_secs_f64() * 1000.0);
    line(&format!(
        "  {:<28} {}, {} of {} pings lost",
        command.join(" "),
        ink.good(&format!("whole again after {took:>8}")),
        pings.lost,
        pings.sent
    ));
    Ok(())
}
