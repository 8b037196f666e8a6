//! What `flannelctl check` is told.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

#[derive(Args)]
#[command(
    after_help = "The configuration that is checked, the first of these that there is:\n  \
    the flags after --, written as for flanneld, with FLANNELD_… variables for the rest;\n  \
    that of the flanneld that runs on this host;\n  \
    the FLANNELD_… variables of the environment and of --env-file."
)]
pub(crate) struct CheckArgs {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Read FLANNELD_… variables from this file [default: /etc/flannel/flanneld.env, if there is one]
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Option<PathBuf>,
    /// Where the container runtime looks for CNI configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub(crate) cni_conf_dir: PathBuf,
    /// Where it looks for CNI plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub(crate) cni_bin_dir: PathBuf,
    /// How many of the other nodes to send probes to
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) peers: usize,
    /// Only find out whether checksums survive the way to this node and back: one of its addresses in
    /// the flannel network, or its public one. `flannelctl check --answer` must run there
    #[arg(long, value_name = "ADDRESS", conflicts_with = "answer")]
    pub(crate) probe: Option<IpAddr>,
    /// Answer another node's --probe, and tell of packets that arrive with wrong checksums
    #[arg(long)]
    pub(crate) answer: bool,
    /// How long to answer
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 60,
        requires = "answer"
    )]
    pub(crate) seconds: u64,
    /// UDP port of --probe and --answer
    #[arg(long, value_name = "PORT", default_value_t = 8473)]
    pub(crate) port: u16,
    /// flanneld's flags
    #[arg(last = true, value_name = "FLAG")]
    pub(crate) flags: Vec<String>,
}
