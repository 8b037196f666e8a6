//! The host's own rules: whether they let packets between containers of different nodes pass.

use std::collections::BTreeSet;

use anyhow::Result;
use dataplane::rules::forwarding::{Forwarded, Refusal, judge};
use ipnet::IpNet;
use model::subnet::first;
use model::{BackendType, Family, IfName, NetConfig, SubnetKey};

use super::report::Report;
use super::settings::Settings;
use crate::runtime::wait_for;

const ABOUT: &str = "firewall";

/// What is known of the packets that containers exchange.
pub(crate) struct Question<'a> {
    pub(crate) config: &'a NetConfig,
    /// This node's subnet, if it has one.
    pub(crate) own: Option<SubnetKey>,
    pub(crate) settings: &'a Settings,
    /// The tunnel devices that there should be.
    pub(crate) devices: &'a [IfName],
    pub(crate) iface: Option<IfName>,
    /// The bridge of this node's containers.
    pub(crate) bridge: Option<String>,
}

/// A packet, and the words for it.
struct Sample {
    packet: Forwarded,
    what: String,
    network: IpNet,
}

impl Question<'_> {
    /// From this node's containers to another node's, and back.
    fn samples(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        for (family, pool) in self.config.pools.iter() {
            let subnet = |at| IpNet::new(at, pool.subnet_len).unwrap_or(pool.network);
            let own = self.own.and_then(|key| key.nets().get(family).copied());
            let own = own.unwrap_or(subnet(pool.min));
            let other = match subnet(pool.max) {
                last if last == own => subnet(pool.min),
                last => last,
            };
            let ([here, there], outward) = (
                [own, other].map(|net| first(&net).addr()),
                self.outward(family),
            );
            let packet = |source,
                          destination,
                          arrives: &Option<String>,
                          leaves: &Option<String>| Forwarded {
                source,
                destination,
                arrives: arrives.clone(),
                leaves: leaves.clone(),
            };
            for (packet, way) in [
                (
                    packet(here, there, &self.bridge, &outward),
                    "from this node's containers to other nodes",
                ),
                (
                    packet(there, here, &outward, &self.bridge),
                    "from other nodes to this node's containers",
                ),
            ] {
                samples.push(Sample {
                    packet,
                    what: format!("{family} packets {way}"),
                    network: pool.network,
                });
            }
        }
        samples
    }

    /// The device that leads to the other nodes, if there is only one.
    fn outward(&self, family: Family) -> Option<String> {
        let direct = self.config.backend.options.contains_key("directrouting");
        let tunnels = self.devices.iter().map(IfName::to_string);
        let mut tunnels = tunnels.filter(|name| name.contains("-v6") == (family == Family::V6));
        match &self.config.backend.kind {
            _ if direct => None,
            BackendType::HostGw => self.iface.as_ref().map(IfName::to_string),
            _ => tunnels.next(),
        }
    }

    /// Whether flanneld, which does not run, will let these packets pass ahead of what refuses them.
    fn will_be_passed(&self, refusal: &Refusal) -> bool {
        let of_iptables = !refusal.place.starts_with("nft,");
        // flanneld puts its jump ahead of a rule that refuses everything.
        let overall =
            refusal.rule.starts_with("policy ") || refusal.rule.starts_with("-A FORWARD -j ");
        self.settings.daemon.is_none()
            && self.settings.options.traffic.rules.forward
            && !self.config.nftables
            && refusal.place.ends_with("table filter, chain FORWARD")
            && of_iptables
            && overall
    }
}

/// Reads the rules of this host, and reports what refuses packets between containers.
///
/// # Errors
/// The system gives no runtime.
pub(crate) fn check(report: &mut Report, question: &Question<'_>) -> Result<()> {
    let samples = question.samples();
    let packets: Vec<Forwarded> = samples.iter().map(|sample| sample.packet.clone()).collect();
    let judgement = wait_for(async { Ok::<_, anyhow::Error>(judge(&packets).await) })?;
    let mut told = BTreeSet::new();
    for (at, refusal) in &judgement.refusals {
        let Some(sample) = samples.get(*at) else {
            continue;
        };
        // One rule often refuses both ways.
        if told.insert((refusal.place.clone(), refusal.rule.clone())) {
            tell(report, question, sample, refusal);
        }
    }
    for why in judgement.unread {
        let cure = "install that program, or look at the rules by hand: they must let the flannel network pass";
        report.skip(ABOUT, format!("not read: {why}"), cure);
    }
    if told.is_empty() && !judgement.read.is_empty() {
        let by = judgement.read.join(", ");
        report.ok(
            ABOUT,
            format!("packets between containers of different nodes may pass ({by})"),
        );
    }
    Ok(())
}

fn tell(report: &mut Report, question: &Question<'_>, sample: &Sample, refusal: &Refusal) {
    let Sample { what, network, .. } = sample;
    let Refusal {
        place,
        rule,
        certain,
    } = refusal;
    let by = format!("{place}: {}", shortened(rule));
    let cure = if place.starts_with("nft,") {
        format!(
            "let {network} pass in that chain, as source and as destination, before it refuses; an accept in another table does not help"
        )
    } else if rule.starts_with("policy ") {
        format!(
            "let flanneld write its rules (-iptables-forward-rules, and EnableNFTables false), or let {network} pass: \
             iptables -I FORWARD -s {network} -j ACCEPT, and the same with -d"
        )
    } else {
        format!(
            "delete that rule, or put one before it that accepts {network}, with -s and with -d"
        )
    };
    if question.will_be_passed(refusal) {
        let cure = "start flanneld, which accepts them ahead of that";
        report.warn(
            ABOUT,
            format!("{what} are refused until flanneld runs, by {by}"),
            cure,
        );
    } else if *certain {
        report.fail(ABOUT, format!("{what} are refused by {by}"), cure);
    } else {
        report.warn(
            ABOUT,
            format!("{what} are refused by {by}, unless an earlier rule with conditions that this command does not know lets them pass"),
            cure,
        );
    }
}

/// A rule of nftables is shown as JSON, which may be long.
pub(crate) fn shortened(rule: &str) -> String {
    const MOST: usize = 300;
    match rule.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &rule[..at]),
        None => rule.to_owned(),
    }
}
