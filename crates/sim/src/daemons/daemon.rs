//! A daemon that runs on the simulation's thread and can be killed at any step.

use std::cell::Cell;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use flanneld::identity::Implementation;
use flanneld::node::{Node, NodeBuilder, NodeError, Options, StoreChoice};
use store::{Dialer, EtcdSettings};
use tokio::task::JoinHandle;
use tracing::{Span, info_span};

use super::machine::SimMachine;
use super::network::members;

/// The prefix of the network's keys in etcd.
pub const PREFIX: &str = "/coreos.com/network";

/// A running daemon.
pub struct Daemon {
    node: Node,
    life: Rc<Life>,
    task: JoinHandle<Option<Result<(), NodeError>>>,
}

/// The steps of a daemon.
#[derive(Default)]
struct Life {
    steps: Cell<u64>,
    /// The step at which it is killed.
    last: Cell<Option<u64>>,
}

impl Daemon {
    /// Starts the daemon of a node on its machine, with its files in `dir`.
    pub fn start(number: usize, machine: &Arc<SimMachine>, dialer: Dialer, dir: &Path) -> Daemon {
        let endpoints: Vec<String> = members()
            .map(|member| format!("http://{member}:2379"))
            .collect();
        let etcd = EtcdSettings {
            endpoints: endpoints.join(","),
            prefix: PREFIX.into(),
            dialer: Some(dialer),
            ..EtcdSettings::default()
        };
        let mut options = Options::new(StoreChoice::Etcd(Box::new(etcd)), dir);
        options.machine = machine.clone();
        options.probe_port = None;
        options.keys.implementation = Implementation::Kernel;
        let (node, runner) = NodeBuilder::new(options).prepare();
        let life = Rc::<Life>::default();
        let mortal = Mortal {
            inner: Box::pin(runner.run()),
            life: life.clone(),
            span: info_span!("node", number),
        };
        Daemon {
            node,
            life,
            task: tokio::task::spawn_local(mortal),
        }
    }

    /// Returns the daemon as a program that embeds it sees it.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Returns how many steps it has done.
    pub fn steps(&self) -> u64 {
        self.life.steps.get()
    }

    /// Kills it after so many more steps.
    pub fn kill_after(&self, steps: u64) {
        self.life.last.set(Some(self.steps() + steps));
    }

    /// Lets it live on.
    pub fn spare(&self) {
        self.life.last.set(None);
    }

    /// Kills it now.
    pub async fn kill(self) {
        self.task.abort();
        // It is gone when this returns.
        let _ = self.task.await;
    }

    /// Returns whether it does nothing any more.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits for its end. Returns why, unless it was killed.
    pub async fn end(self) -> Option<String> {
        match self.task.await {
            Ok(Some(Ok(()))) => Some("it ended".into()),
            Ok(Some(Err(error))) => Some(error.to_string()),
            Ok(None) => None,
            Err(error) if error.is_panic() => Some(format!("PANIC: {error}")),
            Err(_) => None,
        }
    }
}

/// A future that ends, without a result, at a given step.
struct Mortal<T> {
    inner: Pin<Box<dyn Future<Output = T>>>,
    life: Rc<Life>,
    /// Names the node in the log.
    span: Span,
}

impl<T> Future for Mortal<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let step = self.life.steps.get() + 1;
        self.life.steps.set(step);
        if self.life.last.get().is_some_and(|last| last <= step) {
            return Poll::Ready(None);
        }
        let span = self.span.clone();
        let _named = span.enter();
        self.inner.as_mut().poll(cx).map(Some)
    }
}
