//! The settings of a node, and its start.

use std::net::IpAddr;
use std::path::Path;
use std::thread;

use model::{Family, NetConfig};
use tokio::sync::watch;

use super::{Node, NodeError, Runner};
use crate::options::{Environment, Options, StoreChoice};
use crate::status::Status;

/// The settings of a node. What is not set is as `flanneld` has it without flags.
#[must_use = "a builder does nothing until it is started"]
pub struct NodeBuilder {
    options: Options,
    network: Option<NetConfig>,
    name: Option<String>,
}

impl Node {
    /// Returns the settings of a node whose leases are in `store`, and whose files are in `directory`: `subnet.env`,
    /// the WireGuard key and what a later start needs to know. Each node of a host needs a directory of its own.
    pub fn builder(store: StoreChoice, directory: impl AsRef<Path>) -> NodeBuilder {
        let name = directory.as_ref().display().to_string();
        NodeBuilder::new(Options::new(store, directory.as_ref())).name(name)
    }
}

impl NodeBuilder {
    /// Returns a node with these settings, whose log lines have no name.
    pub fn new(options: Options) -> NodeBuilder {
        NodeBuilder {
            options,
            network: None,
            name: None,
        }
    }

    /// Sets the name that the node's log lines have, in the span `node`: the directory, unless this is called.
    pub fn name(mut self, name: impl Into<String>) -> NodeBuilder {
        self.name = Some(name.into());
        self
    }

    /// Sets the network configuration, instead of the one in the store. Every node must be given the same;
    /// [`Node::set_network`] changes it.
    pub fn network(mut self, config: NetConfig) -> NodeBuilder {
        self.network = Some(config);
        self
    }

    /// Has the node reach the others through this interface, a name or an address; of several the first that can be
    /// used. Without it the default route decides.
    pub fn interface(mut self, name: impl Into<String>) -> NodeBuilder {
        self.options.iface.exact.push(name.into());
        self
    }

    /// Sets the address that the others send to, if it is not the interface's.
    pub fn public_ip(mut self, ip: IpAddr) -> NodeBuilder {
        let family = if ip.is_ipv4() { Family::V4 } else { Family::V6 };
        self.options.public_ip.set(family, Some(ip));
        self
    }

    /// Has packets of pods that leave the network carry this host's address.
    pub fn masquerade(mut self, on: bool) -> NodeBuilder {
        let rules = &mut self.options.traffic.rules;
        (rules.masquerade, rules.masquerade_ipv6) = (on, on);
        self
    }

    /// Has rules accept what is forwarded from and to the network; they are written unless this is `false`.
    pub fn forward_rules(mut self, on: bool) -> NodeBuilder {
        self.options.traffic.rules.forward = on;
        self
    }

    /// Sets where a store finds variables: `HTTPS_PROXY` and `NO_PROXY`, and on Kubernetes those of a pod,
    /// `KUBERNETES_SERVICE_HOST`, `NODE_NAME` and `KUBECONFIG`. Without it there are none.
    pub fn environment(mut self, environment: Environment) -> NodeBuilder {
        self.options.environment = environment;
        self
    }

    /// Returns the settings, for those that have no method here.
    pub fn options(&mut self) -> &mut Options {
        &mut self.options
    }

    /// Starts the node in a thread of its own, in the network namespace of the calling thread. It waits for what is
    /// missing, as [`Node::status`] says; [`Node::announced`] waits until it is up.
    ///
    /// # Errors
    /// [`NodeError::Thread`]: the system has no thread for it. What goes wrong later is [`Node::ended`]'s error.
    pub fn start(self) -> Result<Node, NodeError> {
        let (node, runner) = self.prepare();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => {
                    // `Node::ended` returns the same.
                    drop(runtime.block_on(runner.run()));
                    // A file system that hangs must not keep the thread: nobody waits for its answer any more.
                    runtime.shutdown_background();
                }
                Err(error) => runner.fail(NodeError::Thread(error.to_string())),
            }
        };
        thread::Builder::new()
            .name("flannel".to_owned())
            .spawn(run)
            .map_err(|error| NodeError::Thread(error.to_string()))?;
        Ok(node)
    }

    /// Returns the node and what runs it, for programs with a thread and a runtime of their own.
    pub fn prepare(self) -> (Node, Runner) {
        let mut options = self.options;
        let status = Status::default();
        let (stop, stop_asked) = watch::channel(None);
        let (ended, end) = watch::channel(None);
        let network = self.network.map(|config| {
            let (sender, receiver) = watch::channel(config);
            options.network = Some(receiver);
            sender
        });
        let node = Node {
            status: status.clone(),
            stop,
            network,
            ended: end,
        };
        let runner = Runner::new(options, self.name, status, stop_asked, ended);
        (node, runner)
    }
}
