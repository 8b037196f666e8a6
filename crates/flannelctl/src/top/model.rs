//! What is shown: the latest reports, the order of the nodes, and the chosen one. No I/O.

use std::cmp::Reverse;

use anyhow::Result;
use flanneld::report::{EventReport, NodeReport, PeerReport, PeerStatus, ProbeState};

use super::look::Look;
use super::rates::{self, Rate};

/// The order of the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// What is broken first.
    Health,
    Subnet,
    /// The slowest first.
    Rtt,
    /// What loses most first.
    Loss,
}

impl Order {
    pub(super) fn name(self) -> &'static str {
        match self {
            Order::Health => "health",
            Order::Subnet => "subnet",
            Order::Rtt => "rtt",
            Order::Loss => "loss",
        }
    }
}

/// How the chosen node changes.
pub(super) enum Step {
    Up(usize),
    Down(usize),
    First,
    Last,
}

/// What a device carries.
pub(super) struct Device {
    pub(super) name: String,
    /// Received and sent; `None` if it does not exist, or was not there at the look before.
    pub(super) rates: Option<(Rate, Rate)>,
}

/// What is shown.
pub(super) struct Model {
    last: Look,
    /// Why the reports are old.
    problem: Option<String>,
    devices: Vec<Device>,
    order: Order,
    is_reversed: bool,
    filter: String,
    is_typing: bool,
    /// Positions among the peers, in the order in which they are shown.
    shown: Vec<usize>,
    /// The chosen node's subnets: it stays chosen where it moves.
    chosen: Option<Vec<String>>,
    first: usize,
    rows: usize,
}

impl Model {
    pub(super) fn new(look: Look, filter: String) -> Model {
        let mut model = Model {
            last: look,
            problem: None,
            devices: Vec::new(),
            order: Order::Health,
            is_reversed: false,
            filter,
            is_typing: false,
            shown: Vec::new(),
            chosen: None,
            first: 0,
            rows: 1,
        };
        model.arrange();
        model
    }

    /// Takes in a look.
    pub(super) fn follow(&mut self, look: Result<Look>) {
        let mut look = match look {
            Ok(look) => look,
            Err(error) => {
                self.problem = Some(format!("{error:#}"));
                return;
            }
        };
        self.problem = None;
        let counts = &look.node.counts;
        if look.peers.peers.is_empty() && counts.peers + counts.refused_leases > 0 {
            // Its main loop was too busy to list them.
            look.peers = std::mem::take(&mut self.last.peers);
        }
        let past = look.at.saturating_duration_since(self.last.at);
        let network = look.node.network.as_ref();
        let names = network.map(|network| {
            let own = network.devices.iter().chain([&network.interface]);
            own.cloned().collect::<Vec<_>>()
        });
        let device = |name: String| {
            let before = self.last.counters.get(&name);
            let rates = before
                .zip(look.counters.get(&name))
                .and_then(|(before, after)| rates::rates(before, after, past));
            Device { name, rates }
        };
        self.devices = names.unwrap_or_default().into_iter().map(device).collect();
        self.last = look;
        self.arrange();
    }

    fn arrange(&mut self) {
        let peers = &self.last.peers.peers;
        let wanted = self.filter.to_lowercase();
        let is_wanted = |at: &usize| peers.get(*at).is_some_and(|peer| contains(peer, &wanted));
        let mut shown: Vec<usize> = (0..peers.len()).filter(is_wanted).collect();
        let of = |at: &usize| peers.get(*at);
        match self.order {
            // As they were reported.
            Order::Subnet => {}
            Order::Health => shown.sort_by_key(|at| {
                let peer = of(at);
                (peer.map(health), Reverse(peer.and_then(loss_per_mille)))
            }),
            Order::Rtt => shown.sort_by_key(|at| Reverse(of(at).and_then(rtt))),
            Order::Loss => shown.sort_by_key(|at| Reverse(of(at).and_then(loss_per_mille))),
        }
        if self.is_reversed {
            shown.reverse();
        }
        self.shown = shown;
    }

    pub(super) fn node(&self) -> &NodeReport {
        &self.last.node
    }

    pub(super) fn events(&self) -> &[EventReport] {
        &self.last.events.events
    }

    pub(super) fn devices(&self) -> &[Device] {
        &self.devices
    }

    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    pub(super) fn order(&self) -> (Order, bool) {
        (self.order, self.is_reversed)
    }

    pub(super) fn filter(&self) -> &str {
        &self.filter
    }

    pub(super) fn is_typing(&self) -> bool {
        self.is_typing
    }

    /// Returns how many nodes are shown, and how many there are.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.shown.len(), self.last.peers.peers.len())
    }

    /// Returns the nodes for so many rows, the chosen one among them, and the position of the first. Each comes with
    /// whether it is the chosen one.
    pub(super) fn page(&mut self, rows: usize) -> (usize, Vec<(&PeerReport, bool)>) {
        self.rows = rows.max(1);
        let chosen = self.chosen_at();
        let last = self.shown.len().saturating_sub(rows);
        self.first = self.first.min(last);
        if let Some(at) = chosen {
            self.first = self.first.clamp((at + 1).saturating_sub(self.rows), at);
        }
        let all = self.shown.iter().enumerate().skip(self.first).take(rows);
        let page = all.filter_map(|(at, peer)| {
            let peer = self.last.peers.peers.get(*peer)?;
            Some((peer, Some(at) == chosen))
        });
        (self.first, page.collect())
    }

    /// Returns the chosen node: the first, until another one is chosen.
    pub(super) fn chosen(&self) -> Option<&PeerReport> {
        let at = self.shown.get(self.chosen_at()?)?;
        self.last.peers.peers.get(*at)
    }

    fn chosen_at(&self) -> Option<usize> {
        let peers = &self.last.peers.peers;
        let is_chosen = |at: &usize| {
            let subnets = peers.get(*at).map(|peer| &peer.subnets);
            self.chosen.is_some() && subnets == self.chosen.as_ref()
        };
        let found = self.shown.iter().position(is_chosen);
        found.or((!self.shown.is_empty()).then_some(0))
    }

    /// Returns how many nodes were shown at once.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn step(&mut self, step: Step) {
        let last = self.shown.len().saturating_sub(1);
        let now = self.chosen_at().unwrap_or_default();
        let next = match step {
            Step::Up(rows) => now.saturating_sub(rows),
            Step::Down(rows) => (now + rows).min(last),
            Step::First => 0,
            Step::Last => last,
        };
        let peer = self
            .shown
            .get(next)
            .and_then(|at| self.last.peers.peers.get(*at));
        self.chosen = peer.map(|peer| peer.subnets.clone());
    }

    pub(super) fn next_order(&mut self) {
        self.order = match self.order {
            Order::Health => Order::Subnet,
            Order::Subnet => Order::Rtt,
            Order::Rtt => Order::Loss,
            Order::Loss => Order::Health,
        };
        self.arrange();
    }

    pub(super) fn reverse(&mut self) {
        self.is_reversed = !self.is_reversed;
        self.arrange();
    }

    pub(super) fn begin_typing(&mut self) {
        self.is_typing = true;
    }

    pub(super) fn end_typing(&mut self) {
        self.is_typing = false;
    }

    /// Adds a character to the filter.
    pub(super) fn put(&mut self, c: char) {
        self.filter.push(c);
        self.arrange();
    }

    /// Removes the last character of the filter.
    pub(super) fn erase(&mut self) {
        self.filter.pop();
        self.arrange();
    }

    /// Sets the filter, and ends typing.
    pub(super) fn set_filter(&mut self, filter: String) {
        (self.filter, self.is_typing) = (filter, false);
        self.arrange();
    }
}

/// What is wrong with a node, or why it is silent.
pub(super) fn reason(peer: &PeerReport) -> Option<&str> {
    let probe = peer.probe.as_ref();
    let found = probe.and_then(|probe| probe.reason.as_deref());
    peer.reason.as_deref().or(found)
}

/// The slower family's time of an answer, in microseconds.
pub(super) fn rtt(peer: &PeerReport) -> Option<u64> {
    let families = peer.probe.iter().flat_map(|probe| &probe.families);
    families.filter_map(|family| family.rtt_micros).max()
}

/// The worse family's share of lost probes.
pub(super) fn loss(peer: &PeerReport) -> Option<f64> {
    let families = peer.probe.iter().flat_map(|probe| &probe.families);
    families.filter_map(|family| family.loss).reduce(f64::max)
}

fn loss_per_mille(peer: &PeerReport) -> Option<u32> {
    loss(peer).map(|loss| (loss * 1000.0) as u32)
}

/// How well a node does; the worst is the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Health {
    Broken,
    Pending,
    Silent,
    Unknown,
    Good,
}

pub(super) fn health(peer: &PeerReport) -> Health {
    let probe = peer.probe.as_ref().map(|probe| probe.state);
    match (peer.state, probe) {
        (PeerStatus::Failing | PeerStatus::Unusable | PeerStatus::Refused, _)
        | (_, Some(ProbeState::Failing)) => Health::Broken,
        (PeerStatus::Pending, _) => Health::Pending,
        (PeerStatus::Installed, Some(ProbeState::Silent)) => Health::Silent,
        (PeerStatus::Installed, Some(ProbeState::Unknown)) => Health::Unknown,
        (PeerStatus::Installed, Some(ProbeState::Reachable) | None) => Health::Good,
    }
}

/// Returns whether a node's line contains a text in lower case.
fn contains(peer: &PeerReport, wanted: &str) -> bool {
    if wanted.is_empty() {
        return true;
    }
    let has = |text: &str| text.to_lowercase().contains(wanted);
    let probe = peer.probe.as_ref().map(|probe| probe.state.name());
    peer.subnets.iter().any(|net| has(net))
        || peer.public_ips.iter().any(|ip| has(&ip.to_string()))
        || has(&peer.backend)
        || has(peer.state.name())
        || probe.is_some_and(has)
        || reason(peer).is_some_and(has)
}
