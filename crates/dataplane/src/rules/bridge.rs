//! Whether packets between two ports of a bridge pass through iptables at all.

use std::path::Path;

use super::tools::Tools;

const SWITCH: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// What is the case with `br_netfilter`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BridgeFilter {
    /// It is there.
    There,
    /// It was missing and is there now.
    Loaded,
    /// It is missing; the text says why it could not be loaded.
    Missing(String),
}

/// Looks for `br_netfilter` and tries to load it where it is missing. Everything else works without
/// it: the network need not wait.
pub async fn bridge_filter() -> BridgeFilter {
    with(Path::new(SWITCH), &Tools::new()).await
}

pub(super) async fn with(switch: &Path, tools: &Tools) -> BridgeFilter {
    if switch.exists() {
        return BridgeFilter::There;
    }
    match tools.run("modprobe", &["br_netfilter"], None).await {
        Ok(_) if switch.exists() => BridgeFilter::Loaded,
        Ok(_) => BridgeFilter::Missing(format!("{} is missing all the same", switch.display())),
        Err(error) => BridgeFilter::Missing(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_missing_switch_is_told_with_its_cure() {
        let nowhere = Path::new("/nowhere/bridge-nf-call-iptables");
        let none = Tools::within(Vec::new());
        assert_eq!(
            with(Path::new("/proc/self"), &none).await,
            BridgeFilter::There
        );
        let BridgeFilter::Missing(why) = with(nowhere, &none).await else {
            panic!("found nowhere");
        };
        assert_eq!(
            why,
            "modprobe is not installed on this host: install the package kmod"
        );
    }
}
