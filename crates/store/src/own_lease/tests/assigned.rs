//! A node whose subnet is assigned: its lease is always written as desired, and lost only with its subnet.

use std::time::Duration;

use model::LeaseAttrs;

use super::super::*;
use super::sim::{attrs, key};

fn at(seconds: u64) -> Time {
    Duration::from_secs(seconds)
}

fn entry(attrs: Option<LeaseAttrs>, mark: u32) -> Entry<u32> {
    Entry {
        key: key(3),
        attrs,
        signature: None,
        life: Life::Reserved,
        seniority: 1,
        fits: true,
        mark,
    }
}

fn start() -> OwnLease<u32> {
    let policy = Policy {
        contended: false,
        ..Policy::default()
    };
    OwnLease::assigned(entry(None, 1), attrs(1, 1), WriterId(1), policy, at(0))
}

fn writes(actions: &[Action<u32>]) -> bool {
    let over_and_unsigned = |value: &Value| value.attrs == attrs(1, 1) && value.signature.is_none();
    actions.iter().any(
        |action| matches!(action, Action::Do(Request::Write { value, .. }) if over_and_unsigned(value)),
    )
}

fn written(mark: u32) -> Event<u32> {
    Event::Answer(Answer::Written {
        entry: entry(Some(attrs(1, 1)), mark),
        rival: None,
    })
}

fn says(actions: &[Action<u32>]) -> bool {
    actions
        .iter()
        .any(|a| matches!(a, Action::Say(Notice::Overwritten(..))))
}

#[test]
fn a_foreign_write_is_corrected_at_a_known_time_however_often_it_comes() {
    let mut lease = start();
    assert!(writes(&lease.on(Event::Want(attrs(1, 1)), at(0))));
    lease.on(written(2), at(0));
    let mut now = at(1);
    for round in 0..20 {
        // Of another node, and of ours with other data: neither takes the subnet away.
        let foreign = attrs(1 + round % 2, 9);
        let look = Look::There(entry(Some(foreign), 10 + u32::from(round) * 2));
        let mut actions = lease.on(Event::Observed(look), now);
        assert!(says(&actions), "{actions:?}");
        if !writes(&actions) {
            let Some(Action::WakeAt(at)) = actions.last() else {
                panic!("it is not corrected: {actions:?}");
            };
            assert!(*at <= now + Duration::from_secs(10));
            now = *at;
            actions = lease.on(Event::Tick, now);
        }
        assert!(writes(&actions), "{actions:?}");
        lease.on(written(11 + u32::from(round) * 2), now);
        now += Duration::from_millis(100);
    }
}

#[test]
fn a_lost_answer_is_resolved_by_looking() {
    for arrived in [false, true] {
        let mut lease = start();
        assert!(writes(&lease.on(Event::Want(attrs(1, 1)), at(0))));
        assert_eq!(lease.on(Event::Failed, at(0)), []);
        let looks = lease.on(Event::Retry, at(1));
        assert_eq!(looks, [Action::Do(Request::Look { key: key(3) })]);
        let shown = if arrived {
            entry(Some(attrs(1, 1)), 2)
        } else {
            entry(None, 1)
        };
        let answer = Answer::Looked {
            look: Look::There(shown),
            rival: None,
        };
        let actions = lease.on(Event::Answer(answer), at(1));
        assert_eq!(writes(&actions), !arrived, "{actions:?}");
        assert!(!says(&actions));
    }
}

#[test]
fn what_was_gone_is_written_again_and_is_nobodys_foreign_write() {
    let mut lease = start();
    lease.on(Event::Want(attrs(1, 1)), at(0));
    lease.on(written(2), at(0));
    for cause in [Cause::Deleted, Cause::Lost] {
        assert_eq!(lease.on(Event::Observed(Look::Gone(cause)), at(1)), []);
        assert_eq!(
            lease.on(Event::Tick, at(100)),
            [],
            "there is nothing to write to"
        );
        let actions = lease.on(Event::Observed(Look::There(entry(None, 5))), at(200));
        assert!(writes(&actions) && !says(&actions), "{actions:?}");
        lease.on(written(6), at(200));
    }
    let why = || "another podCIDR".to_owned();
    let lost = Revocation::Reassigned(key(3), why());
    assert_eq!(
        lease.on(Event::Reassigned(why()), at(201)),
        [Action::Revoked(lost)]
    );
    assert!(lease.is_over());
}

/// The object whose annotations are the lease, and a node that keeps it.
struct Cluster {
    machine: OwnLease<u32>,
    todo: Vec<Action<u32>>,
    /// What the object says; `None`: it does not exist.
    object: Option<Entry<u32>>,
    /// A state that was not reported yet.
    unseen: bool,
    wanted: LeaseAttrs,
    mark: u32,
    writes: u32,
    wake: Option<Time>,
    now: Time,
}

impl Cluster {
    fn new() -> Cluster {
        let mut cluster = Cluster {
            machine: start(),
            todo: Vec::new(),
            object: Some(entry(None, 1)),
            unseen: false,
            wanted: attrs(1, 1),
            mark: 1,
            writes: 0,
            wake: None,
            now: at(1),
        };
        cluster.send(Event::Want(attrs(1, 1)));
        cluster
    }

    fn send(&mut self, event: Event<u32>) {
        self.wake = None;
        for action in self.machine.on(event, self.now) {
            match action {
                Action::WakeAt(at) => self.wake = Some(at),
                Action::Revoked(why) => panic!("revoked: {why}"),
                action => self.todo.push(action),
            }
        }
    }

    fn put(&mut self, attrs: Option<LeaseAttrs>) {
        self.mark += 1;
        self.object = Some(entry(attrs, self.mark));
        self.unseen = true;
    }

    fn look(&self) -> Look<u32> {
        match &self.object {
            Some(entry) => Look::There(entry.clone()),
            None => Look::Gone(Cause::Lost),
        }
    }

    /// Carries out one request; `fault` loses it, or its answer. Returns whether there was one.
    fn work(&mut self, fault: Option<bool>) -> bool {
        if self.todo.is_empty() {
            return false;
        }
        let Action::Do(request) = self.todo.remove(0) else {
            return true;
        };
        if fault == Some(false) {
            self.send(Event::Failed);
            return true;
        }
        let answer = match request {
            Request::Write { value, over, .. } => {
                let unchanged = self.object.as_ref().map(|entry| entry.mark) == over;
                if unchanged {
                    self.put(Some(value.attrs));
                    self.writes += 1;
                    let entry = self.object.clone().unwrap();
                    Answer::Written { entry, rival: None }
                } else {
                    Answer::Differs(self.object.clone())
                }
            }
            Request::Look { .. } => Answer::Looked {
                look: self.look(),
                rival: None,
            },
            other => panic!("not for an assigned subnet: {other:?}"),
        };
        self.send(if fault.is_some() {
            Event::Failed
        } else {
            Event::Answer(answer)
        });
        true
    }

    fn report(&mut self) {
        if std::mem::take(&mut self.unseen) {
            let look = self.look();
            self.send(Event::Observed(look));
        }
    }

    /// Runs without faults until nothing is left to be done.
    fn settle(&mut self) {
        for _ in 0..1000 {
            if self.work(None) {
                continue;
            }
            self.send(Event::Retry);
            self.report();
            if !self.todo.is_empty() {
                continue;
            }
            let Some(wake) = self.wake else { return };
            assert!(wake <= self.now + Duration::from_secs(10), "not in time");
            self.now = self.now.max(wake);
            self.send(Event::Tick);
        }
        panic!("it never comes to rest");
    }
}

#[test]
fn after_every_history_the_object_says_what_is_desired() {
    for seed in 0..20_000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut cluster = Cluster::new();
        let mut changes = 1;
        for _ in 0..rng.u32(5..60) {
            match rng.u32(..12) {
                0 => cluster.put(Some(attrs(rng.u8(1..4), rng.u8(1..4)))),
                1 => cluster.put(None),
                2 => {
                    cluster.object = None;
                    cluster.unseen = true;
                }
                3 => {
                    cluster.wanted = attrs(1, rng.u8(1..4));
                    cluster.send(Event::Publish(cluster.wanted.clone()));
                }
                4 => cluster.report(),
                5 => cluster.now += Duration::from_millis(rng.u64(..20_000)),
                6 => cluster.send(Event::Retry),
                7 => cluster.send(Event::Tick),
                8 => drop(cluster.work(Some(rng.bool()))),
                _ => drop(cluster.work(None)),
            }
            changes += 1;
        }
        cluster.settle();
        if cluster.object.is_none() {
            cluster.put(None);
            cluster.settle();
        }
        let shown = cluster
            .object
            .as_ref()
            .and_then(|entry| entry.attrs.clone());
        assert_eq!(shown.as_ref(), Some(&cluster.wanted), "seed {seed}");
        assert!(
            cluster.writes <= 2 * changes,
            "seed {seed}: {}",
            cluster.writes
        );
    }
}
