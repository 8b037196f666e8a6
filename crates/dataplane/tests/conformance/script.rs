//! A case is a script: what the program does, what others do, and what must then be known.
//!
//! After every step the program follows the events as the reconciler does: it believes `Saw` and
//! `Gone`, and looks again when told to. It must then know exactly what there is.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use dataplane::{Dataplane, KernelEvent, Scope};
use model::object::Link;
use model::{Object, Op};

use crate::objects::{IFACE, IFACE_INDEX, dels, dev, puts, route};
use crate::worlds::World;

/// How long the kernel may take until its notices are there: link changes come by a work queue.
const SOON: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub enum Step {
    /// The program makes these changes and all succeed.
    Apply(Vec<Op>),
    /// The program makes this change and it fails with this number and text.
    Refused(Op, i32, &'static str),
    /// Somebody else does.
    Outside(Op),
    /// Somebody else changes MAC, MTU or checksum offload.
    Alter(&'static str, Link),
    /// Somebody else sets a device up or down.
    Up(&'static str, bool),
    /// The carrier of `eth0` comes or goes.
    Carrier(bool),
    /// The program knows this, and nothing else.
    Holds(Vec<Object>),
    /// The program starts again.
    Restart,
    /// The program knows this after another full look, whatever a program that starts now would take
    /// for its own.
    Knows(Vec<Object>),
    /// The program was not woken since the last [`Step::Apply`] or [`Step::Holds`].
    Quiet,
    /// The program was told since then that the host changed.
    HostChanged,
}

pub struct Player<'a, W: World> {
    world: &'a W,
    plane: W::Plane,
    scope: Scope,
    known: Vec<Object>,
    /// What came since the last step that expects something.
    log: Vec<KernelEvent>,
}

impl<'a, W: World> Player<'a, W> {
    pub async fn new(world: &'a W, scope: Scope) -> Player<'a, W> {
        let mut plane = world.plane();
        plane.set_scope(scope.clone());
        let mut player = Player {
            world,
            plane,
            scope,
            known: Vec::new(),
            log: Vec::new(),
        };
        player.look().await;
        player
    }

    pub async fn play(&mut self, steps: &[Step]) {
        for (i, step) in steps.iter().enumerate() {
            self.step(step, i).await;
        }
    }

    async fn step(&mut self, step: &Step, i: usize) {
        match step {
            Step::Apply(ops) => {
                self.catch_up(i).await;
                for (op, outcome) in ops.iter().zip(self.plane.apply(ops).await) {
                    assert!(outcome.is_done(), "step {i}: {op}: {outcome:?}");
                    self.believe(match op {
                        Op::Put(object) => KernelEvent::Saw(object.clone()),
                        Op::Del(object) => KernelEvent::Gone(object.clone()),
                    });
                    if cascades(op) {
                        self.look().await;
                    }
                }
                self.log.clear();
                let truth = sorted(&self.world.truth(&self.scope).await);
                let known = sorted(&self.known);
                assert!(
                    known == truth,
                    "step {i}\nknown, not there:\n{}",
                    difference(&known, &truth)
                );
            }
            Step::Refused(op, errno, text) => {
                let outcome = self.plane.apply(std::slice::from_ref(op)).await.remove(0);
                let Some(err) = outcome.refusal() else {
                    panic!("step {i}: {op} succeeded")
                };
                assert_eq!(err.errno, *errno, "step {i}: {err}");
                assert!(
                    err.reason.contains(text),
                    "step {i}: {err} does not say {text:?}"
                );
                assert_eq!(err.op, op.to_string());
            }
            Step::Restart => {
                self.plane = self.world.plane();
                self.plane.set_scope(self.scope.clone());
                self.look().await;
            }
            Step::Knows(objects) => {
                self.look().await;
                assert_eq!(sorted(&self.known), sorted(objects), "step {i}");
            }
            Step::Outside(op) => self.world.outside(op),
            Step::Alter(name, link) => self.world.alter(name, link),
            Step::Up(name, up) => self.world.set_up(name, *up),
            Step::Carrier(carrier) => self.world.set_carrier(*carrier),
            Step::Holds(objects) => {
                self.follow_until(sorted(objects), i).await;
                self.log.clear();
            }
            Step::Quiet => {
                self.catch_up(i).await;
                assert_eq!(self.log, [], "step {i}: woken by what does not concern it");
            }
            Step::HostChanged => {
                let deadline = Instant::now() + SOON;
                while !self.log.contains(&KernelEvent::HostChanged) {
                    assert!(
                        Instant::now() < deadline,
                        "step {i}: not told of the host's change: {:?}",
                        self.log
                    );
                    self.next().await;
                }
            }
        }
    }

    /// Follows events until both what is known and what is there are as `expected`.
    async fn follow_until(&mut self, expected: Vec<String>, i: usize) {
        let deadline = Instant::now() + SOON;
        loop {
            let known = sorted(&self.known);
            let late = Instant::now() > deadline;
            // The truth costs several programs: asked once there is something to compare it with.
            let truth = match late || known == expected {
                true => sorted(&self.world.truth(&self.scope).await),
                false => Vec::new(),
            };
            if known == expected && truth == expected {
                return;
            }
            if late {
                panic!(
                    "step {i}\nthere, not expected:\n{}\nknown, not there:\n{}\nlog: {:#?}",
                    difference(&truth, &expected),
                    difference(&known, &truth),
                    self.log,
                );
            }
            self.next().await;
        }
    }

    /// Takes in one event, if one comes soon.
    async fn next(&mut self) {
        let soon = Duration::from_millis(20);
        if let Ok(event) = tokio::time::timeout(soon, self.plane.event()).await {
            self.log.push(event.clone());
            match event {
                KernelEvent::LookAgain => self.look().await,
                event => self.believe(event),
            }
        }
    }

    /// Everything announced until now, known by an event that we cause after it.
    async fn catch_up(&mut self, i: usize) {
        let sentinel = route("10.244.255.0/24", model::object::RouteTo::Blackhole);
        let (put, del) = (Op::Put(sentinel.clone()), Op::Del(sentinel.clone()));
        for (op, there) in [(put, true), (del, false)] {
            self.world.outside(&op);
            let deadline = Instant::now() + SOON;
            while self.known.contains(&sentinel) != there {
                let late = Instant::now() > deadline;
                assert!(!late, "step {i}: an event got lost: {:?}", self.log);
                self.next().await;
            }
        }
        let of_it = [
            KernelEvent::Saw(sentinel.clone()),
            KernelEvent::Gone(sentinel),
        ];
        self.log.retain(|event| !of_it.contains(event));
    }

    async fn look(&mut self) {
        let mut seen = Vec::new();
        self.plane
            .observe(&mut |object| seen.push(object))
            .await
            .unwrap();
        self.known = seen;
    }

    fn believe(&mut self, event: KernelEvent) {
        match event {
            KernelEvent::Saw(object) => {
                self.known.retain(|known| !known.same_key(&object));
                self.known.push(object);
            }
            KernelEvent::Gone(object) => self.known.retain(|known| !known.same_key(&object)),
            KernelEvent::Refused(..) | KernelEvent::LookAgain | KernelEvent::HostChanged => {}
        }
    }
}

/// With what `op` writes or deletes, other objects may go.
fn cascades(op: &Op) -> bool {
    match op {
        Op::Put(object) => matches!(object, Object::Link(..)),
        Op::Del(object) => {
            matches!(
                object,
                Object::Link(..) | Object::NextHop(..) | Object::Addr(..)
            )
        }
    }
}

/// Lines of the first that the second has not (`+`), and the other way round (`-`).
fn difference(first: &[String], second: &[String]) -> String {
    let more = first
        .iter()
        .filter(|line| !second.contains(line))
        .map(|line| format!("+ {line}\n"));
    let less = second
        .iter()
        .filter(|line| !first.contains(line))
        .map(|line| format!("- {line}\n"));
    more.chain(less).collect()
}

/// As commands, in order, each once. A device beneath that was observed is known by its index.
pub fn sorted(objects: &[Object]) -> Vec<String> {
    let observed = format!("dev if{IFACE_INDEX} ");
    let lines: BTreeSet<String> = objects
        .iter()
        .map(|object| Op::Put(object.clone()).to_string())
        .map(|line| line.replace(&observed, &format!("dev {IFACE} ")))
        .collect();
    lines.into_iter().collect()
}

pub fn apply(objects: &[Object]) -> Step {
    Step::Apply(puts(objects))
}

pub fn delete(objects: &[Object]) -> Step {
    Step::Apply(dels(objects))
}

pub fn outside_put(object: Object) -> Step {
    Step::Outside(Op::Put(object))
}

pub fn outside_del(object: Object) -> Step {
    Step::Outside(Op::Del(object))
}

pub fn holds(objects: &[Object]) -> Step {
    Step::Holds(objects.to_vec())
}

/// A device of another kind.
pub fn bridge(name: &str) -> Object {
    let kind = model::object::LinkKind::Foreign("bridge".into());
    Object::Link(
        dev(name),
        Link {
            kind,
            mac: Some(crate::objects::mac(9)),
            mtu: 1500,
            up: true,
            mark: None,
            enslaved: false,
        },
    )
}
