//! What a change of the network configuration means for nodes that run. Pure, and the same for the daemon and
//! for `flannelctl config set`.

use std::time::Duration;

use model::{BackendType, Family, NetConfig, SubnetKey};
use tokio::time::Instant;

use crate::allowance::Allowance;

/// How often a new configuration is applied: somebody may change it all the time.
const CHANGES: (u32, Duration) = (3, Duration::from_secs(5));

/// A configuration that this node cannot use at present is tried again after so long, and after twice as long each
/// time, up to the second.
const AGAIN: Duration = Duration::from_secs(60);
const AGAIN_AT_MOST: Duration = Duration::from_secs(1800);

/// How often it is looked whether a command has ended.
const COMMAND_RUNS: Duration = Duration::from_millis(100);

/// Nodes apply a change at different moments: so much for each of them, up to the second.
const SPREAD: Duration = Duration::from_millis(2);
const SPREAD_AT_MOST: Duration = Duration::from_secs(10);

/// Options of which the device is recreated, or its port changed, when they change.
const INTERRUPTS: [&str; 9] = [
    "GBP",
    "Learning",
    "Port",
    "ListenPort",
    "ListenPortV6",
    "Mode",
    "PSK",
    "UDPEncap",
    "ESPProposal",
];

/// What a change does to a node that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: the configurations mean the same.
    Nothing,
    /// It is applied while packets flow.
    Live(Vec<String>),
    /// It is not applied; the reason, and what to do.
    Restart(String),
}

/// Returns what changing `old` to `new` does. `own` is a node's subnet, which must lie in the new network;
/// without it the answer is for nodes in general.
pub fn effect(old: &NetConfig, new: &NetConfig, own: Option<&SubnetKey>) -> Effect {
    if old == new {
        return Effect::Nothing;
    }
    let families = |config: &NetConfig| -> Vec<Family> { config.families().collect() };
    if families(old) != families(new) {
        let text = |families: Vec<Family>| {
            let names: Vec<String> = families.iter().map(ToString::to_string).collect();
            names.join(" and ")
        };
        return Effect::Restart(format!(
            "the address families change from {} to {}: restart flanneld on every node, one after the other",
            text(families(old)),
            text(families(new))
        ));
    }
    for (family, pool) in new.pools.iter() {
        let network = pool.network;
        let inside = match own {
            Some(own) => own.nets().get(family).copied(),
            None => old.pools.get(family).map(|pool| pool.network),
        };
        let Some(inside) = inside.filter(|net| !network.contains(net)) else {
            continue;
        };
        return Effect::Restart(match own {
            Some(_) => format!(
                "the network {network} does not contain this node's subnet {inside}: restart flanneld on every node, which then takes another subnet, and recreate the pods"
            ),
            None => format!(
                "the network {network} does not contain {inside}: nodes whose subnet lies outside keep the old configuration until flanneld is restarted there and takes another subnet; recreate their pods then"
            ),
        });
    }
    let (from, to) = (&old.backend, &new.backend);
    if from != to && !(can_be_beside(&from.kind) && can_be_beside(&to.kind)) {
        return Effect::Restart(format!(
            "this version has no backend {}: install one that has it, or configure another one",
            if can_be_beside(&to.kind) {
                &from.kind
            } else {
                &to.kind
            }
        ));
    }
    Effect::Live(steps(old, new, own))
}

/// Returns whether a backend of this type and another one can be in use at once, each for some of the peers.
pub fn can_be_beside(kind: &BackendType) -> bool {
    match kind {
        BackendType::Vxlan
        | BackendType::HostGw
        | BackendType::Wireguard
        | BackendType::Ipip
        | BackendType::Udp
        | BackendType::Ipsec
        | BackendType::Extension
        | BackendType::Alloc => true,
        BackendType::Other(_) => false,
    }
}

/// Returns, in words, each thing that changes.
fn steps(old: &NetConfig, new: &NetConfig, own: Option<&SubnetKey>) -> Vec<String> {
    let mut steps = Vec::new();
    let (from, to) = (&old.backend.kind, &new.backend.kind);
    let vni = |config: &NetConfig| backend::vxlan::vni(config).ok();
    if from != to {
        let lost = if [from, to].contains(&&BackendType::Extension) {
            "packets to a peer are lost while the commands for it run"
        } else {
            "no packet is lost"
        };
        steps.push(format!(
            "{from} changes to {to}: every node serves both until all have changed, and {lost}"
        ));
        if matches!(to, BackendType::Wireguard | BackendType::Ipsec) {
            steps.push(
                "nodes that have not changed yet are reached without encryption until then".into(),
            );
        }
    } else if *to == BackendType::Vxlan && vni(old) != vni(new) {
        steps.push(
            "the VNI changes: every node serves both until all have changed, and no packet is lost"
                .into(),
        );
    } else if old.backend != new.backend && *to == BackendType::Extension {
        steps.push(
            "the commands change: each peer is removed by the former ones and added by the new ones, and packets to it are lost meanwhile".into(),
        );
    } else if old.backend != new.backend {
        let option = |config: &NetConfig, name: &str| config.backend.options.get(name).cloned();
        let changed = |name: &&str| {
            let name = name.to_ascii_lowercase();
            option(old, &name) != option(new, &name)
        };
        let hard: Vec<&str> = INTERRUPTS.into_iter().filter(changed).collect();
        steps.push(if hard.is_empty() {
            "the backend's options change in place".into()
        } else {
            format!(
                "{} changes: packets between two nodes are lost until both have changed",
                hard.join(", ")
            )
        });
    }
    for (family, pool) in new.pools.iter() {
        let before = old.pools.get(family).map(|pool| pool.network);
        if before.is_some_and(|before| before != pool.network) {
            steps.push(format!("the network becomes {}", pool.network));
        }
    }
    let new_subnets = own.is_some_and(|own| old.fits(own) && !new.fits(own));
    if new_subnets {
        steps.push(
            "this node keeps its subnet, which the configuration does not give out any more, until it is restarted".into(),
        );
    } else if own.is_none() && old.pools != new.pools {
        steps.push("nodes keep the subnets that they have".into());
    }
    if old.nftables != new.nftables {
        let program = if new.nftables { "nftables" } else { "iptables" };
        steps.push(format!("the traffic rules are written with {program}"));
    }
    if steps.is_empty() {
        steps.push("nothing changes for nodes that run".into());
    }
    steps
}

/// Returns a random delay, longer with more nodes: what they write to the store should not come at one moment.
pub(crate) fn spread(nodes: usize) -> Duration {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    let longest = SPREAD.saturating_mul(nodes).min(SPREAD_AT_MOST);
    longest.mul_f64(fastrand::f64())
}

/// The configuration that the store shows, and what keeps it from being in force.
pub(crate) struct Wanted {
    /// Not in force yet.
    pending: Option<NetConfig>,
    /// When it is tried.
    at: Instant,
    changes: Allowance,
    problem: Option<String>,
    /// How long it is until the next try.
    again: Duration,
    /// A command is waited for that belongs to it.
    prepares: bool,
}

impl Wanted {
    pub(crate) fn new() -> Wanted {
        Wanted {
            pending: None,
            at: Instant::now(),
            changes: Allowance::new(CHANGES.0, CHANGES.1),
            problem: None,
            again: AGAIN,
            prepares: false,
        }
    }

    /// Takes in a configuration that the store shows. `in_force`: it is so already. `nodes`: how many there are.
    pub(crate) fn take(&mut self, config: NetConfig, in_force: bool, nodes: usize) {
        if in_force {
            self.pending = None;
            self.problem = None;
        } else if self.pending.as_ref() != Some(&config) {
            let at = self.changes.next().max(Instant::now()) + spread(nodes);
            // What changes all the time must not be put off all the time.
            let waits = self.pending.replace(config).is_some();
            self.at = if waits { self.at.min(at) } else { at };
            self.again = AGAIN;
        }
    }

    /// Takes in that what the store shows cannot be used: what is in force stays.
    pub(crate) fn refuse(&mut self, reason: String) {
        self.pending = None;
        self.problem = Some(reason);
    }

    /// Returns the configuration that is to be applied now.
    pub(crate) fn due_now(&mut self, now: Instant) -> Option<NetConfig> {
        let due = self.pending.clone().filter(|_| now >= self.at)?;
        if !std::mem::take(&mut self.prepares) {
            self.changes.take(now);
        }
        self.at = now + AGAIN;
        Some(due)
    }

    /// Returns when [`Wanted::due_now`] has something.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.pending.as_ref().map(|_| self.at)
    }

    /// Records that a command runs that belongs to what was due: it is due again soon.
    pub(crate) fn prepares(&mut self) {
        self.prepares = true;
        self.at = Instant::now() + COMMAND_RUNS;
    }

    /// Records that it is in force.
    pub(crate) fn done(&mut self) {
        self.pending = None;
        self.problem = None;
    }

    /// Records why it is not in force. It is tried again if the reason may pass.
    pub(crate) fn failed(&mut self, config: NetConfig, reason: String, may_pass: bool) {
        self.at = Instant::now() + self.again;
        self.again = (self.again * 2).min(AGAIN_AT_MOST);
        self.pending = Some(config).filter(|_| may_pass);
        self.problem = Some(reason);
    }

    /// Returns what is wrong.
    pub(crate) fn problem(&self) -> Option<&String> {
        self.problem.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> NetConfig {
        NetConfig::from_json(json).unwrap()
    }

    #[test]
    fn each_change_has_its_effect() {
        let old = config(r#"{"Network":"10.1.0.0/16"}"#);
        let own: SubnetKey = "10.1.5.0-24".parse().unwrap();
        for (json, expected) in [
            (r#"{"Network":"10.1.0.0/16","SubnetLen":24}"#, "nothing"),
            (
                r#"{"Network":"10.0.0.0/15"}"#,
                "the network becomes 10.0.0.0/15",
            ),
            (
                r#"{"Network":"10.1.0.0/16","SubnetMin":"10.1.9.0"}"#,
                "this node keeps its subnet",
            ),
            (
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"host-gw"}}"#,
                "vxlan changes to host-gw",
            ),
            (
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#,
                "the VNI changes",
            ),
            (
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#,
                "in place",
            ),
            (
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","Port":4789}}"#,
                "Port changes: packets",
            ),
            (
                r#"{"Network":"10.1.0.0/16","EnableNFTables":true}"#,
                "nftables",
            ),
            (r#"{"Network":"10.2.0.0/16"}"#, "restart flanneld"),
            (
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"extension"}}"#,
                "while the commands for it run",
            ),
            (
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"ipsec"}}"#,
                "reached without encryption until then",
            ),
            (
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vlan"}}"#,
                "no backend vlan",
            ),
            (
                r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#,
                "restart flanneld",
            ),
        ] {
            let text = match effect(&old, &config(json), Some(&own)) {
                Effect::Nothing => "nothing".into(),
                Effect::Live(steps) => steps.join("; "),
                Effect::Restart(why) => why,
            };
            assert!(text.contains(expected), "{json}: {text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_all_the_time_is_applied_now_and_then() {
        let configs = [
            config(r#"{"Network":"10.1.0.0/16"}"#),
            config(r#"{"Network":"10.1.0.0/16","Backend":{"Type":"host-gw"}}"#),
        ];
        let mut wanted = Wanted::new();
        let mut applied = 0;
        for second in 0..60_usize {
            wanted.take(configs[second % 2].clone(), false, 2);
            tokio::time::sleep(Duration::from_secs(1)).await;
            if wanted.due_now(Instant::now()).is_some() {
                applied += 1;
                wanted.done();
            }
        }
        assert!((10..20).contains(&applied), "{applied}");
    }
}
