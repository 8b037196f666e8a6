//! Commands of the administrator that act in the place of kernel objects (backend `extension`): one after
//! this node has its subnet, one for each peer that comes and one for each that goes.
//!
//! An object of these kinds "exists" once its command has ended with success.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::Kind;
use crate::{Dual, IfName, SubnetKey};

/// What a command gets as environment variables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandEnv {
    /// The flannel network.
    pub network: Dual<IpNet>,
    /// The node's subnet.
    pub subnet: Dual<IpNet>,
    /// The node's address.
    pub public_ip: Dual<IpAddr>,
}

impl CommandEnv {
    /// Returns the variables. What a node does not have is empty.
    pub fn variables(&self) -> [(&'static str, String); 6] {
        fn text<T: ToString>(value: Option<&T>) -> String {
            value.map(T::to_string).unwrap_or_default()
        }
        [
            ("NETWORK", text(self.network.v4.as_ref())),
            ("IPV6NETWORK", text(self.network.v6.as_ref())),
            ("SUBNET", text(self.subnet.v4.as_ref())),
            ("IPV6SUBNET", text(self.subnet.v6.as_ref())),
            ("PUBLIC_IP", text(self.public_ip.v4.as_ref())),
            ("PUBLIC_IPV6", text(self.public_ip.v6.as_ref())),
        ]
    }
}

/// Writes the variables in front of the command, as a shell takes them.
impl fmt::Display for CommandEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variables = self.variables().into_iter();
        for (name, value) in variables.filter(|(_, value)| !value.is_empty()) {
            write!(f, "{name}={value} ")?;
        }
        Ok(())
    }
}

/// The command that prepares this node once it has its subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostStartup {
    /// Program and arguments, separated by white space.
    pub line: Arc<str>,
    /// About this node.
    pub env: CommandEnv,
    /// How long it may take.
    pub limit: Duration,
}

/// Commands that prepare this node. There is at most one.
pub struct PostStartups;

impl Kind for PostStartups {
    type Key = ();
    type Value = PostStartup;
    const NAME: &'static str = "PostStartupCommand";

    fn device((): &(), _: &PostStartup) -> Option<IfName> {
        None
    }

    fn put(f: &mut fmt::Formatter<'_>, (): &(), command: &PostStartup) -> fmt::Result {
        write!(f, "{}{}", command.env, command.line)
    }

    fn del(f: &mut fmt::Formatter<'_>, (): &(), _: &PostStartup) -> fmt::Result {
        f.write_str("# forget PostStartupCommand")
    }
}

/// The commands for peers, the same for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCommands {
    /// Run for a peer that comes or changes.
    pub add: Option<Arc<str>>,
    /// Run for a peer that goes or changes.
    pub remove: Option<Arc<str>>,
    /// How long one may take.
    pub limit: Duration,
    /// Other commands prepare this node at each start of the daemon, and may undo what was done for peers.
    pub prepared: bool,
}

/// What was done for a peer, or is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCommand {
    /// The commands.
    pub commands: Arc<PeerCommands>,
    /// About the peer.
    pub env: CommandEnv,
    /// What the peer published, for the command's standard input. Never part of a command line.
    pub data: Arc<str>,
    /// It was done by an earlier run of the daemon, and is to be done again: what this run did
    /// since it started may have undone it.
    pub earlier: bool,
}

impl PeerCommand {
    /// Returns whether the command that adds the peer is the same and gets the same.
    pub fn adds_the_same(&self, other: &PeerCommand) -> bool {
        self.commands.add == other.commands.add && self.env == other.env && self.data == other.data
    }

    fn write(
        &self,
        f: &mut fmt::Formatter<'_>,
        name: &str,
        line: Option<&Arc<str>>,
    ) -> fmt::Result {
        let Some(line) = line else {
            return write!(f, "{}: # no {name}", self.env);
        };
        write!(f, "{}{line}", self.env)?;
        if !self.data.is_empty() {
            f.write_str(" < BackendData")?;
        }
        Ok(())
    }
}

/// Commands for peers, by the peer's lease.
pub struct PeerCommandRuns;

impl Kind for PeerCommandRuns {
    type Key = SubnetKey;
    type Value = PeerCommand;
    const NAME: &'static str = "peer command";

    fn device(_: &SubnetKey, _: &PeerCommand) -> Option<IfName> {
        None
    }

    fn put(f: &mut fmt::Formatter<'_>, _: &SubnetKey, peer: &PeerCommand) -> fmt::Result {
        peer.write(f, "SubnetAddCommand", peer.commands.add.as_ref())
    }

    fn del(f: &mut fmt::Formatter<'_>, _: &SubnetKey, peer: &PeerCommand) -> fmt::Result {
        peer.write(f, "SubnetRemoveCommand", peer.commands.remove.as_ref())
    }
}
