//! The cluster's networks, taken from flannel's own network config so that the two cannot disagree.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::Family;
use serde_json::Value;

use crate::Error;

/// Where services are, and the API server's among them.
const SERVICES4: (&str, Ipv4Addr) = ("10.96.0.0/16", Ipv4Addr::new(10, 96, 0, 1));
const SERVICES6: (&str, Ipv6Addr) = (
    "fd00:96::/112",
    Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1),
);

/// The networks of a cluster, IPv4 first.
#[derive(Clone, Debug)]
pub(crate) struct Networks {
    /// The pods' network and the length of a node's share of it.
    pods: Vec<(IpNet, u64)>,
}

impl Networks {
    /// Reads `Network`, `SubnetLen`, `IPv6Network` and `IPv6SubnetLen`.
    pub(crate) fn of_config(config: &Value) -> Result<Networks, Error> {
        let mut pods = Vec::new();
        let families = [
            ("Network", "SubnetLen", 24),
            ("IPv6Network", "IPv6SubnetLen", 64),
        ];
        for (network, length, default) in families {
            let Some(text) = config[network].as_str() else {
                continue;
            };
            let net: IpNet = text.parse().map_err(|_| {
                Error::Bad(format!("network config: {network} {text:?} is no network"))
            })?;
            pods.push((net, config[length].as_u64().unwrap_or(default)));
        }
        match pods.is_empty() {
            true => Err(Error::Bad(
                "network config: no Network and no IPv6Network".into(),
            )),
            false => Ok(Networks { pods }),
        }
    }

    pub(crate) fn first_is_ipv4(&self) -> bool {
        self.pods
            .first()
            .is_some_and(|(net, _)| net.addr().is_ipv4())
    }

    /// The pods' families, the first one first.
    pub(crate) fn families(&self) -> impl Iterator<Item = Family> {
        self.pods.iter().map(|(net, _)| Family::of_net(net))
    }

    /// For `--cluster-cidr`.
    pub(crate) fn pod_networks(&self) -> String {
        self.joined(|net| net.to_string())
    }

    /// For `--service-cluster-ip-range`.
    pub(crate) fn service_ranges(&self) -> String {
        self.joined(|net| match net {
            IpNet::V4(_) => SERVICES4.0.into(),
            IpNet::V6(_) => SERVICES6.0.into(),
        })
    }

    /// The addresses of the service `kubernetes`.
    pub(crate) fn service_addresses(&self) -> Vec<IpAddr> {
        let address = |net: &IpNet| match net {
            IpNet::V4(_) => SERVICES4.1.into(),
            IpNet::V6(_) => SERVICES6.1.into(),
        };
        self.pods.iter().map(|(net, _)| address(net)).collect()
    }

    /// The flags that say how large a node's share is.
    pub(crate) fn mask_sizes(&self) -> Vec<String> {
        let dual = self.pods.len() > 1;
        let flag = |(net, length): &(IpNet, u64)| match (dual, net) {
            (false, _) => format!("--node-cidr-mask-size={length}"),
            (true, IpNet::V4(_)) => format!("--node-cidr-mask-size-ipv4={length}"),
            (true, IpNet::V6(_)) => format!("--node-cidr-mask-size-ipv6={length}"),
        };
        self.pods.iter().map(flag).collect()
    }

    fn joined(&self, part: impl Fn(&IpNet) -> String) -> String {
        let parts: Vec<String> = self.pods.iter().map(|(net, _)| part(net)).collect();
        parts.join(",")
    }
}
