//! What follows from a state if no more faults happen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::SubnetKey;

use crate::protocol::{Node, Protocol, State};

/// How often time may have to move on.
const WAITS: usize = 60;
/// How much may happen at one moment.
const STEPS: usize = 200;

/// Lets everything happen in turn until all is well.
///
/// # Errors
/// It is not, after a long time: why.
pub fn settles(protocol: &Protocol, state: &State) -> Result<(), String> {
    let mut state = state.clone();
    for _ in 0..WAITS {
        let mut steps = 0;
        while act(&mut state) {
            steps += 1;
            if steps > STEPS {
                return Err("busy without an end".into());
            }
        }
        if fault(protocol, &state).is_none() {
            return Ok(());
        }
        // A supervisor starts what ended.
        for n in 0..state.nodes.len() {
            let runs = matches!(&state.nodes[n], Node::Up(agent) if agent.ended().is_none());
            if !runs {
                state.start(protocol, n);
            }
        }
        state.wait();
    }
    fault(protocol, &state).map_or(Ok(()), Err)
}

/// Lets each node do what it can; returns whether one did anything.
fn act(state: &mut State) -> bool {
    let (now, etcd) = (state.now, &mut state.etcd);
    let mut busy = false;
    for node in &mut state.nodes {
        if let Node::Up(agent) = node
            && agent.ended().is_none()
        {
            busy |= agent.step(etcd, now);
        }
    }
    busy
}

/// What is not as it should be.
fn fault(protocol: &Protocol, state: &State) -> Option<String> {
    let mut owned: BTreeSet<SubnetKey> = BTreeSet::new();
    let mut served: BTreeMap<Option<IpAddr>, usize> = BTreeMap::new();
    for (n, identity) in protocol.nodes.iter().enumerate() {
        let served = served.entry(identity.who.public_ip.v4).or_default();
        let Node::Up(agent) = &state.nodes[n] else {
            continue;
        };
        let Some(key) = agent.granted() else { continue };
        *served += 1;
        if !owned.insert(key) {
            return Some(format!("{key} has two owners"));
        }
        let Some(stored) = state.etcd.keys().get(&key) else {
            return Some(format!("{key} is not in etcd"));
        };
        if stored.value.attrs != identity.attrs {
            return Some(format!("{key} is not as node {n} wants it"));
        }
        let life = stored.mark.hangs_on;
        let all = state.etcd.keys().iter();
        if let Some((leaked, _)) = all
            .filter(|(other, _)| **other != key)
            .find(|(_, other)| life.is_some() && other.mark.hangs_on == life)
        {
            return Some(format!("node {n} keeps {leaked} alive besides {key}"));
        }
    }
    let wrong = served.iter().find(|(_, count)| **count != 1);
    wrong.map(|(ip, count)| format!("{ip:?} has {count} leases"))
}
