//! What `flannelctl cleanup` is told.

use std::path::PathBuf;

use clap::Args;
use model::IfName;

#[derive(Args)]
pub(crate) struct Cleanup {
    /// Remove it; without, only show it
    #[arg(long)]
    pub(crate) yes: bool,
    /// Show everything that goes with a device, too
    #[arg(long, short)]
    pub(crate) verbose: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// What a flanneld wrote for the others on this host; may be given again
    #[arg(
        long = "subnet-file",
        value_name = "FILE",
        default_value = "/run/flannel/subnet.env"
    )]
    pub(crate) subnet_files: Vec<PathBuf>,
    /// Routes through a gateway that bear no mark of ours, also if our flannel was here last
    ///
    /// Inside the network that the subnet file names, to one node's subnet each: what an upstream flannel
    /// with host-gw or DirectRouting leaves. Where there is nothing of ours they are taken for that.
    #[arg(long)]
    pub(crate) gateway_routes: bool,
    /// The containers' bridge; it goes if nothing is plugged in and its addresses are of flannel's network
    #[arg(long, value_name = "NAME", default_value = "cni0")]
    pub(crate) cni_bridge: IfName,
    /// Leave the containers' bridge alone
    #[arg(long)]
    pub(crate) keep_cni_bridge: bool,
    /// Where the CNI plugin keeps what it must know to delete a container
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni/flannel")]
    pub(crate) cni_data_dir: PathBuf,
    /// Where container runtimes look for networks
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub(crate) cni_conf_dir: PathBuf,
}
