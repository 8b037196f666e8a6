//! Withdrawal of `subnet.env` and the CNI configuration of a subnet that this node no longer has.
//!
//! While this node had no daemon, another node may have taken its subnet, or its Node object may have got
//! another podCIDR, or none. As long as the files of the former subnet exist, containers get addresses
//! that another node may have by now. So they are withdrawn as soon as the store has shown that the
//! subnet is not this node's, and at no other time: while the store cannot be reached nothing is known,
//! and the files stay.
//!
//! `subnet.env` is renamed, not deleted: the next start still reads the networks from it whose rules and
//! routes may be left on this host. The CNI configuration goes first, so that the kubelet places no more
//! pods here; if the daemon ends between the two steps, the next start finds `subnet.env` and does both
//! again.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use model::SubnetKey;
use store::Assigned;
use tokio::sync::watch;
use tracing::warn;

use crate::cni_conf;
use crate::options::{CniConf, Options};

/// The files that name the subnet of an earlier run.
#[derive(Clone, Debug)]
pub(crate) struct Former {
    subnet: SubnetKey,
    subnet_file: PathBuf,
    cni_conf: Option<CniConf>,
}

impl Former {
    /// The files of an earlier run, if they name a subnet.
    pub(crate) fn new(options: &Options, subnet: Option<SubnetKey>) -> Option<Former> {
        Some(Former {
            subnet: subnet?,
            subnet_file: options.subnet_file.clone(),
            cni_conf: options.cni_conf.clone(),
        })
    }

    /// Withdraws the files if `assigned` says that the subnet is not this node's. Returns whether so.
    pub(crate) fn withdraw_if(&self, assigned: Assigned) -> bool {
        if !assigned.excludes(&self.subnet) {
            return false;
        }
        if let Some(conf) = &self.cni_conf {
            cni_conf::remove(conf);
        }
        let path = &self.subnet_file;
        match std::fs::rename(path, withdrawn(path)) {
            Ok(()) => warn!(
                "-subnet-file {}: withdrawn, because {}: no container gets an address until the node has a subnet again",
                path.display(),
                reason(&self.subnet, assigned)
            ),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => warn!(
                "-subnet-file {}: cannot withdraw it: {error}; delete it, because {}",
                path.display(),
                reason(&self.subnet, assigned)
            ),
        }
        true
    }
}

fn reason(former: &SubnetKey, assigned: Assigned) -> String {
    match assigned {
        Assigned::Subnet(now) => {
            format!("it names {former}, and this node's subnet is {now} now")
        }
        Assigned::AnotherNodes(theirs) => {
            format!("it names {former}, and {theirs} belongs to another node now")
        }
        Assigned::Unknown | Assigned::Nothing => {
            format!("it names {former}, and the store assigns no subnet to this node")
        }
    }
}

/// Withdraws the files as soon as they are known to be wrong. Never returns; dropping the future ends
/// it.
pub(crate) async fn when_stale(
    former: Option<Former>,
    mut assigned: watch::Receiver<Assigned>,
) -> Infallible {
    if let Some(former) = former {
        loop {
            let now = *assigned.borrow_and_update();
            if former.withdraw_if(now) || assigned.changed().await.is_err() {
                break;
            }
        }
    }
    std::future::pending().await
}

/// Where a withdrawn file is kept.
pub fn withdrawn(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".withdrawn");
    name.into()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn key(text: &str) -> SubnetKey {
        text.parse().unwrap()
    }

    #[test]
    fn only_a_subnet_that_is_known_to_be_anothers_is_withdrawn() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("subnet.env");
        let conf = dir.path().join("10-flannel.conflist");
        let both = "172.30.9.0-24&fd00:0:0:9::-64";
        let cases = [
            ("172.30.9.0-24", Assigned::Unknown, true),
            (
                "172.30.9.0-24",
                Assigned::Subnet(key("172.30.9.0-24")),
                true,
            ),
            ("172.30.9.0-24", Assigned::Subnet(key(both)), true),
            (both, Assigned::Subnet(key("172.30.9.0-24")), false),
            (
                "172.30.9.0-24",
                Assigned::Subnet(key("172.30.10.0-24")),
                false,
            ),
            (
                "172.30.9.0-24",
                Assigned::Subnet(key("172.30.8.0-23")),
                false,
            ),
            ("172.30.9.0-24", Assigned::Nothing, false),
            (
                "172.30.9.0-24",
                Assigned::AnotherNodes(key("172.30.8.0-23")),
                false,
            ),
            (
                "172.30.9.0-24",
                Assigned::AnotherNodes(key("172.30.10.0-24")),
                true,
            ),
        ];
        for (was, now, stays) in cases {
            fs::write(&file, "FLANNEL_NETWORK=172.30.0.0/16\n").unwrap();
            fs::write(&conf, "{}").unwrap();
            let former = Former {
                subnet: key(was),
                subnet_file: file.clone(),
                cni_conf: Some(CniConf {
                    source: dir.path().join("source"),
                    file: conf.clone(),
                }),
            };
            assert_eq!(former.withdraw_if(now), !stays, "{was} {now:?}");
            assert_eq!(
                (file.exists(), conf.exists()),
                (stays, stays),
                "{was} {now:?}"
            );
            // What a crash leaves of it is completed by the next run.
            former.withdraw_if(now);
            assert_eq!(
                (file.exists(), conf.exists()),
                (stays, stays),
                "{was} {now:?}"
            );
        }
        assert_eq!(
            crate::subnet_file::former_networks(&file),
            ["172.30.0.0/16".parse::<ipnet::IpNet>().unwrap()],
            "the networks are still known"
        );
    }
}
