//! What the probes show, in figures and for reports.

use std::collections::BTreeMap;
use std::time::Duration;

use model::{Dual, Family, SubnetKey};

use super::mesh::{LinksSeen, Mesh, Seen};
use crate::report::{FamilyReport, ProbeReport, ProbeState};

/// Upper bounds of the histogram's buckets, in seconds.
pub(crate) const RTT_BOUNDS: [f64; 8] = [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.02, 0.1, 0.5];

/// Nodes that are named in metrics.
const WORST: usize = 5;

/// How often an answer took how long.
#[derive(Clone, Debug, Default)]
pub(crate) struct RttHistogram {
    /// Answers within each bound.
    pub(crate) buckets: [u64; RTT_BOUNDS.len()],
    /// All answers.
    pub(crate) count: u64,
    /// Seconds of all answers together.
    pub(crate) sum: f64,
}

impl RttHistogram {
    pub(super) fn observe(&mut self, rtt: Duration) {
        let seconds = rtt.as_secs_f64();
        for (bucket, bound) in self.buckets.iter_mut().zip(RTT_BOUNDS) {
            *bucket += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.sum += seconds;
    }
}

/// The figures for metrics: of all nodes together, and of the worst few.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    /// Nodes by state.
    pub(crate) states: BTreeMap<ProbeState, u64>,
    /// Probes that were answered, and that were not.
    pub(crate) answered: u64,
    pub(crate) lost: u64,
    /// Others' probes that were answered, and that were not.
    pub(crate) served: u64,
    pub(crate) refused: u64,
    pub(crate) rtt: RttHistogram,
    /// The slowest nodes: subnets, seconds.
    pub(crate) slowest: Vec<(String, f64)>,
    /// The nodes with most losses: subnets, share.
    pub(crate) lossiest: Vec<(String, f64)>,
}

/// The highest few of many.
struct Worst(Vec<(SubnetKey, f64)>);

impl Worst {
    fn add(&mut self, key: SubnetKey, value: f64) {
        let at = self.0.partition_point(|(_, other)| *other >= value);
        if at < WORST {
            self.0.insert(at, (key, value));
            self.0.truncate(WORST);
        }
    }

    fn named(self) -> Vec<(String, f64)> {
        let all = self.0.into_iter();
        all.map(|(key, value)| (subnets(&key), value)).collect()
    }
}

fn subnets(key: &SubnetKey) -> String {
    let nets = key.nets().iter().map(|(_, net)| net.to_string());
    nets.collect::<Vec<_>>().join(",")
}

/// Returns the figures.
pub(super) fn figures(mesh: &Mesh) -> Figures {
    let mut states: BTreeMap<ProbeState, u64> = ProbeState::ALL.map(|state| (state, 0)).into();
    let (mut slowest, mut lossiest) = (Worst(Vec::new()), Worst(Vec::new()));
    mesh.each(|seen| {
        *states.entry(seen.state).or_default() += 1;
        let key = seen.target.key();
        let rtts = seen.links.iter().filter_map(|(_, links)| links.main.rtt());
        if let Some(rtt) = rtts.max() {
            slowest.add(key, rtt.as_secs_f64());
        }
        // Nodes that never answered are counted by their state.
        let heard = seen.links.iter().filter(|(_, l)| l.main.rtt().is_some());
        let losses = heard.filter_map(|(_, links)| links.main.loss());
        let loss = losses.fold(0.0, f64::max);
        if loss > 0.0 {
            lossiest.add(key, loss);
        }
    });
    Figures {
        states,
        answered: mesh.totals.answered,
        lost: mesh.totals.lost,
        served: mesh.responder.answered,
        refused: mesh.responder.refused,
        rtt: mesh.totals.rtt.clone(),
        slowest: slowest.named(),
        lossiest: lossiest.named(),
    }
}

/// Returns what is reported of a node.
pub(super) fn report(seen: &Seen<'_>, tunnel: &str, port: u16) -> ProbeReport {
    let family = |(family, links): (Family, &LinksSeen)| FamilyReport {
        family: match family {
            Family::V4 => "ipv4".to_owned(),
            Family::V6 => "ipv6".to_owned(),
        },
        state: links.state.0,
        cause: links.state.1,
        rtt_micros: links.main.rtt().map(micros),
        least_rtt_micros: links.main.least().map(micros),
        loss: links.main.loss(),
        underlay_rtt_micros: links.underlay.and_then(|track| track.rtt()).map(micros),
        underlay_loss: links.underlay.and_then(|track| track.loss()),
        full_size: (links.full.is_probed()).then(|| !links.full.is_broken()),
    };
    ProbeReport {
        state: seen.state,
        cause: seen.cause,
        reason: reason(seen, tunnel, port),
        families: seen.links.iter().map(family).collect(),
    }
}

/// Returns what is wrong, with the family if the other one works.
pub(super) fn reason(seen: &Seen<'_>, tunnel: &str, port: u16) -> Option<String> {
    let cause = seen.cause?;
    let mut all = seen.links.iter();
    let (family, links) = all.find(|(_, links)| links.state.1 == Some(cause))?;
    let public: Dual<_> = seen.target.public_ip();
    let text = cause.text(public.get(family).copied(), tunnel, port, links.filter);
    let mut others = seen.links.iter().filter(|(other, _)| *other != family);
    Some(if others.any(|(_, links)| links.state.1 != Some(cause)) {
        format!("{family}: {text}")
    } else {
        text
    })
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_worst_few_are_named() {
        let mut worst = Worst(Vec::new());
        for i in 0..100u32 {
            let key = format!("10.1.{i}.0-24").parse().unwrap();
            worst.add(key, f64::from(i * 37 % 100));
        }
        let named = worst.named();
        let values: Vec<f64> = named.iter().map(|(_, value)| *value).collect();
        assert_eq!(values, [99.0, 98.0, 97.0, 96.0, 95.0]);
        assert_eq!(named[0].0, "10.1.27.0/24");
    }
}
