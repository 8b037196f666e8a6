//! The life of a node: opens store and kernel, takes a subnet, follows both until somebody asks for the end.

use std::future::{Future, poll_fn};
use std::pin::pin;

use store::Store;
use tokio::sync::watch;
use tokio::task::LocalSet;
use tokio::time::{Duration, sleep};
use tracing::{Span, info_span};

use super::{NodeError, Teardown};
use crate::options::Options;
use crate::settle::open_store;
use crate::startup;
use crate::status::{Phase, Status};

/// How often subscribers look whether the store waits for something else, while there is no subnet.
const LOOK: Duration = Duration::from_secs(1);

/// The part of a node that does the work. It can be sent to the thread that is to run it, and stays there.
#[must_use = "the node does nothing until it is run"]
pub struct Runner {
    options: Options,
    name: Option<String>,
    stop: watch::Receiver<Option<Teardown>>,
    end: End,
}

/// Reports the end, also if the runner is dropped or panics.
struct End {
    status: Status,
    sender: watch::Sender<Option<Result<(), NodeError>>>,
}

impl End {
    /// Reports the end, unless it is known.
    fn report(&self, result: Result<(), NodeError>) {
        // First: who has waited for the end sees no other status any more.
        self.status.set_phase(Phase::Ended);
        self.sender.send_if_modified(|end| {
            let is_first = end.is_none();
            end.get_or_insert(result);
            is_first
        });
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.report(Err(NodeError::Died));
    }
}

impl Runner {
    pub(super) fn new(
        options: Options,
        name: Option<String>,
        status: Status,
        stop: watch::Receiver<Option<Teardown>>,
        ended: watch::Sender<Option<Result<(), NodeError>>>,
    ) -> Runner {
        Runner {
            options,
            name,
            stop,
            end: End {
                status,
                sender: ended,
            },
        }
    }

    /// Ends a node that cannot be run.
    pub(super) fn fail(self, error: NodeError) {
        self.end.report(Err(error));
    }

    /// Runs the node on the current thread until it ends, for whoever has a tokio runtime with I/O and time that may
    /// be used for it. Dropping the future ends the node at once; what it has put into the kernel stays.
    ///
    /// # Errors
    /// Why it has ended, if nobody asked for it; [`super::Node::ended`] returns the same.
    pub async fn run(self) -> Result<(), NodeError> {
        let Runner {
            options,
            name,
            mut stop,
            end,
        } = self;
        let span = name.map_or_else(Span::none, |name| info_span!("node", name));
        let local = LocalSet::new();
        let ended = {
            let live = Box::pin(live(options, &mut stop, &end.status));
            // It polls all tasks of the node, which are in the span, too.
            let mut running = pin!(local.run_until(live));
            poll_fn(|cx| span.in_scope(|| running.as_mut().poll(cx))).await
        };
        // Every task of the node has ended when its end is reported.
        drop(local);
        end.report(ended.clone());
        ended
    }
}

/// Runs a node on the current `LocalSet`.
async fn live(
    options: Options,
    stop: &mut watch::Receiver<Option<Teardown>>,
    status: &Status,
) -> Result<(), NodeError> {
    status.set_store(options.store.to_string());
    let _probing = options
        .probe_port
        .and_then(|port| status.start_probes(port));
    let store = open_store(&options).map_err(|error| NodeError::of_store(&error))?;
    status.set_store_waits(store.status());
    let kernel = options.machine.open_kernel(&options)?;
    // Every step may be dropped at its next await: files are written whole, and the kernel keeps what it was given.
    // Each step is boxed: its memory goes when it is done, and does not make the whole program's future larger.
    let mut acquiring = Box::pin(startup::acquire(options, store, kernel, status.clone()));
    let acquired = loop {
        tokio::select! {
            acquired = &mut acquiring => break acquired?,
            _ = asked(stop) => return Ok(()),
            () = sleep(LOOK) => status.touch(),
        }
    };
    drop(acquiring);
    let mut building = Box::pin(startup::build(acquired));
    let (mut daemon, mut teardown) = tokio::select! {
        daemon = &mut building => (daemon?, None),
        teardown = asked(stop) => match teardown {
            Teardown::Keep => return Ok(()),
            // What is half made is known, and removed, when it is made.
            Teardown::Remove => (building.as_mut().await?, Some(teardown)),
        },
    };
    drop(building);
    if teardown.is_none() {
        teardown = Some(tokio::select! {
            ended = Box::pin(daemon.run()) => return ended,
            teardown = asked(stop) => teardown,
        });
    }
    match teardown {
        Some(Teardown::Remove) => Box::pin(daemon.tear_down()).await,
        Some(Teardown::Keep) | None => Ok(()),
    }
}

/// Waits until the end is asked for, or the node's handle is dropped.
async fn asked(stop: &mut watch::Receiver<Option<Teardown>>) -> Teardown {
    match stop.wait_for(Option::is_some).await {
        Ok(teardown) => teardown.unwrap_or(Teardown::Keep),
        Err(_) => Teardown::Keep,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::node::NodeBuilder;
    use crate::options::{Options, StoreChoice};

    #[test]
    fn the_future_of_a_node_is_small() {
        let store = StoreChoice::Directory("/a".into());
        let options = Options::new(store, Path::new("/b"));
        let (_node, runner) = NodeBuilder::new(options).prepare();
        let size = size_of_val(&runner.run());
        assert!(size < 16 << 10, "{size} bytes");
    }
}
