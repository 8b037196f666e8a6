//! `/metrics`: the daemon's figures in Prometheus' text format. docs/metrics.md describes each of them; a test
//! compares the two. Why there is no library for this: ADR 7.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::Object;

use crate::probes::{Figures, RTT_BOUNDS};
use crate::report::{NetworkReport, PeerStatus, ProbeState};
use crate::status::Numbers;
use crate::version;

/// The type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of [`Histogram`]'s buckets, in seconds.
const BOUNDS: [f64; 7] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0];

/// Ticks of `/proc/PID/stat` in a second, on every architecture that the daemon is built for.
const TICKS: f64 = 100.0;

/// Series of refusals that are told apart; the others are summed up.
const REFUSALS: usize = 48;

/// How often something took how long.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    /// Counts one that took `time`.
    pub fn observe(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        for (bucket, bound) in self.buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.sum += seconds;
    }
}

/// What the figures are made of.
pub struct Snapshot<'a> {
    /// The node is ready.
    pub ready: bool,
    /// When the daemon started.
    pub began_at: SystemTime,
    /// The store answers.
    pub store_up: bool,
    /// What the store knows of itself.
    pub store: &'a store::StoreStatus,
    /// What this node is in the network, once there is a lease.
    pub network: Option<&'a NetworkReport>,
    /// The traffic rules are as they should be.
    pub rules_in_place: bool,
    /// Forged packets are dropped.
    pub guard_in_place: bool,
    /// The CNI configuration is in its place; `None` if flanneld does not put it there.
    pub cni_installed: Option<bool>,
    /// How many of the other nodes are in each state.
    pub peer_states: &'a BTreeMap<PeerStatus, usize>,
    /// What probes show; `None` if there are none.
    pub(crate) probes: Option<Figures>,
    /// The rest.
    pub numbers: &'a Numbers,
}

/// The text while it is written.
#[derive(Default)]
struct Text(String);

impl Text {
    /// Begins a metric.
    fn begin(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// Writes one series.
    fn series(&mut self, name: &str, labels: &[(&str, &str)], value: &dyn Display) {
        self.0.push_str(name);
        let mut open = '{';
        for (label, text) in labels {
            let _ = write!(self.0, "{open}{label}=\"");
            for c in text.chars() {
                match c {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    c => self.0.push(c),
                }
            }
            self.0.push('"');
            open = ',';
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: &dyn Display) {
        self.begin(name, "gauge", help);
        self.series(name, &[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: &dyn Display) {
        self.begin(name, "counter", help);
        self.series(name, &[], value);
    }
}

/// Returns the figures in Prometheus' text format.
pub fn render(snapshot: &Snapshot<'_>) -> String {
    let mut text = Text::default();
    node(&mut text, snapshot);
    peers(&mut text, snapshot);
    if let Some(figures) = &snapshot.probes {
        probes(&mut text, figures);
    }
    store(&mut text, snapshot);
    kernel(&mut text, snapshot.numbers);
    process(&mut text, snapshot.began_at);
    text.0
}

fn node(text: &mut Text, snapshot: &Snapshot<'_>) {
    let name = "flannel_build_info";
    text.begin(name, "gauge", "The program");
    let commit = version::COMMIT.unwrap_or("unknown");
    let labels = [("version", version::VERSION), ("commit", commit)];
    text.series(name, &labels, &1);
    if let Some(network) = snapshot.network {
        let ips: Vec<String> = network.public_ips.iter().map(ToString::to_string).collect();
        let labels = [
            ("backend", network.backend.as_str()),
            ("interface", &network.interface),
            ("public_ip", &ips.join(",")),
            ("subnet", &network.subnets.join(",")),
        ];
        let name = "flannel_node_info";
        text.begin(name, "gauge", "This node in the network");
        text.series(name, &labels, &1);
        text.gauge(
            "flannel_mtu_bytes",
            "Largest packet of a container",
            &network.mtu,
        );
    }
    text.gauge(
        "flannel_ready",
        "1 when the node is ready",
        &u8::from(snapshot.ready),
    );
    text.gauge(
        "flannel_rules_in_place",
        "1 when the traffic rules are as they should be",
        &u8::from(snapshot.rules_in_place),
    );
    text.gauge(
        "flannel_guard_in_place",
        "1 when forged packets are dropped",
        &u8::from(snapshot.guard_in_place),
    );
    if let Some(installed) = snapshot.cni_installed {
        text.gauge(
            "flannel_cni_configuration_installed",
            "1 when the CNI configuration is in its place",
            &u8::from(installed),
        );
    }
}

fn peers(text: &mut Text, snapshot: &Snapshot<'_>) {
    let n = snapshot.numbers;
    text.gauge("flannel_peers", "Leases of other nodes in use", &n.peers);
    let name = "flannel_peers_by_state";
    text.begin(name, "gauge", "Leases of other nodes, by state");
    for state in PeerStatus::ALL {
        let count = snapshot.peer_states.get(&state).unwrap_or(&0);
        text.series(name, &[("state", state.name())], count);
    }
    text.gauge(
        "flannel_refused_leases",
        "Leases of other nodes that cannot be used",
        &n.refused_leases,
    );
    text.gauge(
        "flannel_routes",
        "Routes that this node should hold",
        &n.routes,
    );
}

fn probes(text: &mut Text, figures: &Figures) {
    let name = "flannel_probe_peers";
    text.begin(name, "gauge", "Other nodes, by what probes show");
    for state in ProbeState::ALL {
        let count = figures.states.get(&state).unwrap_or(&0);
        text.series(name, &[("state", state.name())], count);
    }
    let name = "flannel_probes_total";
    text.begin(name, "counter", "Probes of other nodes");
    for (result, count) in [("answered", figures.answered), ("lost", figures.lost)] {
        text.series(name, &[("result", result)], &count);
    }
    let name = "flannel_probe_requests_total";
    text.begin(name, "counter", "Probes from other nodes");
    for (result, count) in [("answered", figures.served), ("refused", figures.refused)] {
        text.series(name, &[("result", result)], &count);
    }
    let name = "flannel_probe_rtt_seconds";
    text.begin(name, "histogram", "Time until a probe is answered");
    let bucket = format!("{name}_bucket");
    for (bound, count) in RTT_BOUNDS.iter().zip(figures.rtt.buckets) {
        text.series(&bucket, &[("le", &bound.to_string())], &count);
    }
    text.series(&bucket, &[("le", "+Inf")], &figures.rtt.count);
    text.series(&format!("{name}_sum"), &[], &figures.rtt.sum);
    text.series(&format!("{name}_count"), &[], &figures.rtt.count);
    for (name, help, worst) in [
        (
            "flannel_probe_slowest_seconds",
            "Average time of an answer, of the slowest nodes",
            &figures.slowest,
        ),
        (
            "flannel_probe_lossiest_ratio",
            "Share of the last 32 probes without an answer, of the nodes with most losses",
            &figures.lossiest,
        ),
    ] {
        text.begin(name, "gauge", help);
        for (peer, value) in worst {
            text.series(name, &[("peer", peer)], value);
        }
    }
}

fn store(text: &mut Text, snapshot: &Snapshot<'_>) {
    let activity = snapshot.store.activity();
    text.gauge(
        "flannel_store_up",
        "1 when the store answers",
        &u8::from(snapshot.store_up),
    );
    if let Some(age) = activity.since_last_answer() {
        text.gauge(
            "flannel_store_contact_age_seconds",
            "Time since the store sent something",
            &age.as_secs_f64(),
        );
    }
    text.gauge(
        "flannel_store_skipped_keys",
        "Keys of the store that are no leases",
        &snapshot.store.skipped_keys(),
    );
    let name = "flannel_store_requests_total";
    text.begin(name, "counter", "Requests to the store, by verb and code");
    for (verb, code, count) in activity.requests() {
        text.series(name, &[("verb", verb), ("code", &code)], &count);
    }
    text.counter(
        "flannel_store_watch_restarts_total",
        "Watches of the store that ended",
        &activity.watch_restarts(),
    );
    if let Some(left) = activity.lease_left() {
        text.gauge(
            "flannel_lease_left_seconds",
            "Life of this node's lease if it is not renewed",
            &left.as_secs(),
        );
    }
    let certificates = activity.certificates();
    if !certificates.is_empty() {
        let name = "flannel_certificate_expiry_timestamp_seconds";
        text.begin(name, "gauge", "First end among a file's certificates");
        for (file, end) in certificates {
            text.series(name, &[("file", file)], &seconds(end));
        }
    }
}

fn kernel(text: &mut Text, n: &Numbers) {
    text.gauge(
        "flannel_kernel_pending_operations",
        "Operations the kernel refused, still needed",
        &n.parked,
    );
    text.counter(
        "flannel_kernel_writes_total",
        "Kernel objects written",
        &n.written,
    );
    text.counter(
        "flannel_kernel_deletes_total",
        "Kernel objects deleted",
        &n.deleted,
    );
    let name = "flannel_kernel_repairs_total";
    text.begin(
        name,
        "counter",
        "Kernel objects repaired after others changed them",
    );
    for kind in Object::KINDS {
        let count = n.repairs.get(kind).unwrap_or(&0);
        text.series(name, &[("kind", kind)], count);
    }
    let name = "flannel_kernel_refusals_total";
    text.begin(name, "counter", "Operations refused by the kernel");
    let mut others = 0;
    for (at, ((kind, errno), count)) in n.refusals.iter().enumerate() {
        if at < REFUSALS {
            text.series(
                name,
                &[("kind", kind), ("errno", &errno_name(*errno))],
                count,
            );
        } else {
            others += count;
        }
    }
    text.series(name, &[("kind", "other"), ("errno", "other")], &others);
    text.counter(
        "flannel_kernel_audits_total",
        "Full looks at the kernel that no notification asked for",
        &n.audits,
    );
    text.counter(
        "flannel_rules_repairs_total",
        "Sets of traffic rules repaired after others changed them",
        &n.rules_repaired,
    );
    let name = "flannel_reconcile_duration_seconds";
    text.begin(
        name,
        "histogram",
        "Time to compare and write the kernel's state",
    );
    let bucket = format!("{name}_bucket");
    for (bound, count) in BOUNDS.iter().zip(n.passes.buckets) {
        text.series(&bucket, &[("le", &bound.to_string())], &count);
    }
    text.series(&bucket, &[("le", "+Inf")], &n.passes.count);
    text.series(&format!("{name}_sum"), &[], &n.passes.sum);
    text.series(&format!("{name}_count"), &[], &n.passes.count);
}

/// Writes what every exporter has of its process. What cannot be read is left out.
fn process(text: &mut Text, began_at: SystemTime) {
    let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let (status, stat, limits) = (read("status"), read("stat"), read("limits"));
    // The name in brackets may hold blanks.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_ascii_whitespace().skip(11).take(2);
    let ticks: f64 = ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    text.counter(
        "process_cpu_seconds_total",
        "Processor time",
        &(ticks / TICKS),
    );
    for (name, line, help) in [
        ("process_resident_memory_bytes", "VmRSS:", "Memory in use"),
        ("process_virtual_memory_bytes", "VmSize:", "Address space"),
    ] {
        if let Some(kib) = number_after(&status, line) {
            text.gauge(name, help, &(kib * 1024));
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One is that of the directory itself.
        let open = open.count().saturating_sub(1);
        text.gauge("process_open_fds", "Open file descriptors", &open);
    }
    if let Some(most) = number_after(&limits, "Max open files") {
        text.gauge("process_max_fds", "Limit of open file descriptors", &most);
    }
    text.gauge(
        "process_start_time_seconds",
        "When the process started",
        &seconds(began_at),
    );
}

/// Returns the first number behind `name` at a line's beginning.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// Returns an error number's name, or the number of one that is seldom seen.
fn errno_name(errno: i32) -> String {
    let name = match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::ESRCH => "ESRCH",
        libc::EIO => "EIO",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::ENODEV => "ENODEV",
        libc::EINVAL => "EINVAL",
        libc::ENFILE => "ENFILE",
        libc::ENOSPC => "ENOSPC",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EAFNOSUPPORT => "EAFNOSUPPORT",
        libc::EADDRINUSE => "EADDRINUSE",
        libc::EADDRNOTAVAIL => "EADDRNOTAVAIL",
        libc::ENETDOWN => "ENETDOWN",
        libc::ENETUNREACH => "ENETUNREACH",
        libc::EHOSTUNREACH => "EHOSTUNREACH",
        libc::ENOBUFS => "ENOBUFS",
        other => return other.to_string(),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_label_holds_stays_in_its_line() {
        let mut text = Text::default();
        text.series("a", &[("b", "x\"\\\n"), ("c", "")], &1.5);
        text.series("a", &[], &2);
        assert_eq!(text.0, "a{b=\"x\\\"\\\\\\n\",c=\"\"} 1.5\na 2\n");
    }

    #[test]
    fn buckets_count_what_is_below_them() {
        let mut histogram = Histogram::default();
        for ms in [1, 30, 700, 60_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        assert_eq!(histogram.buckets, [1, 1, 1, 2, 2, 3, 3]);
        assert_eq!(histogram.count, 4);
    }

    #[test]
    fn refusals_of_many_kinds_are_a_bounded_number_of_series() {
        let refusals = (0..500).map(|errno| (("route", errno), 1));
        let numbers = Numbers {
            refusals: refusals.collect(),
            ..Numbers::default()
        };
        let mut text = Text::default();
        kernel(&mut text, &numbers);
        let lines = text.0.lines();
        let series: Vec<_> = lines
            .filter(|line| line.starts_with("flannel_kernel_refusals_total{"))
            .collect();
        assert_eq!(series.len(), REFUSALS + 1);
        let other = "flannel_kernel_refusals_total{kind=\"other\",errno=\"other\"} 452";
        assert_eq!(series.last(), Some(&other));
    }
}
