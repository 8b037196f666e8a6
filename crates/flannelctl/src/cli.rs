//! The command line.

#[cfg(feature = "lab")]
pub(crate) mod lab_args;

#[cfg(feature = "manual")]
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::bundle::BundleArgs;
use crate::check::CheckArgs;
use crate::cleanup::Cleanup;
use crate::config::ConfigCommand;
use crate::connectivity::ConnectivityArgs;
use crate::connectivity::agent::AgentArgs;
use crate::explain::ExplainArgs;
use crate::install::Install;
use crate::key::KeyCommand;
use crate::reports::{LogLevelArgs, PeersArgs, StatusArgs, VersionArgs};
#[cfg(feature = "top")]
use crate::top::TopArgs;
use crate::upgrade_check::UpgradeCheckArgs;

#[derive(Parser)]
#[command(
    name = "flannelctl",
    version,
    about = "Set up, try and inspect flannel networks"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// A cluster on this machine: nodes, pods, store and the real flanneld
    ///
    /// Nothing of it is seen from outside: no link, no namespace, no mount, no file. It works as
    /// root, and as anybody else where the kernel allows user namespaces.
    #[cfg(feature = "lab")]
    Lab {
        #[command(subcommand)]
        command: lab_args::LabCommand,
    },
    /// Build a small cluster, show it, break it, watch it heal, and take it down
    #[cfg(feature = "lab")]
    Demo,
    /// Write the manual pages and the shells' completions, for a package
    #[cfg(feature = "manual")]
    #[command(hide = true)]
    Manual {
        /// Where to: gets the directories man, bash, zsh and fish
        dir: PathBuf,
        /// The date in the pages, such as 2026-11-21
        #[arg(long, default_value = "")]
        date: String,
    },
    /// Look at everything a node needs, and tell what to do about what is wrong
    ///
    /// Changes nothing. Exit status 1: at least one line says FAIL.
    Check(CheckArgs),
    /// The network configuration: read it, check it, write it
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Show this node: ready or not, why, its subnet, its store, its peers in numbers
    ///
    /// Asks the flanneld of this host; with --kubernetes every flanneld of a cluster. Exit status 0: ready; 3: not ready;
    /// 1: no answer.
    Status(StatusArgs),
    /// List the other nodes, and how far this node is with each
    ///
    /// Asks the flanneld of this host. Exit status 3: a peer is not installed.
    Peers(PeersArgs),
    /// Show this node and the others, what its devices carry and what has happened, until q is pressed
    ///
    /// Asks the flanneld of this host.
    #[cfg(feature = "top")]
    Top(TopArgs),
    /// Probe every other node, through the tunnel and past it, with small packets and full ones, and print a matrix
    ///
    /// The other nodes' flanneld answers. Run it on a node, as root. With --kubernetes, from anywhere: between pods that it
    /// makes on all nodes, and removes. Exit status 0: nothing is lost; 3: something is; 1: it could not be tested.
    Connectivity(ConnectivityArgs),
    /// What runs in the pods of `connectivity --kubernetes`
    #[command(hide = true)]
    ConnectivityAgent(AgentArgs),
    /// Show the way of packets between two containers, and name the first step that is broken
    ///
    /// Run it on the node of one of them, as root. Exit status 0: nothing is broken; 3: a step is, and the last line
    /// names it; 1: it could not be looked at.
    Explain(ExplainArgs),
    /// Collect everything that somebody else needs to find a fault of this node, without secrets, in one .tar.gz
    ///
    /// Links, addresses, routes, rules, sysctls, subnet.env, the CNI configuration, what flanneld reports, its log. Run it
    /// as root on the node, or in flannel's pod with `-o -`. With --kubernetes, from anywhere: of every node of a cluster.
    /// Exit status 3: a node did not answer.
    Bundle(BundleArgs),
    /// Print the level of flanneld's log, or change it until its next start
    LogLevel(LogLevelArgs),
    /// Read how upstream's flannel is set up, and tell what will differ
    ///
    /// Exit status 0: nothing has to be changed; 3: something has.
    UpgradeCheck(UpgradeCheckArgs),
    /// Print the version of this program and of the flanneld of this host, or of flannel's pods (--kubernetes)
    Version(VersionArgs),
    /// The WireGuard key of this node: show the public one, make a new one
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Print the completions of a shell
    Completion {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
    /// Install the CNI plugin on this host, as the init container of the Kubernetes manifest does
    #[command(alias = "install")]
    InstallCni(Install),
    /// Show, and with --yes remove, everything that a flannel left on this host
    ///
    /// Devices, routes, rules and files of ours or of another flannel, and nothing else. Refuses while a
    /// flanneld runs here. Exit status 3: there is something, and --yes was not given.
    Cleanup(Cleanup),
}
