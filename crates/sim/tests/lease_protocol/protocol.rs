//! Nodes, etcd and the network as a model: its states, and what leads from one to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use model::{Dual, LeaseAttrs, SubnetKey};
use sim::agent::{Agent, Identity, Late};
use sim::etcd::Etcd;
use stateright::{Model, Property};
use store::own_lease::{Time, Value, Who};

use crate::settle::settles;

/// How many faults of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Faults {
    /// Requests that fail, carried out or not, or later.
    pub losses: u8,
    /// Daemons that are killed, or started again after they ended.
    pub stops: u8,
    /// Restores of etcd from a backup that was made at any moment.
    pub restores: u8,
    /// Keys that an administrator deletes.
    pub deletions: u8,
    /// Steps of time to what is due next.
    pub waits: u8,
}

/// What is checked.
#[derive(Clone, Debug)]
pub struct Protocol {
    pub nodes: Vec<Arc<Identity>>,
    faults: Faults,
    reservation: Option<SubnetKey>,
    /// Time passes only when all requests and watches are through: nodes answer within their time.
    prompt: bool,
}

/// A daemon, or what the last one left in `subnet.env`.
#[allow(clippy::large_enum_variant, reason = "mostly the large one")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    Down(Option<SubnetKey>),
    Up(Agent),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub now: Time,
    pub etcd: Etcd,
    pub nodes: Vec<Node>,
    backup: Option<Etcd>,
    late: Vec<Late>,
    left: Faults,
    runs: u32,
    /// Subnets whose key etcd lost although no node deleted it.
    lost: BTreeSet<SubnetKey>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Start(usize),
    Arrive(usize),
    Answer(usize),
    Lose(usize),
    Retry(usize),
    Watch(usize),
    Tick(usize),
    Kill(usize),
    ArriveLate(usize),
    Wait,
    Backup,
    Restore,
    Delete(SubnetKey),
}

fn key(n: usize) -> SubnetKey {
    format!("10.20.{n}.0-24").parse().unwrap()
}

fn identity(ip: usize, device: usize, pool: usize) -> Arc<Identity> {
    let mac = format!("02:00:00:00:00:{device:02x}");
    let json = format!(
        r#"{{"PublicIP":"10.0.0.{ip}","BackendType":"vxlan","BackendData":{{"VtepMAC":"{mac}"}}}}"#
    );
    Arc::new(Identity {
        who: Who {
            public_ip: Dual {
                v4: Some(format!("10.0.0.{ip}").parse().unwrap()),
                v6: None,
            },
            previous: None,
            devices: vec![mac],
            made: Vec::new(),
        },
        attrs: LeaseAttrs::from_json(json.as_bytes()).unwrap(),
        pool: (1..=pool).map(key).collect(),
    })
}

impl Protocol {
    /// So many nodes with an address each, and so many subnets.
    pub fn apart(nodes: usize, pool: usize, faults: Faults) -> Protocol {
        Protocol {
            nodes: (1..=nodes).map(|n| identity(n, n, pool)).collect(),
            faults,
            reservation: None,
            prompt: false,
        }
    }

    /// Two nodes with one address.
    pub fn twins(faults: Faults) -> Protocol {
        Protocol {
            nodes: vec![identity(1, 1, 3), identity(1, 2, 3)],
            faults,
            reservation: None,
            prompt: true,
        }
    }

    /// An administrator reserved the last subnet for the first node.
    pub fn reserved(self) -> Protocol {
        let reservation = self.nodes[0].pool.last().copied();
        Protocol {
            reservation,
            ..self
        }
    }
}

impl State {
    pub fn start(&mut self, protocol: &Protocol, n: usize) {
        self.runs += 1;
        let previous = match &self.nodes[n] {
            Node::Down(previous) => *previous,
            Node::Up(agent) => agent.clone().kill(&mut self.etcd, self.now).0,
        };
        let agent = Agent::start(
            &protocol.nodes[n],
            previous,
            self.runs,
            &self.etcd,
            self.now,
        );
        self.nodes[n] = Node::Up(agent);
    }

    pub fn up(&self) -> impl Iterator<Item = (usize, &Agent)> {
        self.nodes
            .iter()
            .enumerate()
            .filter_map(|(n, node)| match node {
                Node::Up(agent) => Some((n, agent)),
                Node::Down(_) => None,
            })
    }

    /// Moves on to what is due next; returns whether anything is.
    pub fn wait(&mut self) -> bool {
        let wakes = self.up().filter_map(|(_, agent)| agent.wake());
        let ends = self.etcd.lives().values().copied();
        let Some(next) = wakes.chain(ends).filter(|at| *at > self.now).min() else {
            return false;
        };
        self.now = next;
        let before = self.etcd.clone();
        self.etcd.expire(next);
        self.note_lost(&before);
        true
    }

    /// Notes what etcd lost against its nodes' will: `before` is what it had. Nodes may not have heard of it, even of
    /// their own key's creation.
    fn note_lost(&mut self, before: &Etcd) {
        let keys = self.etcd.keys();
        let lost = before.keys().keys().filter(|key| !keys.contains_key(key));
        self.lost.extend(lost);
    }

    fn is_quiet(&self) -> bool {
        self.up().all(|(_, agent)| {
            !agent.is_asking()
                && !agent.is_answered()
                && !agent.is_blocked()
                && !agent.has_news(&self.etcd)
                && agent.wake().is_none_or(|at| at > self.now)
        })
    }

    /// Whether two nodes with an address each use one subnet. Two with one address may, until one of them answers the
    /// other: both had it before, and both machines' `subnet.env` name it.
    fn two_owners(&self, protocol: &Protocol) -> bool {
        let mut owners: BTreeMap<SubnetKey, &Dual<IpAddr>> = BTreeMap::new();
        self.up().any(|(n, agent)| {
            let ip = &protocol.nodes[n].who.public_ip;
            let before = agent
                .granted()
                .and_then(|key| Some((key, owners.insert(key, ip)?)));
            before.is_some_and(|(key, other)| other != ip && !self.lost.contains(&key))
        })
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let mut etcd = Etcd::default();
        if let Some(key) = self.reservation {
            let v4 = self.nodes[0].who.public_ip.v4.unwrap();
            let json = format!(r#"{{"PublicIP":"{v4}"}}"#);
            let value = Value {
                attrs: LeaseAttrs::from_json(json.as_bytes()).unwrap(),
                signature: None,
            };
            etcd.put(key, value, None, None).unwrap();
        }
        vec![State {
            now: Duration::from_secs(1),
            etcd,
            nodes: vec![Node::Down(None); self.nodes.len()],
            backup: None,
            late: Vec::new(),
            left: self.faults,
            runs: 0,
            lost: BTreeSet::new(),
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let left = &state.left;
        for (n, node) in state.nodes.iter().enumerate() {
            let Node::Up(agent) = node else {
                steps.push(Step::Start(n));
                continue;
            };
            if agent.ended().is_some() {
                if left.stops > 0 {
                    steps.push(Step::Start(n));
                }
                continue;
            }
            if agent.is_asking() {
                steps.push(Step::Arrive(n));
            }
            if agent.is_answered() {
                steps.push(Step::Answer(n));
            }
            if left.losses > 0 && (agent.is_asking() || agent.is_answered()) {
                steps.push(Step::Lose(n));
            }
            if agent.is_blocked() {
                steps.push(Step::Retry(n));
            } else if agent.has_news(&state.etcd) {
                steps.push(Step::Watch(n));
            }
            if agent.wake().is_some_and(|at| at <= state.now) {
                steps.push(Step::Tick(n));
            }
            if left.stops > 0 {
                steps.push(Step::Kill(n));
            }
            if left.deletions > 0
                && let Some(key) = agent.granted()
                && state.etcd.keys().contains_key(&key)
                && self.reservation != Some(key)
            {
                steps.push(Step::Delete(key));
            }
        }
        steps.extend((0..state.late.len()).map(Step::ArriveLate));
        if left.waits > 0 && (!self.prompt || state.is_quiet()) {
            steps.push(Step::Wait);
        }
        if left.restores > 0 {
            match &state.backup {
                None => steps.push(Step::Backup),
                Some(backup) if *backup != state.etcd => steps.push(Step::Restore),
                Some(_) => {}
            }
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        let now = state.now;
        let etcd = &mut state.etcd;
        let mut agent = |n: usize, act: &mut dyn FnMut(&mut Agent, &mut Etcd)| {
            if let Node::Up(agent) = &mut state.nodes[n] {
                act(agent, etcd);
            }
        };
        match step {
            Step::Arrive(n) => agent(n, &mut |agent, etcd| agent.arrive(etcd, now)),
            Step::Answer(n) => agent(n, &mut |agent, etcd| agent.answered(etcd, now)),
            Step::Retry(n) => agent(n, &mut |agent, etcd| agent.retry(etcd, now)),
            Step::Watch(n) => agent(n, &mut |agent, etcd| agent.watch(etcd, now)),
            Step::Tick(n) => agent(n, &mut |agent, _| agent.tick(now)),
            Step::Lose(n) => {
                let mut late = None;
                agent(n, &mut |agent, etcd| late = agent.lose(etcd, now));
                state.late.extend(late);
                state.left.losses -= 1;
            }
            Step::Kill(n) => {
                let Node::Up(agent) = std::mem::replace(&mut state.nodes[n], Node::Down(None))
                else {
                    return None;
                };
                let (previous, late) = agent.kill(&mut state.etcd, now);
                state.nodes[n] = Node::Down(previous);
                state.late.extend(late);
                state.left.stops -= 1;
            }
            Step::Start(n) => {
                if matches!(state.nodes[n], Node::Up(_)) {
                    state.left.stops -= 1;
                }
                state.start(self, n);
            }
            Step::ArriveLate(n) => state.late.remove(n).arrive(&mut state.etcd),
            Step::Wait => {
                state.left.waits -= 1;
                if !state.wait() {
                    return None;
                }
            }
            Step::Backup => state.backup = Some(state.etcd.clone()),
            Step::Restore => {
                let backup = state.backup.take()?;
                let before = state.etcd.clone();
                state.etcd.restore(&backup, 0, now);
                state.note_lost(&before);
                state.left.restores -= 1;
            }
            Step::Delete(key) => {
                state.etcd.remove(&key);
                state.lost.insert(key);
                state.left.deletions -= 1;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no subnet has two owners", |protocol, state: &State| {
                !state.two_owners(protocol)
            }),
            Property::always(
                "a reservation stays",
                |protocol: &Protocol, state: &State| {
                    protocol.reservation.is_none_or(|key| {
                        let stored = state.etcd.keys().get(&key);
                        stored.is_some_and(|stored| stored.mark.hangs_on.is_none())
                    })
                },
            ),
            Property::always(
                "after the last fault all is well",
                |protocol, state: &State| settles(protocol, state).is_ok(),
            ),
        ]
    }
}
