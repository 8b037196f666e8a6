//! Whether the host forwards packets at all. Nothing that we write helps where it does not.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use model::{Family, IfName, NetConfig};
use tokio::task::AbortHandle;
use tracing::{info, warn};

/// Says what to switch on, where packets between containers and other nodes would be dropped; now, and
/// again when somebody switches it off while flanneld runs. Must be called on a `LocalSet`.
pub fn start(config: &NetConfig, iface: &IfName, every: Duration) -> AbortHandle {
    let mut forwarding = Forwarding::new(config, iface);
    forwarding.check();
    let checking = async move {
        loop {
            tokio::time::sleep(every).await;
            forwarding.check();
        }
    };
    tokio::task::spawn_local(checking).abort_handle()
}

/// The settings that forwarding depends on.
struct Forwarding {
    keys: Vec<(Family, String)>,
    /// The keys that the log says are off.
    off: BTreeSet<String>,
}

/// What a check found to have changed.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    Off(Family, String),
    On(Family, String),
}

impl Forwarding {
    fn new(config: &NetConfig, iface: &IfName) -> Forwarding {
        let keys = config.families().flat_map(|family| {
            let keys = match family {
                Family::V4 => vec!["net/ipv4/ip_forward".to_owned()],
                Family::V6 => vec![
                    "net/ipv6/conf/all/forwarding".to_owned(),
                    format!("net/ipv6/conf/{iface}/forwarding"),
                ],
            };
            keys.into_iter().map(move |key| (family, key))
        });
        Forwarding {
            keys: keys.collect(),
            off: BTreeSet::new(),
        }
    }

    fn check(&mut self) {
        let read = |key: &str| fs::read_to_string(format!("/proc/sys/{key}")).ok();
        for finding in self.observe(read) {
            match finding {
                Finding::Off(family, key) => warn!(
                    "this host does not forward {family} packets, so its containers reach no other node: sysctl -w {key}=1"
                ),
                Finding::On(family, key) => info!("{key} is on: {family} packets are forwarded"),
            }
        }
    }

    /// What changed since the last time. A key that cannot be read belongs to a kernel without the
    /// family or to an interface that is gone: other messages say so.
    fn observe(&mut self, read: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (family, key) in &self.keys {
            let Some(value) = read(key) else {
                continue;
            };
            if value.trim() == "0" {
                if self.off.insert(key.clone()) {
                    findings.push(Finding::Off(*family, key.clone()));
                }
            } else if self.off.remove(key) {
                findings.push(Finding::On(*family, key.clone()));
            }
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_is_said_once_and_so_is_its_end() {
        let key = "net/ipv4/ip_forward".to_owned();
        let mut forwarding = Forwarding {
            keys: vec![(Family::V4, key.clone())],
            off: BTreeSet::new(),
        };
        let mut after = |value: Option<&str>| forwarding.observe(|_| value.map(str::to_owned));
        assert_eq!(after(Some("1\n")), []);
        let off = [Finding::Off(Family::V4, key.clone())];
        assert_eq!(after(Some("0\n")), off);
        assert_eq!(after(Some("0\n")), []);
        // One that cannot be read at the moment changes nothing.
        assert_eq!(after(None), []);
        assert_eq!(after(Some("0\n")), []);
        assert_eq!(after(Some("1\n")), [Finding::On(Family::V4, key)]);
        assert_eq!(after(Some("1\n")), []);
    }
}
