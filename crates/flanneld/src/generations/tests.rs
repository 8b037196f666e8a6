//! Nodes that change from backend to backend in any order: those that could talk can talk, at every step.

use std::collections::{BTreeMap, BTreeSet};

use dataplane::fake::FakeKernel;
use dataplane::{KernelEvent, Scope};
use model::WgSecret;
use proptest::prelude::*;

use super::*;
use crate::cluster::Cluster;
use crate::identity::wg_key;
use crate::reconcile::Reconciler;

const KINDS: [&str; 6] = ["vxlan", "host-gw", "wireguard", "udp", "ipsec", "extension"];
const NODES: usize = 3;

fn config(kind: &str) -> NetConfig {
    let options = match kind {
        "ipsec" => format!(r#","PSK":"{}""#, "x".repeat(96)),
        "extension" => r#","SubnetAddCommand":"add""#.to_owned(),
        _ => String::new(),
    };
    let json = format!(r#"{{"Network":"10.1.0.0/16","Backend":{{"Type":"{kind}"{options}}}}}"#);
    NetConfig::from_json(&json).unwrap()
}

fn host(node: usize) -> Host {
    let ip = format!("192.168.0.{}", node + 1).parse().unwrap();
    let of_v4 = Dual {
        v4: Some(ip),
        v6: None,
    };
    Host {
        iface: "eth0".parse().unwrap(),
        ifindex: 2,
        mtu: 1500,
        kind: String::new(),
        addr: of_v4,
        public_ip: of_v4,
        on_link: vec!["192.168.0.0/24".parse().unwrap()],
        underlay: Vec::new(),
    }
}

fn lease(node: usize, attrs: LeaseAttrs) -> Lease {
    Lease {
        key: format!("10.1.{}.0-24", node + 1).parse().unwrap(),
        attrs,
        seniority: node as u64,
    }
}

/// A backend that comes into use on a node.
fn generation(node: usize, config: NetConfig, now: Instant) -> Generation {
    let identity = match config.backend.kind {
        BackendType::Wireguard => wg_key(WgSecret([node as u8 + 1; 32]), None, true),
        _ => Identity::Nothing,
    };
    let mut backend = backend::new(&config, &host(node), &identity, None).unwrap();
    backend.set_own(&lease(node, LeaseAttrs::default()).key);
    Generation::new(config, identity, backend, now)
}

struct Node {
    number: usize,
    in_use: Generations,
    /// What the store shows of it.
    published: LeaseAttrs,
    /// What it knows of the others.
    seen: BTreeMap<usize, LeaseAttrs>,
    /// Whom it has reached encrypted.
    sealed: BTreeSet<usize>,
    /// With whom it has agreed on keys.
    agreed: BTreeSet<usize>,
    /// To whom the kernel sends nothing unencrypted.
    policies: BTreeSet<usize>,
}

impl Node {
    fn new(number: usize, kind: &str, now: Instant) -> Node {
        let mut first = generation(number, config(kind), now);
        first.is_served(true, now);
        let mut in_use = Generations::new(first);
        in_use.node(&lease(number, LeaseAttrs::default()), &host(number));
        Node {
            number,
            published: in_use.publish(),
            in_use,
            seen: BTreeMap::new(),
            sealed: BTreeSet::new(),
            agreed: (0..NODES).collect(),
            policies: BTreeSet::new(),
        }
    }

    fn has_ipsec(&self) -> bool {
        let mut all = self.in_use.all().iter();
        all.any(|own| own.ready && own.backend.needs_connection())
    }

    /// Whether it sees that a peer serves IPsec, and serves it, too.
    fn connects_to(&self, peer: usize) -> bool {
        self.has_ipsec() && self.seen[&peer].offers_type(&BackendType::Ipsec)
    }

    fn serve(&self, peer: usize, now: Instant) -> Served {
        let seen = lease(peer, self.seen[&peer].clone());
        let sealed = self.sealed.contains(&peer);
        let holds = |object: &Object| match object {
            Object::IkeConnection(..) => self.agreed.contains(&peer),
            _ => self.policies.contains(&peer),
        };
        let host = host(self.number);
        self.in_use.serve(&seen, &host, sealed, &holds, now)
    }

    /// Restarts its daemon, which knows what it had in use and what it published.
    fn restart(&mut self, now: Instant) {
        let kept = self.in_use.kept(now);
        let mut all = kept.into_iter().map(|Kept { backend, known }| {
            let kind = backend.kind.to_string();
            let mut own = generation(self.number, config(&kind), now);
            if own.is_offered_by(&self.published) {
                own.is_served(known, now);
            }
            own
        });
        let mut in_use = Generations::new(all.next().unwrap());
        all.for_each(|former| in_use.add_former(former));
        self.in_use = in_use;
        self.after_change();
    }

    fn after_change(&mut self) {
        let own = lease(self.number, LeaseAttrs::default());
        self.in_use.node(&own, &host(self.number));
        if !self.has_ipsec() {
            self.agreed.clear();
        }
        if !self.in_use.newest().backend.encrypts() {
            self.sealed.clear();
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Somebody changes the configuration.
    Change(usize),
    /// A node learns of it.
    Learn(usize),
    /// A node's new devices are there.
    Ready(usize),
    Publish(usize),
    /// A node learns of what another one has published.
    See(usize, usize),
    /// All is delivered, and seconds pass.
    Wait(u64),
    Retire(usize),
    /// Two nodes agree on keys.
    Agree(usize, usize),
    Restart(usize),
}

fn some_step() -> impl Strategy<Value = Step> {
    let node = 0..NODES;
    prop_oneof![
        1 => (0..KINDS.len()).prop_map(Step::Change),
        4 => node.clone().prop_map(Step::Learn),
        4 => node.clone().prop_map(Step::Ready),
        4 => node.clone().prop_map(Step::Publish),
        6 => (node.clone(), node.clone()).prop_map(|(a, b)| Step::See(a, b)),
        2 => (1..15_u64).prop_map(Step::Wait),
        3 => node.clone().prop_map(Step::Retire),
        4 => (node.clone(), node.clone()).prop_map(|(a, b)| Step::Agree(a, b)),
        1 => node.prop_map(Step::Restart),
    ]
}

/// What is wrong between two nodes, if anything.
fn fault(from: &Node, to: &mut Node, now: Instant) -> Option<String> {
    let served = from.serve(to.number, now);
    let Some(by) = served.by else {
        return Some("it is not reached".into());
    };
    let by = &from.in_use.all()[by];
    let kind = by.backend.kind();
    if !by.ready {
        return Some(format!("it is reached by {kind}, which is not there"));
    }
    let receives = |own: &&Generation| own.backend.kind() == kind && own.ready;
    let Some(receiver) = to.in_use.all().iter().find(receives) else {
        return Some(format!(
            "it is reached by {kind}, which it does not receive"
        ));
    };
    if receiver.backend.needs_connection() {
        if !from.agreed.contains(&to.number) {
            return Some("it is reached by ipsec without keys".into());
        }
    } else if to.has_ipsec() {
        let own = lease(to.number, LeaseAttrs::default());
        let node = to.in_use.node(&own, &host(to.number)).into_iter();
        let node = node.flat_map(|(_, objects)| objects);
        let strict = |object: &Object| match object {
            Object::XfrmPolicy(_, XfrmPolicy::Block) => true,
            Object::XfrmPolicy(key, XfrmPolicy::Tunnel { or_plain, .. }) => {
                key.dir != XfrmDir::Out && !or_plain
            }
            _ => false,
        };
        let peer = to.serve(from.number, now).plan.objects;
        if let Some(object) = node.chain(peer).find(strict) {
            return Some(format!(
                "it is reached by {kind}, and drops that: {object:?}"
            ));
        }
    }
    let receiver = to.in_use.all().iter().find(receives)?;
    if receiver.backend.needs_acquaintance() {
        let objects = to.serve(from.number, now).plan.objects;
        if !objects
            .iter()
            .any(|object| matches!(object, Object::WgPeer(..)))
        {
            return Some(format!(
                "it is reached by {kind}, and does not know the key"
            ));
        }
    }
    let net = *lease(to.number, LeaseAttrs::default()).key.nets();
    let own_route = RouteKey::to(net.v4.unwrap());
    let routed = |object: &Object| matches!(object, Object::Route(key, _) if *key == own_route);
    let objects = || served.plan.objects.iter();
    let count = |which: fn(&Object) -> bool| objects().filter(|object| which(object)).count();
    let commands = count(|object| matches!(object, Object::PeerCommand(..)));
    let policies = count(encrypts_to_peer);
    if commands != usize::from(kind == BackendType::Extension)
        || policies != usize::from(kind == BackendType::Ipsec)
    {
        return Some(format!("{kind}: {commands} commands, {policies} policies"));
    }
    let routes = objects().filter(|object| routed(object)).count();
    match routes {
        0 if kind == BackendType::Extension => None,
        0 if !from.in_use.is_changing() && by.wide.v4.is_some() => None,
        1 => None,
        count => Some(format!("it has {count} routes")),
    }
}

/// Returns two nodes, the second to be changed.
fn two_of(nodes: &mut [Node], one: usize, other: usize) -> (&Node, &mut Node) {
    let (low, high) = nodes.split_at_mut(one.max(other));
    let (first, second) = (&mut low[one.min(other)], &mut high[0]);
    if one < other {
        (first, second)
    } else {
        (second, first)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whoever_could_talk_can_talk(first in 0..KINDS.len(), steps in proptest::collection::vec(some_step(), 0..120)) {
        let mut now = Instant::now();
        let mut wanted = KINDS[first];
        let mut nodes: Vec<Node> = (0..NODES).map(|number| Node::new(number, wanted, now)).collect();
        let deliver = |nodes: &mut Vec<Node>| {
            let all: Vec<LeaseAttrs> = nodes.iter().map(|node| node.published.clone()).collect();
            for node in nodes {
                for (number, attrs) in all.iter().enumerate().filter(|(n, _)| *n != node.number) {
                    node.seen.insert(number, attrs.clone());
                }
            }
        };
        deliver(&mut nodes);
        for step in steps {
            match step.clone() {
                Step::Change(kind) => wanted = KINDS[kind],
                Step::Learn(node) => {
                    let newer = generation(node, config(wanted), now);
                    nodes[node].in_use.add(newer);
                    nodes[node].after_change();
                }
                Step::Ready(node) => {
                    nodes[node].in_use.all_mut().iter_mut().for_each(|own| own.ready = true);
                    nodes[node].after_change();
                }
                Step::Publish(node) => {
                    let node = &mut nodes[node];
                    node.published = node.in_use.publish();
                    node.in_use.published(&node.published, now);
                }
                Step::See(node, other) if node != other => {
                    let attrs = nodes[other].published.clone();
                    nodes[node].seen.insert(other, attrs);
                }
                Step::See(..) => {}
                Step::Wait(seconds) => {
                    deliver(&mut nodes);
                    now += Duration::from_secs(seconds);
                }
                Step::Retire(node) => {
                    let others = (0..NODES).filter(|other| *other != node);
                    let lags = others.into_iter().any(|other| nodes[node].serve(other, now).lags);
                    if !nodes[node].in_use.retire(lags, NODES - 1, now).is_empty() {
                        nodes[node].after_change();
                    }
                }
                Step::Agree(one, other) if one != other => {
                    if nodes[one].connects_to(other) && nodes[other].connects_to(one) {
                        nodes[one].agreed.insert(other);
                        nodes[other].agreed.insert(one);
                    }
                }
                Step::Agree(..) => {}
                Step::Restart(node) => nodes[node].restart(now),
            }
            for from in 0..NODES {
                for to in (0..NODES).filter(|to| *to != from) {
                    // Keys that both have agreed on stay until one of them has no use for them.
                    if !nodes[from].connects_to(to) || !nodes[to].connects_to(from) {
                        nodes[from].agreed.remove(&to);
                        nodes[to].agreed.remove(&from);
                    }
                    let (one, other) = two_of(&mut nodes, from, to);
                    let fault = fault(one, other, now);
                    prop_assert_eq!(fault, None, "from {} to {} after {:?}", from, to, &step);
                    let by = nodes[from].serve(to, now).by.unwrap();
                    let generations = nodes[from].in_use.all();
                    let encrypted = generations[by].backend.encrypts();
                    let by_ipsec = generations[by].backend.needs_connection();
                    let must = nodes[from].sealed.contains(&to) && generations[0].backend.encrypts();
                    prop_assert!(encrypted || !must, "from {} to {} in the clear after {:?}", from, to, &step);
                    if encrypted {
                        nodes[from].sealed.insert(to);
                    }
                    if by_ipsec {
                        nodes[from].policies.insert(to);
                    } else {
                        nodes[from].policies.remove(&to);
                    }
                }
            }
        }
    }
}

#[test]
fn a_former_backend_goes_when_nobody_needs_it() {
    let now = Instant::now();
    let later = |seconds| now + Duration::from_secs(seconds);
    let mut node = Node::new(0, "vxlan", now);
    node.in_use.add(generation(0, config("host-gw"), now));
    let before = node.in_use.publish();
    assert_eq!(
        before, node.published,
        "nothing is offered before it is there"
    );
    for generation in node.in_use.all_mut() {
        generation.ready = true;
    }
    let both = node.in_use.publish();
    assert_eq!(both.backend_type, Some(BackendType::HostGw));
    assert_eq!(both.also.len(), 1);
    assert_eq!(node.in_use.mtu(), 1450, "what either carries");
    let stays = |node: &mut Node, lags, seconds, why| {
        let gone = node.in_use.retire(lags, 1, later(seconds));
        assert!(gone.is_empty(), "{why}");
    };
    stays(&mut node, false, 100, "the store does not show it");
    node.in_use.published(&both, later(100));
    stays(&mut node, false, 100, "it has just been shown");
    stays(&mut node, true, 200, "a peer has come that needs it");
    stays(&mut node, false, 200, "that has just ended");
    assert_eq!(node.in_use.publish(), both);
    stays(&mut node, false, 220, "others may not know that it goes");
    let alone = node.in_use.publish();
    assert!(alone.also.is_empty());
    node.in_use.published(&alone, later(221));
    stays(&mut node, false, 222, "others may not know that it goes");
    assert_eq!(node.in_use.retire(false, 1, later(230)), [0]);
    assert_eq!(node.in_use.mtu(), 1500);
}

#[test]
fn a_former_backend_that_this_node_tries_is_there_once() {
    let now = Instant::now();
    let mut node = Node::new(0, "vxlan", now);
    node.in_use.add(generation(0, config("host-gw"), now));
    for generation in node.in_use.all_mut() {
        generation.ready = true;
    }
    let slots = |node: &Node| -> Vec<(BackendType, Slot)> {
        let all = node.in_use.all().iter();
        all.map(|own| (own.backend.kind(), own.slot)).collect()
    };
    let (gw, vxlan) = ((BackendType::HostGw, 1), (BackendType::Vxlan, 0));
    assert_eq!(slots(&node), [gw.clone(), vxlan.clone()]);
    node.in_use.add_trial(generation(0, config("vxlan"), now));
    assert_eq!(slots(&node), [vxlan.clone(), gw.clone()]);
    assert!(!node.in_use.is_changing() && node.in_use.trial().is_some());
    let offered = node.in_use.publish();
    assert_eq!(offered.backend_type, Some(BackendType::HostGw));
    assert_eq!(offered.also.len(), 1, "others still send by it");
    // Where it can be tried no longer, it goes like a former one.
    node.in_use.retire_trial();
    assert_eq!(slots(&node), [gw, vxlan]);
    assert!(node.in_use.is_changing() && node.in_use.trial().is_none());
    assert_eq!(node.in_use.publish(), offered);
}

/// A change to ipsec seen by one node: the kernel is written again as soon as keys are agreed on, and not before.
#[tokio::test]
async fn a_peer_is_reached_encrypted_as_soon_as_keys_are_agreed_on() {
    let now = Instant::now();
    let changing = |number| {
        let mut node = Node::new(number, "vxlan", now);
        node.in_use.add(generation(number, config("ipsec"), now));
        for generation in node.in_use.all_mut() {
            generation.ready = true;
        }
        node
    };
    let own = lease(0, LeaseAttrs::default()).key;
    let kernel = FakeKernel::new(true);
    let address = "192.168.0.1/24".parse().unwrap();
    kernel.add_iface("eth0".parse().unwrap(), 2, 1500, &[address]);
    let scope = Scope {
        devices: Vec::new(),
        iface: "eth0".parse().unwrap(),
        network: networks(&config("ipsec")),
        own: *own.nets(),
        take_over: false,
    };
    let mut reconciler = Reconciler::new(kernel.another(), scope);
    let mut cluster = Cluster::new(own, changing(0).in_use, host(0));
    let peer = lease(1, changing(1).in_use.publish());
    let shown = |lease: Option<&Lease>| [(peer.key, lease.cloned())].into_iter();
    cluster.take(shown(Some(&peer)), false, &mut reconciler);
    reconciler.pass().await;
    let objects = || kernel.objects();
    assert!(!objects().iter().any(encrypts_to_peer), "{:?}", objects());
    assert!(cluster.lags());
    let connection = objects().into_iter().find(is_connection).unwrap();
    reconciler.note(KernelEvent::Saw(connection));
    assert!(cluster.follow_connections(&mut reconciler));
    reconciler.pass().await;
    assert!(objects().iter().any(encrypts_to_peer), "{:?}", objects());
    assert!(!cluster.lags());
    assert!(!cluster.follow_connections(&mut reconciler));
    let report = cluster.change_report().unwrap();
    assert!(
        report.contains("ipsec lets unencrypted packets in meanwhile"),
        "{report}"
    );
    // Its lease is deleted and written again: packets to it wait for keys, they do not go the former way.
    reconciler.set_may_delete(true);
    cluster.take(shown(None), false, &mut reconciler);
    reconciler.pass().await;
    assert!(!objects().iter().any(encrypts_to_peer), "{:?}", objects());
    cluster.take(shown(Some(&peer)), false, &mut reconciler);
    reconciler.pass().await;
    assert!(objects().iter().any(encrypts_to_peer), "{:?}", objects());
}
