//! A store in memory that behaves like etcd as far as one network's keys go, and nodes on it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use model::{Dual, LeaseAttrs, SubnetKey};

use super::super::*;

/// Seconds of life of a key.
pub const TTL: Duration = Duration::from_secs(60);
const MARGIN: Duration = Duration::from_secs(30);
/// Subnets that can be had.
pub const POOL: u8 = 12;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub attrs: Option<LeaseAttrs>,
    pub signature: Option<Signature>,
    /// Whose etcd lease it hangs on; `None`: a reservation.
    pub hangs_on: Option<u64>,
    pub created: u64,
    pub changed: u64,
}

/// Keys, etcd leases and a revision.
#[derive(Clone, Debug, Default)]
pub struct Sim {
    pub keys: BTreeMap<SubnetKey, Stored>,
    /// End of each etcd lease.
    pub lives: BTreeMap<u64, Time>,
    pub revision: u64,
    /// Counts restores.
    pub history: u32,
    pub now: Time,
    pub writes: u64,
}

pub fn attrs(ip: u8, data: u8) -> LeaseAttrs {
    let json = format!(
        r#"{{"PublicIP":"10.0.0.{ip}","BackendType":"vxlan","BackendData":{{"VtepMAC":"02:00:00:00:00:{data:02x}"}}}}"#
    );
    LeaseAttrs::from_json(json.as_bytes()).unwrap()
}

pub fn key(n: u8) -> SubnetKey {
    format!("10.20.{n}.0-24").parse().unwrap()
}

impl Sim {
    pub fn put(&mut self, key: SubnetKey, attrs: Option<LeaseAttrs>, hangs_on: Option<u64>) {
        self.write(key, attrs, None, hangs_on);
    }

    fn write(
        &mut self,
        key: SubnetKey,
        attrs: Option<LeaseAttrs>,
        signature: Option<Signature>,
        hangs_on: Option<u64>,
    ) {
        self.revision += 1;
        self.writes += 1;
        let created = self.keys.get(&key).map_or(self.revision, |old| old.created);
        let changed = self.revision;
        let stored = Stored {
            attrs,
            signature,
            hangs_on,
            created,
            changed,
        };
        self.keys.insert(key, stored);
    }

    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        let now = self.now;
        let ended: Vec<u64> = self
            .lives
            .iter()
            .filter(|(_, end)| **end <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in ended {
            self.lives.remove(&id);
            let before = self.keys.len();
            self.keys.retain(|_, stored| stored.hangs_on != Some(id));
            self.revision += u64::from(self.keys.len() < before);
        }
    }

    /// Comes back from a backup, at any revision.
    pub fn restore(&mut self, backup: &Sim, bump: u64) {
        let (now, history, writes) = (self.now, self.history, self.writes);
        *self = backup.clone();
        self.revision += bump;
        (self.now, self.history, self.writes) = (now, history + 1, writes);
        // etcd gives every lease its whole life again.
        self.lives.values_mut().for_each(|end| *end = now + TTL);
    }
}

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// It does not arrive.
    Before,
    /// It is carried out, and the answer is lost.
    After,
}

/// A daemon as far as its own lease goes.
#[derive(Clone, Debug)]
pub struct Node {
    pub machine: OwnLease<(u64, u32)>,
    pub ip: u8,
    /// Its own etcd lease.
    life: u64,
    ends: Time,
    pub todo: VecDeque<Action<(u64, u32)>>,
    pub wake: Option<Time>,
    pub ready: Option<SubnetKey>,
    pub ended: Option<String>,
    pub full: bool,
    pub said: Vec<Notice>,
    failed: bool,
    /// What it last saw of its key.
    seen: Option<(SubnetKey, Option<u64>)>,
    /// What it last saw of other keys.
    others: BTreeMap<SubnetKey, u64>,
    history: u32,
    read_from: Option<SubnetKey>,
    pub previous: Option<SubnetKey>,
}

impl Node {
    pub fn start(sim: &Sim, ip: u8, data: u8, writer: u64, previous: Option<SubnetKey>) -> Node {
        let who = Who {
            public_ip: Dual {
                v4: Some(format!("10.0.0.{ip}").parse().unwrap()),
                v6: None,
            },
            previous,
            devices: vec![format!("02:00:00:00:00:{data:02x}")],
            made: Vec::new(),
        };
        let machine = OwnLease::new(who, WriterId(writer), Policy::default());
        let mut node = Node {
            machine,
            ip,
            life: writer << 8,
            ends: Duration::ZERO,
            todo: VecDeque::new(),
            wake: None,
            ready: None,
            ended: None,
            full: false,
            said: Vec::new(),
            failed: false,
            seen: None,
            others: BTreeMap::new(),
            history: sim.history,
            read_from: None,
            previous,
        };
        node.tell(sim, Event::Want(attrs(ip, data)));
        node
    }

    pub fn tell(&mut self, sim: &Sim, event: Event<(u64, u32)>) {
        self.wake = None;
        let actions = self.machine.on(event, sim.now);
        self.todo.extend(actions);
    }

    fn entry(&self, sim: &Sim, key: SubnetKey, stored: &Stored) -> Entry<(u64, u32)> {
        let life = match stored.hangs_on {
            None => Life::Reserved,
            Some(id) if id == self.life => Life::Until {
                ends: self.ends,
                renew: self.ends.saturating_sub(MARGIN),
            },
            Some(_) => Life::Foreign,
        };
        Entry {
            key,
            attrs: stored.attrs.clone(),
            signature: stored.signature,
            life,
            seniority: stored.created,
            fits: true,
            mark: (stored.changed, sim.history),
        }
    }

    fn look(&self, sim: &Sim, key: SubnetKey) -> Look<(u64, u32)> {
        match sim.keys.get(&key) {
            Some(stored) => Look::There(self.entry(sim, key, stored)),
            // A deletion leaves the etcd lease; a loss takes it along.
            None if sim.lives.contains_key(&self.life) => Look::Gone(Cause::Deleted),
            None => Look::Gone(Cause::Lost),
        }
    }

    /// Carries out the next action. Returns whether there was one.
    pub fn step(&mut self, sim: &mut Sim, fault: Fault, pick: usize) -> bool {
        let Some(action) = self.todo.pop_front() else {
            return false;
        };
        match action {
            Action::Do(request) => {
                self.failed = fault != Fault::None;
                let answer = match fault {
                    Fault::Before => None,
                    _ => Some(self.carry_out(sim, request, pick)),
                };
                let answer = answer.filter(|_| fault == Fault::None);
                self.tell(sim, answer.map_or(Event::Failed, Event::Answer));
            }
            Action::Acquired(lease) => self.ready = Some(lease.key),
            Action::Changed(_) => {}
            Action::Full(_) => self.full = true,
            Action::Revoked(why) => {
                self.ready = None;
                self.ended = Some(why.to_string());
            }
            Action::Say(notice) => self.said.push(notice),
            Action::WakeAt(at) => self.wake = Some(at),
        }
        true
    }

    fn carry_out(
        &mut self,
        sim: &mut Sim,
        request: Request<(u64, u32)>,
        pick: usize,
    ) -> Answer<(u64, u32)> {
        match request {
            Request::Read { anew } => {
                if anew {
                    self.tell(sim, Event::ListingBegan);
                    self.read_from = None;
                }
                let from = self.read_from;
                let some: Vec<_> = sim
                    .keys
                    .iter()
                    .filter(|(key, _)| from.is_none_or(|from| **key > from))
                    .take(3)
                    .map(|(key, stored)| (*key, stored.clone()))
                    .collect();
                for (key, stored) in &some {
                    let entry = self.entry(sim, *key, stored);
                    self.tell(sim, Event::Entry(entry));
                    self.read_from = Some(*key);
                }
                Answer::Read {
                    all: some.len() < 3,
                }
            }
            Request::Pick { .. } => {
                let free: Vec<_> = (1..=POOL)
                    .map(key)
                    .filter(|key| !sim.keys.contains_key(key))
                    .collect();
                let previous = self.previous.filter(|key| free.contains(key));
                Answer::Picked(match (previous, free.is_empty()) {
                    (Some(key), _) => Ok(key),
                    (None, false) => Ok(free[pick % free.len()]),
                    (None, true) => Err("no free subnet".into()),
                })
            }
            Request::Write {
                key,
                value,
                over,
                reserved,
            } => {
                let there = sim.keys.get(&key).cloned();
                let mark = there.as_ref().map(|stored| (stored.changed, sim.history));
                if mark != over {
                    return Answer::Differs(there.map(|stored| self.entry(sim, key, &stored)));
                }
                if !reserved && !sim.lives.contains_key(&self.life) {
                    self.life += 1;
                    self.ends = sim.now + TTL;
                    sim.lives.insert(self.life, self.ends);
                }
                // A question leaves the lease where it hangs.
                let hangs_on = match (value.signature, &there) {
                    (Some(Signature::Claimant(_)), Some(there)) => there.hangs_on,
                    _ => (!reserved).then_some(self.life),
                };
                sim.write(key, Some(value.attrs), value.signature, hangs_on);
                let stored = sim.keys[&key].clone();
                self.seen = Some((key, Some(stored.changed)));
                Answer::Written {
                    entry: self.entry(sim, key, &stored),
                    rival: None,
                }
            }
            Request::Delete { key, over } => match sim.keys.get(&key).cloned() {
                Some(stored) if (stored.changed, sim.history) != over => {
                    Answer::Differs(Some(self.entry(sim, key, &stored)))
                }
                there => {
                    sim.revision += u64::from(there.is_some());
                    sim.keys.remove(&key);
                    Answer::Deleted
                }
            },
            Request::Look { key } => Answer::Looked {
                look: self.look(sim, key),
                rival: None,
            },
            Request::Renew => match sim.lives.get_mut(&self.life) {
                Some(end) => {
                    self.ends = sim.now + TTL;
                    *end = self.ends;
                    Answer::Renewed(Life::Until {
                        ends: self.ends,
                        renew: self.ends.saturating_sub(MARGIN),
                    })
                }
                None => Answer::LifeOver,
            },
        }
    }

    /// Hears what the watch tells, and what the clock says.
    pub fn hear(&mut self, sim: &Sim) {
        if self.failed {
            self.failed = false;
            self.tell(sim, Event::Retry);
        }
        if self.history != sim.history {
            self.history = sim.history;
            self.seen = None;
            self.others.clear();
            self.tell(sim, Event::HistoryLost);
        }
        if let Some(key) = self.machine.key() {
            let now = sim.keys.get(&key).map(|stored| stored.changed);
            let before = self.seen.filter(|(seen, _)| *seen == key).map(|(_, at)| at);
            if self.machine.held().map(|entry| entry.mark.0) != now && before != Some(now) {
                self.seen = Some((key, now));
                let look = self.look(sim, key);
                self.tell(sim, Event::Observed(look));
            }
        }
        if let Some(own) = self.machine.key() {
            for (key, stored) in sim.keys.iter().filter(|(key, _)| **key != own) {
                let before = self.others.insert(*key, stored.changed);
                if before != Some(stored.changed) {
                    let entry = self.entry(sim, *key, stored);
                    self.tell(sim, Event::Entry(entry));
                }
            }
        }
        if self.wake.is_some_and(|at| at <= sim.now) {
            self.tell(sim, Event::Tick);
        }
    }
}

/// Lets everything happen without faults for `time`.
pub fn settle(sim: &mut Sim, nodes: &mut [Node], time: Duration) {
    let end = sim.now + time;
    while sim.now < end {
        for _ in 0..200 {
            let mut busy = false;
            for node in nodes.iter_mut().filter(|node| node.ended.is_none()) {
                node.hear(sim);
                busy |= node.step(sim, Fault::None, 0);
            }
            if !busy {
                break;
            }
        }
        sim.pass(Duration::from_millis(500));
    }
}
