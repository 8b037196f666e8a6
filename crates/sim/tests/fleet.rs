//! Fleets of nodes on one etcd, random faults by seed: after the last fault every node has a lease of its own.
//!
//! `SEEDS=100-200` chooses which seeds run.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::{Dual, LeaseAttrs, SubnetKey};
use sim::agent::{Agent, Identity, Late};
use sim::etcd::Etcd;
use store::own_lease::{Time, Who};

/// Nodes of the largest fleet.
const MOST: usize = 40;
/// How long after the last fault all is well: an etcd lease of a killed daemon ends, and its subnet is free again.
const BOUND: Duration = Duration::from_secs(300);

/// Random numbers by seed: xorshift.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

fn identity(n: usize, pool: usize) -> Arc<Identity> {
    let json = format!(
        r#"{{"PublicIP":"10.0.1.{n}","BackendType":"vxlan","BackendData":{{"VtepMAC":"02:00:00:00:01:{n:02x}"}}}}"#
    );
    // Everybody prefers the same subnets.
    let key = |n| format!("10.20.{n}.0-24").parse().unwrap();
    Arc::new(Identity {
        who: Who {
            public_ip: Dual {
                v4: Some(format!("10.0.1.{n}").parse().unwrap()),
                v6: None,
            },
            devices: vec![format!("02:00:00:00:01:{n:02x}")],
            ..Who::default()
        },
        attrs: LeaseAttrs::from_json(json.as_bytes()).unwrap(),
        pool: (0..pool).map(key).collect(),
    })
}

/// A fleet, and what happened to it.
struct Fleet {
    identities: Vec<Arc<Identity>>,
    nodes: Vec<Agent>,
    late: Vec<Late>,
    etcd: Etcd,
    backup: Etcd,
    now: Time,
    runs: u32,
    trace: Vec<String>,
}

impl Fleet {
    fn new(size: usize) -> Fleet {
        let identities: Vec<_> = (0..size).map(|n| identity(n, size + 2)).collect();
        let (etcd, now) = (Etcd::default(), Duration::from_secs(1));
        let start = |(n, identity)| Agent::start(identity, None, n, &etcd, now);
        Fleet {
            nodes: (1..).zip(&identities).map(start).collect(),
            identities,
            late: Vec::new(),
            backup: etcd.clone(),
            etcd,
            now,
            runs: u32::try_from(size).unwrap(),
            trace: Vec::new(),
        }
    }

    fn say(&mut self, what: impl std::fmt::Display) {
        self.trace.push(format!("{:>8.1?} {what}", self.now));
    }

    /// Kills a daemon, if it runs, and starts the next.
    fn restart(&mut self, n: usize) {
        self.runs += 1;
        let old = self.nodes[n].clone();
        let (previous, late) = old.kill(&mut self.etcd, self.now);
        self.late.extend(late);
        self.nodes[n] = Agent::start(
            &self.identities[n],
            previous,
            self.runs,
            &self.etcd,
            self.now,
        );
    }

    /// Lets one node do one thing; returns whether it did.
    fn act(&mut self, n: usize) -> bool {
        let (agent, etcd, now) = (&mut self.nodes[n], &mut self.etcd, self.now);
        if agent.ended().is_some() {
            return false;
        }
        agent.step(etcd, now)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.etcd.expire(self.now);
    }

    /// One random event.
    fn step(&mut self, numbers: &mut Numbers) {
        let n = numbers.below(self.nodes.len());
        match numbers.below(400) {
            0 => {
                self.say("backup");
                self.backup = self.etcd.clone();
            }
            1 => {
                let ahead = [0, 0, 3, 1000][numbers.below(4)];
                self.say(format_args!(
                    "etcd is restored, its revision raised by {ahead}"
                ));
                let backup = self.backup.clone();
                self.etcd.restore(&backup, ahead, self.now);
            }
            2 => {
                if let Some(key) = self.nodes[n].granted() {
                    self.say(format_args!("{key} of node {n} is deleted"));
                    self.etcd.remove(&key);
                }
            }
            3..=5 => {
                self.say(format_args!("node {n} is killed and started"));
                self.restart(n);
            }
            6..=25 => {
                self.say(format_args!("node {n} gets no answer"));
                let late = self.nodes[n].lose(&mut self.etcd, self.now);
                self.late.extend(late);
            }
            26..=30 if !self.late.is_empty() => {
                let late = self.late.swap_remove(numbers.below(self.late.len()));
                self.say(format_args!("{late:?} arrives late"));
                late.arrive(&mut self.etcd);
            }
            31..=33 => self.pass(Duration::from_secs(20)),
            34..=60 => self.pass(Duration::from_millis(400)),
            _ => {
                self.act(n);
            }
        }
    }

    /// Lets everything happen without faults until all is well, for [`BOUND`] at most; returns why it is not.
    fn settle(&mut self) -> Option<String> {
        let end = self.now + BOUND;
        loop {
            let mut busy = true;
            while busy {
                busy = false;
                for n in 0..self.nodes.len() {
                    busy |= self.act(n);
                }
            }
            let fault = self.fault()?;
            if self.now >= end {
                return Some(fault);
            }
            for n in 0..self.nodes.len() {
                if self.nodes[n].ended().is_some() {
                    self.restart(n);
                }
            }
            self.pass(Duration::from_secs(2));
        }
    }

    fn fault(&self) -> Option<String> {
        let mut owners: BTreeMap<SubnetKey, usize> = BTreeMap::new();
        for (n, node) in self.nodes.iter().enumerate() {
            let Some(key) = node.granted() else {
                return Some(format!("node {n} has no subnet: {:?}", node.ended()));
            };
            if let Some(other) = owners.insert(key, n) {
                return Some(format!("{key} has two owners, {other} and {n}"));
            }
            let stored = self.etcd.keys().get(&key);
            if stored.is_none_or(|stored| stored.value.attrs != self.identities[n].attrs) {
                return Some(format!("etcd does not show {key} as node {n} wants it"));
            }
        }
        None
    }
}

/// Returns how long the fleet lived.
fn history(seed: u64) -> Duration {
    let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let size = [2, 3, 5, MOST][numbers.below(4)];
    let mut fleet = Fleet::new(size);
    for _ in 0..size * (20 + numbers.below(100)) {
        fleet.step(&mut numbers);
    }
    fleet.say("the faults end");
    if let Some(fault) = fleet.settle() {
        println!("{}", fleet.trace.join("\n"));
        assert!(
            fault.is_empty(),
            "{fault}\nrepeat it with SEEDS={seed}-{} cargo test -p sim --test fleet",
            seed + 1
        );
    }
    fleet.now * u32::try_from(size).unwrap()
}

#[test]
fn every_fleet_is_whole_after_its_faults() {
    let seeds = std::env::var("SEEDS").unwrap_or_else(|_| "0-150".into());
    let (from, to) = seeds.split_once('-').unwrap();
    let (from, to): (u64, u64) = (from.parse().unwrap(), to.parse().unwrap());
    let began = Instant::now();
    let lived: Duration = (from..to).map(history).sum();
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    println!(
        "{} histories, {:.0} node-hours a minute",
        to - from,
        lived.as_secs_f64() / 3600.0 / minutes
    );
}
