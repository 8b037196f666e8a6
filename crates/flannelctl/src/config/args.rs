//! What `flannelctl config` is told.

use clap::{Args, Subcommand};

use crate::store_args::StoreArgs;

#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the network configuration, as it is stored
    ///
    /// Exit status 3: there is none, or (with --effective) none that flanneld would take.
    Get(Get),
    /// Write the network configuration, unless flanneld would refuse it
    ///
    /// Prints "written" or "unchanged"; exit status 3: refused, and nothing was written. What is
    /// equal to what is stored is not written again, so the command can be run any number of times.
    Set(Set),
    /// Check a network configuration without any store; tells everything that is wrong
    ///
    /// Exit status 3: flanneld would refuse it.
    Validate(Validate),
}

#[derive(Args)]
pub(crate) struct Get {
    /// With every default filled in, as flanneld understands it
    #[arg(long)]
    pub(crate) effective: bool,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

#[derive(Args)]
pub(crate) struct Set {
    /// A file, - for standard input, or the JSON itself
    #[arg(value_name = "FILE|-|JSON")]
    pub(crate) source: String,
    /// Only if there is none yet: what is there stays, whatever it says
    #[arg(long)]
    pub(crate) if_absent: bool,
    /// Even if there are leases that do not fit it
    #[arg(long, visible_alias = "yes")]
    pub(crate) force: bool,
    /// Say what would be done, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Wait until every node that has a lease serves the new backend, and nothing beside it
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long --wait waits, in seconds; exit status 3 after that
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) timeout: u64,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

#[derive(Args)]
pub(crate) struct Validate {
    /// A file, - for standard input, or the JSON itself
    #[arg(value_name = "FILE|-|JSON")]
    pub(crate) source: String,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
