//! What happens to a fleet: a list of events, drawn from a seed, as text for people and for the corpus.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A kind of event. `number` means what its line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The daemon is killed after so many steps of its own, and started again at once.
    Kill,
    /// The daemon is killed, and started again after so many seconds.
    Down,
    /// The node's connections to etcd end.
    Cut,
    /// Packets between the node and etcd are dropped for so many seconds.
    Silent,
    /// The first member of etcd is silent for the node for so many seconds.
    HalfSilent,
    /// Connections of the node to etcd are refused for so many seconds.
    Refused,
    /// A third of the node's requests, or of their answers, is lost or late for so many seconds.
    Lossy,
    /// etcd has no quorum for so many seconds.
    NoQuorum,
    /// etcd's data are backed up.
    Backup,
    /// etcd is restored from the last backup, with a revision raised by the number.
    Restore,
    /// etcd's history is compacted.
    Compact,
    /// Operations and looks of the node's kernel fail now and then for so many seconds, and notifications are late.
    KernelFaults,
    /// Notifications of the node's kernel are lost.
    LoseNotices,
    /// Somebody deletes a route of flannel's.
    DelRoute,
    /// Somebody deletes a neighbour, forwarding entry, next hop or WireGuard peer of flannel's.
    DelEntry,
    /// Somebody deletes flannel's device.
    DelDevice,
    /// Somebody sets flannel's device down.
    DeviceDown,
    /// Somebody puts a route of another program in the place of one of flannel's.
    ForeignRoute,
    /// The host's interface goes down and comes up.
    Flap,
    /// The host gets another address.
    Readdress,
    /// The host's interface gets another MTU.
    Mtu,
    /// Somebody deletes the node's lease.
    DelKey,
    /// Somebody writes text that is no lease over the node's lease.
    JunkKey,
    /// Somebody writes the address of a node that does not exist into the node's lease.
    StealKey,
    /// Somebody writes a lease of a node that does not exist.
    StrangeKey,
    /// The network configuration is deleted for so many seconds.
    NoConfig,
    /// The network configuration is no JSON for so many seconds.
    JunkConfig,
    /// The network configuration changes to the variant with this number.
    Config,
    /// The machine restarts: its kernel is empty. If the number is odd, the node's files are lost, too.
    Reboot,
    /// The node's files are deleted.
    LoseFiles,
}

impl Kind {
    /// Every kind, and its name in a plan.
    pub const ALL: [(Kind, &'static str); 30] = [
        (Kind::Kill, "kill"),
        (Kind::Down, "down"),
        (Kind::Cut, "cut"),
        (Kind::Silent, "silent"),
        (Kind::HalfSilent, "half-silent"),
        (Kind::Refused, "refused"),
        (Kind::Lossy, "lossy"),
        (Kind::NoQuorum, "no-quorum"),
        (Kind::Backup, "backup"),
        (Kind::Restore, "restore"),
        (Kind::Compact, "compact"),
        (Kind::KernelFaults, "kernel-faults"),
        (Kind::LoseNotices, "lose-notices"),
        (Kind::DelRoute, "del-route"),
        (Kind::DelEntry, "del-entry"),
        (Kind::DelDevice, "del-device"),
        (Kind::DeviceDown, "device-down"),
        (Kind::ForeignRoute, "foreign-route"),
        (Kind::Flap, "flap"),
        (Kind::Readdress, "readdress"),
        (Kind::Mtu, "mtu"),
        (Kind::DelKey, "del-key"),
        (Kind::JunkKey, "junk-key"),
        (Kind::StealKey, "steal-key"),
        (Kind::StrangeKey, "strange-key"),
        (Kind::NoConfig, "no-config"),
        (Kind::JunkConfig, "junk-config"),
        (Kind::Config, "config"),
        (Kind::Reboot, "reboot"),
        (Kind::LoseFiles, "lose-files"),
    ];

    fn name(self) -> &'static str {
        let mut all = Kind::ALL.iter();
        all.find(|(kind, _)| *kind == self)
            .map_or("?", |(_, name)| name)
    }

    /// Returns whether two nodes may have one subnet for a while because of it.
    pub fn confuses_leases(self) -> bool {
        matches!(
            self,
            Kind::Restore | Kind::DelKey | Kind::JunkKey | Kind::StealKey
        )
    }

    /// Draws the number.
    fn draw(self, rng: &mut fastrand::Rng) -> u64 {
        match self {
            Kind::Kill => rng.u64(1..300),
            Kind::Down | Kind::Silent | Kind::Refused | Kind::HalfSilent => rng.u64(1..240),
            Kind::NoConfig | Kind::JunkConfig | Kind::NoQuorum => rng.u64(1..120),
            Kind::Lossy | Kind::KernelFaults => rng.u64(5..120),
            Kind::Restore => [0, 0, 1000, 1_000_000][rng.usize(0..4)],
            Kind::Mtu => [1400, 1450, 1500, 9000][rng.usize(0..4)],
            Kind::Config => rng.u64(0..VARIANTS.len() as u64),
            _ => rng.u64(0..8),
        }
    }
}

/// The backends of the network configurations that a network may change between.
pub const VARIANTS: [&str; 6] = [
    r#"{"Type":"vxlan"}"#,
    r#"{"Type":"vxlan","VNI":7,"Port":4789}"#,
    r#"{"Type":"vxlan","DirectRouting":true}"#,
    r#"{"Type":"host-gw"}"#,
    r#"{"Type":"ipip"}"#,
    r#"{"Type":"wireguard"}"#,
];

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When it happens.
    pub at: Duration,
    /// What happens.
    pub kind: Kind,
    /// To which node.
    pub node: usize,
    /// See [`Kind`].
    pub number: u64,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, name) = (self.at.as_millis(), self.kind.name());
        write!(f, "{at} {name} {} {}", self.node, self.number)
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(line: &str) -> Result<Step, String> {
        let bad = || format!("{line:?}: expected MILLISECONDS EVENT NODE NUMBER");
        let words: Vec<&str> = line.split_whitespace().collect();
        let [at, name, node, number] = words[..] else {
            return Err(bad());
        };
        let mut all = Kind::ALL.iter();
        let kind = all.find(|(_, of)| *of == name).ok_or_else(bad)?;
        Ok(Step {
            at: Duration::from_millis(at.parse().map_err(|_| bad())?),
            kind: kind.0,
            node: node.parse().map_err(|_| bad())?,
            number: number.parse().map_err(|_| bad())?,
        })
    }
}

/// A fleet, and what happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Seeds all other random numbers.
    pub seed: u64,
    /// How many nodes there are.
    pub nodes: usize,
    /// The number of the first configuration in [`VARIANTS`].
    pub variant: usize,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Draws a plan.
    pub fn draw(seed: u64) -> Plan {
        let mut rng = fastrand::Rng::with_seed(seed);
        let nodes = rng.usize(2..6);
        let count = rng.usize(1..20);
        let mut at = Duration::from_millis(rng.u64(0..20_000));
        let mut steps = Vec::new();
        for _ in 0..count {
            let kind = Kind::ALL[rng.usize(0..Kind::ALL.len())].0;
            steps.push(Step {
                at,
                kind,
                node: rng.usize(0..nodes),
                number: kind.draw(&mut rng),
            });
            // Most events come while the one before is still at work.
            at += Duration::from_millis(match rng.u8(0..4) {
                0 => rng.u64(0..50),
                1 => rng.u64(0..2_000),
                2 => rng.u64(0..30_000),
                _ => rng.u64(0..200_000),
            });
        }
        Plan {
            seed,
            nodes,
            variant: rng.usize(0..VARIANTS.len()),
            steps,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "fleet {} {} {}", self.seed, self.nodes, self.variant)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Plan, String> {
        let lines = text.lines().map(str::trim);
        let mut lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let first = lines.next().unwrap_or_default();
        let bad = || format!("{first:?}: expected \"fleet SEED NODES VARIANT\"");
        let words: Vec<&str> = first.split_whitespace().collect();
        let ["fleet", seed, nodes, variant] = words[..] else {
            return Err(bad());
        };
        let number = |text: &str| text.parse::<usize>().map_err(|_| bad());
        let plan = Plan {
            seed: seed.parse().map_err(|_| bad())?,
            nodes: number(nodes)?,
            variant: number(variant)?,
            steps: lines.map(str::parse).collect::<Result<_, _>>()?,
        };
        let fits = plan.steps.iter().all(|step| step.node < plan.nodes);
        if fits && plan.nodes > 0 && plan.variant < VARIANTS.len() {
            Ok(plan)
        } else {
            Err(bad())
        }
    }
}
