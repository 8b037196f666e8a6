//! The network configuration. (being written)
use std::net::IpAddr;
use ipnet::IpNet;
use crate::{BackendType, Dual};

/// The network's configuration, every default filled in and every value checked.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConfig {
    /// Per enabled family, where the nodes' subnets come from.
    pub pools: Dual<Pool>,
    /// `EnableNFTables`.
    pub nftables: bool,
    /// `Backend`.
    pub backend: BackendConfig,
    /// Keys that mean nothing to us, to be warned of once.
    pub unknown: Vec<String>,
}

/// One family's network and how it is cut into subnets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// `Network` or `IPv6Network`.
    pub network: IpNet,
    /// `SubnetLen` or `IPv6SubnetLen`.
    pub subnet_len: u8,
    /// `SubnetMin` or `IPv6SubnetMin`: the lowest subnet's address.
    pub min: IpAddr,
    /// `SubnetMax` or `IPv6SubnetMax`: the highest subnet's address.
    pub max: IpAddr,
}

/// `Backend`: its type and its options, not yet given a meaning.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendConfig {
    /// `Type`.
    pub kind: BackendType,
    /// The other keys, lower case.
    pub options: std::collections::BTreeMap<String, serde_json::Value>,
}
