//! Whether the host forwards packets at all. Nothing that we write helps where it does not.

use std::fs;

use model::{Family, IfName, NetConfig};
use tracing::warn;

/// Says what to switch on, where packets between containers and other nodes would be dropped.
pub fn check(config: &NetConfig, iface: &IfName) {
    for family in config.families() {
        let keys = match family {
            Family::V4 => vec!["net/ipv4/ip_forward".to_owned()],
            Family::V6 => vec![
                "net/ipv6/conf/all/forwarding".to_owned(),
                format!("net/ipv6/conf/{iface}/forwarding"),
            ],
        };
        for key in keys {
            // A key that is not there belongs to a kernel without the family: others will say so.
            let Ok(value) = fs::read_to_string(format!("/proc/sys/{key}")) else {
                continue;
            };
            if value.trim() == "0" {
                warn!(
                    "this host does not forward {family} packets, so its containers reach no other node: sysctl -w {key}=1"
                );
            }
        }
    }
}
