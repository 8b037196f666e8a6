//! The other nodes as probes see them: whom to probe next, what the answers mean. No I/O and no clock: times are given
//! as the time since the prober's start.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, VecDeque};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::time::Duration;

use model::{Dual, Family, SubnetKey};

use super::packet::{self, Datagram, Wish};
use super::peer::{ASK_AGAIN, At, Kind, Peer, Way};
use super::responder::Responder;
use super::rounds::{Allowance, Round};
use super::sources::Sources;
use super::summary::RttHistogram;
use super::target::Target;
use super::track::Track;
use super::verdict::{Cause, Evidence, Filter, Underlay, judge};
use crate::report::ProbeState;

/// How long an answer may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// Seconds in which every node is probed once, as long as that is no more than [`MOST`] a second. In a larger cluster
/// each node is probed by some 480 others in a minute, and all links of one node take longer: to probe all 5,000 every
/// minute would fill the neighbour tables of a flat network, and cost each node 10 kB/s.
const ROUND: usize = 60;
const MOST: usize = 8;

/// Every how many turns a node that is reached through a tunnel is probed past it, too.
const UNDERLAY_EVERY: u8 = 5;

/// How often one node gets a probe of full size, at most.
const FULL_EVERY: Duration = Duration::from_secs(15);

/// Bytes of probes in a second on average, tunnel's and IP headers included: full-size probes get what the small ones
/// leave, and not less than [`FULL_RATE`]. So many of them may follow each other.
const RATE: usize = 900;
const EACH_PEER: usize = 108;
const FULL_RATE: usize = 100;
const FULL_BURST: f64 = 4.0;

/// Lost probes that are repeated at once; the others' turn comes with the round.
const REPEATS: usize = 256;

/// How long the first judgement holds while the fault lasts: each further one that finds the same holds twice as long,
/// up to [`ASK_AGAIN`].
const JUDGE_AGAIN: Duration = Duration::from_secs(30);

/// How many closer looks in a row may miss a firewall's reports before it counts as gone: hosts report few of the
/// packets that they reject.
const FILTER_LOOKS: u8 = 2;

/// How often the nodes are divided again into those that answer and the others: it looks at all of them.
const DIVIDE_EVERY: Duration = Duration::from_secs(60);

/// Bytes of the IP and UDP headers.
pub(super) fn headers(family: Family) -> usize {
    match family {
        Family::V4 => 28,
        Family::V6 => 48,
    }
}

/// What the main loop knows: this node, and the nodes to probe.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Changes whenever something below does.
    pub(crate) version: u64,
    /// Where this node sends from past the tunnel.
    pub(crate) underlay: Dual<IpAddr>,
    /// This node's address on a device of the backend; none for backends without.
    pub(crate) overlay: Dual<IpAddr>,
    /// Bytes of the largest packet of a container.
    pub(crate) mtu: u32,
    /// What carries packets, for messages: `vxlan (UDP 8472)`.
    pub(crate) tunnel: String,
    /// The other nodes.
    pub(crate) targets: Vec<Target>,
}

impl View {
    /// Returns the same without the other nodes.
    pub(super) fn addresses(&self) -> View {
        View {
            targets: Vec::new(),
            tunnel: String::new(),
            ..*self
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    key: SubnetKey,
    family: Family,
    kind: Kind,
    to: IpAddr,
    at: Duration,
}

/// A datagram to be sent.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) family: Family,
    pub(super) way: Way,
    pub(super) to: IpAddr,
    pub(super) bytes: Vec<u8>,
    pub(super) nonce: u64,
}

/// A node whose silence is to be explained.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) key: SubnetKey,
    pub(super) family: Family,
    pub(super) public_ip: Option<IpAddr>,
    pub(super) overlay: Option<IpAddr>,
    /// The node has answered a probe since the start.
    pub(super) heard: bool,
}

/// What rejects packets, as the closer looks have shown.
#[derive(Clone, Copy, Debug)]
struct Rejection {
    filter: Filter,
    /// Closer looks since then that did not show it.
    looks: u8,
}

/// A node that begins to fail, or no longer does.
#[derive(Debug, PartialEq)]
pub(super) struct Change {
    pub(super) key: SubnetKey,
    pub(super) state: ProbeState,
}

/// Totals since the start.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    pub(super) answered: u64,
    pub(super) lost: u64,
    pub(super) rtt: RttHistogram,
}

/// The other nodes.
pub(super) struct Mesh {
    view: View,
    /// In the order of their subnets.
    peers: Vec<Peer>,
    sources: Sources,
    /// Nodes that have answered since the start, or have asked.
    answering: Round,
    /// Nodes that have not answered yet, and are not left alone just now.
    others: Round,
    allowance: Allowance,
    divided: Duration,
    pending: BTreeMap<u64, Pending>,
    repeats: VecDeque<(SubnetKey, Family, Kind)>,
    cases: VecDeque<(SubnetKey, Family)>,
    /// What rejects packets, where that is the cause.
    filters: BTreeMap<(SubnetKey, Family), Rejection>,
    changes: Vec<Change>,
    pub(super) responder: Responder,
    pub(super) totals: Totals,
    full_bytes: f64,
    ticked: Duration,
    numbers: RandomState,
    number: u64,
    random: fastrand::Rng,
}

impl Mesh {
    pub(super) fn new() -> Mesh {
        Mesh {
            view: View::default(),
            peers: Vec::new(),
            sources: Sources::default(),
            answering: Round::default(),
            others: Round::default(),
            allowance: Allowance::default(),
            divided: Duration::ZERO,
            pending: BTreeMap::new(),
            repeats: VecDeque::new(),
            cases: VecDeque::new(),
            filters: BTreeMap::new(),
            changes: Vec::new(),
            responder: Responder::default(),
            totals: Totals::default(),
            full_bytes: f64::MAX,
            ticked: Duration::ZERO,
            numbers: RandomState::new(),
            number: 0,
            random: fastrand::Rng::new(),
        }
    }

    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// Takes in what the main loop knows. What is known of nodes that have not changed is kept.
    pub(super) fn update(&mut self, mut view: View) {
        let mut targets = std::mem::take(&mut view.targets);
        targets.sort_unstable_by(Target::cmp);
        targets.dedup_by(|a, b| Target::cmp(a, b).is_eq());
        // Another address of this node, or another tunnel: what was measured was another way.
        let same = view.overlay == self.view.overlay && view.underlay == self.view.underlay;
        let mut old = std::mem::take(&mut self.peers).into_iter().peekable();
        self.peers.reserve_exact(targets.len());
        for target in targets {
            let is_before = |peer: &Peer| peer.target.cmp(&target).is_lt();
            while old.next_if(is_before).is_some() {}
            let known = old.next_if(|peer| peer.target.cmp(&target).is_eq());
            let mut peer = match known {
                Some(peer) if peer.target == target && same => peer,
                _ => Peer::new(target, 2 * UNDERLAY_EVERY),
            };
            peer.set_own(&view.overlay, &view.underlay);
            self.peers.push(peer);
        }
        self.view = view;
        self.index();
    }

    fn index(&mut self) {
        self.sources.set(&self.peers);
        self.divide();
        let peers = &self.peers;
        // One that was never probed is new: what is under way is about the node whose subnet it has taken over.
        let peer = |key: &SubnetKey| find(peers, key).and_then(|at| peers.get(at));
        let known = |key: &SubnetKey| peer(key).is_some_and(|peer| peer.probed_at.is_some());
        self.pending.retain(|_, pending| known(&pending.key));
        self.repeats.retain(|(key, ..)| known(key));
        self.cases.retain(|(key, _)| known(key));
        self.filters.retain(|(key, _), _| known(key));
    }

    /// Divides the nodes into those that have answered or asked, and the others. In each round, those come first whose
    /// turn is longest ago.
    fn divide(&mut self) {
        let (own, now, peers) = (self.view.overlay, self.ticked, &self.peers);
        self.divided = now;
        let mut all: Vec<(Option<At>, u32)> = peers
            .iter()
            .zip(0..)
            .filter(|(peer, _)| !peer.is_passed_over(&own, now))
            .map(|(peer, at)| (peer.probed_at, at))
            .collect();
        self.random.shuffle(&mut all);
        all.sort_by_key(|(probed_at, _)| *probed_at);
        let answers = |at: &u32| {
            let peer = peers.get(*at as usize);
            peer.is_some_and(|peer| peer.asked || peer.was_ever_heard())
        };
        let (answering, others) = all.into_iter().map(|(_, at)| at).partition(answers);
        (self.answering, self.others) = (Round::new(answering), Round::new(others));
    }

    /// Does what is due, once a second. `ready` says by which ways this node can send.
    pub(super) fn tick(
        &mut self,
        now: Duration,
        ready: impl Fn(Family, Way) -> bool,
    ) -> Vec<Outgoing> {
        self.expire(now);
        let past = now.saturating_sub(self.ticked).as_secs_f64();
        self.ticked = now;
        self.allowance.refill(past);
        if now >= self.divided + DIVIDE_EVERY {
            self.divide();
        }
        let full = f64::from(self.view.mtu);
        let each = self.peers.len().div_ceil(ROUND).clamp(1, MOST);
        let rate = RATE.saturating_sub(each * EACH_PEER).max(FULL_RATE) as f64;
        self.full_bytes = (self.full_bytes + past * rate).min(full * FULL_BURST);
        let mut sent = Vec::new();
        for _ in 0..self.repeats.len().min(each + 8) {
            if let Some((key, family, kind)) = self.repeats.pop_front()
                && let Some(at) = find(&self.peers, &key)
            {
                sent.extend(self.send(at, family, kind, now, &ready));
            }
        }
        for at in self.next_peers(each, now) {
            for (family, kind) in self.turn(at, now) {
                sent.extend(self.send(at, family, kind, now, &ready));
            }
        }
        sent
    }

    /// Returns the nodes whose turn it is. Nodes that have never answered cost the most, a closer look each: they get
    /// what the allowance has, and never all of the turns.
    fn next_peers(&mut self, count: usize, now: Duration) -> Vec<usize> {
        let (own, peers) = (self.view.overlay, &mut self.peers);
        let mut chosen = Vec::with_capacity(count + 1);
        let others = count.saturating_sub(count.div_ceil(MOST)).max(1);
        for _ in 0..self.others.len().min(others) {
            if !self.allowance.has_one() {
                break;
            }
            let Some(at) = self.others.next(&mut self.random) else {
                break;
            };
            if let Some(peer) = peers.get_mut(at)
                && !peer.was_ever_heard()
                && !peer.is_passed_over(&own, now)
            {
                self.allowance.take();
                peer.charged = true;
                chosen.push(at);
            }
        }
        let left = count.saturating_sub(chosen.len()).max(1);
        for _ in 0..self.answering.len().min(left) {
            if let Some(at) = self.answering.next(&mut self.random)
                && peers
                    .get(at)
                    .is_some_and(|peer| !peer.is_passed_over(&own, now))
            {
                chosen.push(at);
            }
        }
        chosen
    }

    /// Returns what a node is to get in its turn.
    fn turn(&mut self, at: usize, now: Duration) -> Vec<(Family, Kind)> {
        let own = self.view.overlay;
        let Some(peer) = self.peers.get_mut(at) else {
            return Vec::new();
        };
        peer.probed_at = Some(At::of(now));
        peer.asked = false;
        let turn = peer.turn;
        peer.turn = turn.wrapping_add(1) % (2 * UNDERLAY_EVERY);
        let families: Vec<Family> = peer.families().collect();
        let Some(&family) = families.get(usize::from(turn) % families.len().max(1)) else {
            return Vec::new();
        };
        let Some(links) = peer.links(family) else {
            return Vec::new();
        };
        let way = links.main_way(&own, family);
        let mut kinds = vec![(family, Kind::Small(way))];
        let underlay_due = usize::from(turn) % (usize::from(UNDERLAY_EVERY)) < families.len();
        let fails = links.overlay.is_probed() && !links.overlay.is_good();
        if way == Way::Overlay && (underlay_due || fails) {
            kinds.push((family, Kind::Small(Way::Underlay)));
        }
        let full_due = links.full_at.is_none_or(|at| at.is_past(FULL_EVERY, now));
        if links.main(&own, family).is_good()
            && full_due
            && self.full_bytes >= f64::from(self.view.mtu)
        {
            kinds.push((family, Kind::Full));
        }
        kinds
    }

    fn send(
        &mut self,
        at: usize,
        family: Family,
        kind: Kind,
        now: Duration,
        ready: impl Fn(Family, Way) -> bool,
    ) -> Option<Outgoing> {
        let nonce = self.number();
        let own = self.view.overlay;
        let peer = self.peers.get_mut(at)?;
        let key = peer.target.key();
        let way = match kind {
            Kind::Small(way) => way,
            Kind::Full => peer.links(family)?.main_way(&own, family),
        };
        let to = match way {
            Way::Overlay => peer.target.overlay(family)?,
            Way::Underlay => *peer.target.public_ip().get(family)?,
        };
        if !ready(family, way) {
            return None;
        }
        let links = peer.links_mut(family)?;
        let mut len = packet::HEADER;
        if kind == Kind::Full {
            let full = self.view.mtu as usize;
            len = full.checked_sub(headers(family)).filter(|l| *l > len)?;
            if self.full_bytes < full as f64 {
                return None;
            }
            self.full_bytes -= full as f64;
            links.full_at = Some(At::of(now));
        }
        if way == Way::Overlay {
            links.sent.rotate_right(1);
            links.sent[0] = packet::low(nonce);
        }
        let pending = Pending {
            key,
            family,
            kind,
            to,
            at: now,
        };
        self.pending.insert(nonce, pending);
        Some(Outgoing {
            family,
            way,
            to,
            bytes: packet::request(nonce, len, Wish::default()),
            nonce,
        })
    }

    /// Returns a number that nobody can guess, whatever numbers they have seen: of a hash with a secret key.
    pub(super) fn number(&mut self) -> u64 {
        self.number = self.number.wrapping_add(1);
        self.numbers.hash_one(self.number)
    }

    /// Records when a request was sent.
    pub(super) fn sent(&mut self, nonce: u64, now: Duration) {
        if let Some(pending) = self.pending.get_mut(&nonce) {
            pending.at = now;
        }
    }

    /// Forgets a request that did not leave this host for want of memory: that shows nothing.
    pub(super) fn not_sent(&mut self, nonce: u64) {
        self.pending.remove(&nonce);
    }

    fn expire(&mut self, now: Duration) {
        let late = |pending: &Pending| now >= pending.at + PATIENCE;
        let lost: Vec<(u64, Pending)> = self
            .pending
            .iter()
            .filter(|(_, pending)| late(pending))
            .map(|(nonce, pending)| (*nonce, *pending))
            .collect();
        for (nonce, pending) in lost {
            self.pending.remove(&nonce);
            self.lost(pending, now);
        }
    }

    fn lost(&mut self, pending: Pending, now: Duration) {
        let Pending {
            key, family, kind, ..
        } = pending;
        self.totals.lost += 1;
        let own = self.view.overlay;
        let Some(peer) = find(&self.peers, &key).and_then(|at| self.peers.get_mut(at)) else {
            return;
        };
        let Some(links) = peer.links_mut(family) else {
            return;
        };
        let main = Kind::Small(links.main_way(&own, family));
        let track = links.track(kind);
        track.lost();
        let (suspect, broken) = (track.is_suspect(), track.is_broken());
        if suspect && self.repeats.len() < REPEATS {
            self.repeats.push_back((key, family, kind));
        }
        let holds = match links.cause {
            Some(cause) if !cause.is_fault() => ASK_AGAIN,
            _ => {
                let same = links.judged.saturating_sub(1).min(8);
                ASK_AGAIN.min(JUDGE_AGAIN * (1 << same))
            }
        };
        let judged = links.judged_at.is_some_and(|at| !at.is_past(holds, now));
        if broken && kind == main && !judged && !links.judging {
            links.judging = true;
            self.cases.push_back((key, family));
        }
        self.follow(&key);
    }

    /// Takes in a datagram that arrived by one of this node's addresses. Returns what to answer.
    pub(super) fn receive(
        &mut self,
        now: Duration,
        from: IpAddr,
        way: Way,
        bytes: &[u8],
    ) -> Option<(Vec<u8>, Wish)> {
        let own = self.view.overlay;
        match packet::parse(bytes)? {
            Datagram::Request {
                nonce,
                wish,
                len,
                intact,
            } => {
                let at = self.sources.find(&from, &self.peers);
                let mut peer = at.and_then(|at| self.peers.get_mut(at));
                let bucket = peer.as_mut().map(|peer| &mut peer.bucket);
                if !self.responder.admits(now, bucket, len) {
                    return None;
                }
                // It may answer now, or its turn has not come yet: whoever asks knows probes.
                let waits = |peer: &Peer| !peer.was_ever_heard() || peer.is_silent(&own);
                if let Some(peer) = peer.as_mut().filter(|peer| !peer.asked && waits(peer)) {
                    peer.asked = true;
                    self.answering.extend(at.map(|at| at as u32));
                }
                let links = peer?.links_mut(Family::of(&from));
                let mut seen = 0;
                if let Some(links) = links {
                    if way == Way::Overlay {
                        links.seen = packet::low(nonce);
                    }
                    seen = links.seen;
                }
                Some((packet::answer(nonce, wish, len, intact, seen), wish))
            }
            Datagram::Answer { nonce, intact, .. } => {
                let pending = *self.pending.get(&nonce)?;
                // Only the node that was asked knows the number, and only it sends from there.
                if pending.to != from {
                    return None;
                }
                self.pending.remove(&nonce);
                self.answered(pending, now, intact);
                None
            }
        }
    }

    fn answered(&mut self, pending: Pending, now: Duration, intact: bool) {
        let Pending {
            key, family, kind, ..
        } = pending;
        let rtt = now.saturating_sub(pending.at);
        let own = self.view.overlay;
        let Some(at) = find(&self.peers, &key) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(at) else {
            return;
        };
        let Some(links) = peer.links_mut(family) else {
            return;
        };
        if kind == Kind::Full && !intact {
            links.corrupted = true;
            self.lost(pending, now);
            return;
        }
        self.totals.answered += 1;
        let main = Kind::Small(links.main_way(&own, family));
        links.track(kind).answered(rtt);
        if kind == Kind::Full {
            links.corrupted = false;
        } else if kind == main {
            self.totals.rtt.observe(rtt);
            (links.cause, links.judged_at, links.judged) = (None, None, 0);
            self.filters.remove(&(key, family));
        } else if matches!(links.cause, Some(Cause::UnderlayDown | Cause::Filtered)) {
            // Something else is wrong now.
            links.judged_at = None;
        }
        if std::mem::take(&mut peer.charged) {
            self.allowance.give_back();
            self.answering.extend(Some(at as u32));
        }
        self.follow(&key);
    }

    /// Returns nodes whose silence is to be explained, at most so many.
    pub(super) fn cases(&mut self, most: usize) -> Vec<Case> {
        let own = self.view.overlay;
        let mut cases = Vec::new();
        while cases.len() < most
            && let Some((key, family)) = self.cases.pop_front()
        {
            let Some(peer) = find(&self.peers, &key).and_then(|at| self.peers.get_mut(at)) else {
                continue;
            };
            let (public_ip, heard) = (peer.target.public_ip(), peer.was_ever_heard());
            let overlay = peer.target.overlay(family);
            let Some(links) = peer.links_mut(family) else {
                continue;
            };
            links.judging = false;
            if !links.main(&own, family).is_broken() {
                continue;
            }
            links.judging = true;
            cases.push(Case {
                key,
                family,
                public_ip: public_ip.get(family).copied(),
                overlay: overlay.filter(|_| own.get(family).is_some()),
                heard,
            });
        }
        cases
    }

    /// Takes in what was found about a case. `seen` is what the node's last answer past the tunnel says that it has
    /// received, `filter` is what rejects packets.
    pub(super) fn judge(
        &mut self,
        case: &Case,
        evidence: Evidence,
        seen: Option<u16>,
        filter: Option<Filter>,
        now: Duration,
    ) {
        let seen = seen.filter(|seen| *seen != 0);
        let own = self.view.overlay;
        let Some(peer) = find(&self.peers, &case.key).and_then(|at| self.peers.get_mut(at)) else {
            return;
        };
        let before = peer.was_ever_heard();
        let Some(links) = peer.links_mut(case.family) else {
            return;
        };
        links.judging = false;
        if !links.main(&own, case.family).is_broken() {
            return;
        }
        links.judged_at = Some(At::of(now));
        // A router or this host reports that there is no way: what is wrong now is not the firewall.
        let place = (case.key, case.family);
        let remembered = self.filters.get(&place).map(|known| Rejection {
            looks: known.looks.saturating_add(1),
            ..*known
        });
        let rejection = match filter {
            Some(filter) => Some(Rejection { filter, looks: 0 }),
            None => remembered.filter(|known| {
                known.looks <= FILTER_LOOKS && evidence.underlay != Underlay::Unreachable
            }),
        };
        let cause = judge(Evidence {
            is_filtered: rejection.is_some(),
            has_overlay: own.get(case.family).is_some(),
            overlay_before: links.overlay.was_ever_answered(),
            arrived: evidence.arrived || seen.is_some_and(|seen| links.sent.contains(&seen)),
            before,
            ..evidence
        });
        links.judged = if cause == links.cause {
            links.judged.saturating_add(1)
        } else {
            1
        };
        links.cause = cause;
        match rejection.filter(|_| links.cause == Some(Cause::Filtered)) {
            Some(rejection) => {
                // What this look did not show is looked at again soon.
                if rejection.looks > 0 {
                    links.judged = 1;
                }
                self.filters.insert(place, rejection);
            }
            None => {
                self.filters.remove(&place);
            }
        }
        // The fault is over: do not leave the node's state unknown until its next turn.
        if links.cause.is_none() && self.repeats.len() < REPEATS {
            let main = Kind::Small(links.main_way(&own, case.family));
            self.repeats.push_back((case.key, case.family, main));
        }
        self.follow(&case.key);
    }

    /// Notes whether a node begins to fail, or no longer does.
    fn follow(&mut self, key: &SubnetKey) {
        let own = self.view.overlay;
        let Some(peer) = find(&self.peers, key).and_then(|at| self.peers.get_mut(at)) else {
            return;
        };
        let (state, _) = peer.state(&own);
        let fails = state == ProbeState::Failing;
        // While the cause of a silence is looked for, nothing is known.
        if fails != peer.reported && (fails || state != ProbeState::Unknown) {
            peer.reported = fails;
            self.changes.push(Change { key: *key, state });
        }
    }

    /// Returns which nodes have begun to fail, or no longer do, since the last call.
    pub(super) fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Looks at every node: its target, state and cause, and what was measured.
    pub(super) fn each(&self, mut f: impl FnMut(&Seen<'_>)) {
        for peer in &self.peers {
            f(&self.seen(peer));
        }
    }

    /// Looks at one node.
    pub(super) fn one<T>(&self, key: &SubnetKey, f: impl FnOnce(&Seen<'_>) -> T) -> Option<T> {
        let peer = find(&self.peers, key).and_then(|at| self.peers.get(at))?;
        Some(f(&self.seen(peer)))
    }

    fn seen<'a>(&'a self, peer: &'a Peer) -> Seen<'a> {
        let own = &self.view.overlay;
        let (state, cause) = peer.state(own);
        let key = peer.target.key();
        let links = |family| {
            let links = peer.links(family)?;
            let through = links.main_way(own, family) == Way::Overlay;
            Some(LinksSeen {
                main: *links.main(own, family),
                underlay: through.then_some(links.underlay),
                full: links.full,
                state: links.state(own, family),
                filter: self.filters.get(&(key, family)).map(|known| known.filter),
            })
        };
        Seen {
            target: &peer.target,
            state,
            cause,
            links: Dual::from_fn(links),
        }
    }
}

/// What is known of a node.
pub(super) struct Seen<'a> {
    pub(super) target: &'a Target,
    pub(super) state: ProbeState,
    pub(super) cause: Option<Cause>,
    pub(super) links: Dual<LinksSeen>,
}

/// What is known of one family of a node.
pub(super) struct LinksSeen {
    /// The way of containers' packets.
    pub(super) main: Track,
    /// Past the tunnel, if there is one.
    pub(super) underlay: Option<Track>,
    pub(super) full: Track,
    pub(super) state: (ProbeState, Option<Cause>),
    /// What rejects packets.
    pub(super) filter: Option<Filter>,
}

fn find(peers: &[Peer], key: &SubnetKey) -> Option<usize> {
    peers
        .binary_search_by(|peer| peer.target.key().cmp(key))
        .ok()
}

#[cfg(test)]
mod tests;
