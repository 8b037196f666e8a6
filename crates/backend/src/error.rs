//! Why a backend cannot be had, and why a peer cannot be used.

use std::net::IpAddr;

use model::{BackendType, ConfigError, Family, Host, IfName, Lease, Mac};

/// Why a backend cannot work with this configuration on this machine.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// An option holds what it may not.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A type that nobody knows.
    #[error("Backend.Type is {0:?}: expected one of {known}", known = names(&BackendType::KNOWN))]
    Unknown(Box<str>),
    /// The device's name would be longer than the kernel takes.
    #[error(
        "Backend.VNI is {vni}: the {family} device would be called {name}, and a device's name has at most 15 characters"
    )]
    DeviceName {
        /// The option's value.
        vni: u32,
        /// The family whose device it is.
        family: Family,
        /// The name that is too long.
        name: String,
    },
    /// The node's WireGuard key is not known.
    #[error("this node's WireGuard key is not known: without it nothing can be encrypted")]
    NoKey,
    /// The interface lacks an address of a family that the network has.
    #[error(
        "interface {iface} has no {family} address, which the network configuration asks for: give it one, choose another interface, or set Enable{family} to false"
    )]
    NoAddress {
        /// The interface.
        iface: IfName,
        /// The family.
        family: Family,
    },
    /// The backend carries no IPv6.
    #[error("{0} carries IPv4 only: use vxlan for IPv6, or set EnableIPv6 to false")]
    V4Only(BackendType),
    /// The peers' packets would arrive at a translator, and not here.
    #[error(
        "the public IP {public_ip} is not the address {addr} of {iface}: host-gw cannot work behind address translation; use vxlan, or leave the public IP to its default"
    )]
    Translated {
        /// What the peers would send to.
        public_ip: IpAddr,
        /// What the interface has.
        addr: IpAddr,
        /// The interface.
        iface: IfName,
    },
    /// After the tunnel's header too little is left.
    #[error("{iface} carries packets of {mtu} bytes at most: an {family} tunnel needs {needed}")]
    SmallMtu {
        /// The interface.
        iface: IfName,
        /// Its MTU in bytes.
        mtu: u32,
        /// The family.
        family: Family,
        /// The least MTU that would do.
        needed: u32,
    },
}

impl BackendError {
    /// Returns whether the fault lies in the network configuration, which somebody may correct while
    /// the node waits; the other faults lie in this machine or its flags.
    pub fn is_in_config(&self) -> bool {
        match self {
            BackendError::Config(_)
            | BackendError::Unknown(_)
            | BackendError::V4Only(_)
            | BackendError::DeviceName { .. } => true,
            BackendError::NoKey
            | BackendError::NoAddress { .. }
            | BackendError::Translated { .. }
            | BackendError::SmallMtu { .. } => false,
        }
    }
}

/// The types that [`crate::new`] knows.
pub const HAVE: [BackendType; 8] = [
    BackendType::Vxlan,
    BackendType::HostGw,
    BackendType::Ipip,
    BackendType::Wireguard,
    BackendType::Ipsec,
    BackendType::Udp,
    BackendType::Alloc,
    BackendType::Extension,
];

fn names(kinds: &[BackendType]) -> String {
    kinds
        .iter()
        .map(BackendType::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}

/// What is wrong with a lease.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No address to send to.
    #[error("it has an {0} subnet, and no {key} to reach it by", key = public_ip_key(*.0))]
    NoAddress(Family),
    /// It says that its packets are to be sent to ourselves.
    #[error("its {key} {ip} is this node's own", key = public_ip_key(*.family))]
    OurAddress {
        /// The family.
        family: Family,
        /// The address.
        ip: IpAddr,
    },
    /// No data of the backend.
    #[error("it has no {key}", key = data_key(*.0))]
    NoData(Family),
    /// Data that cannot be read.
    #[error("its {key} cannot be used: {reason}", key = data_key(*.family))]
    BadData {
        /// The family.
        family: Family,
        /// What is wrong.
        reason: String,
    },
    /// It claims our MAC, and so our packets.
    #[error("its {key} has VtepMAC {mac}, which is this node's own", key = data_key(*.family))]
    OurMac {
        /// The family.
        family: Family,
        /// The MAC.
        mac: Mac,
    },
    /// It is on another vxlan network.
    #[error("its {key} has VNI {theirs}, and this node's is {ours}", key = data_key(*.family))]
    OtherVni {
        /// The family.
        family: Family,
        /// The peer's.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// There is a router in between.
    #[error("its {key} {ip} is not on the link of {iface}, as host-gw needs: use vxlan (with DirectRouting, if most nodes share a link)", key = public_ip_key(*.family))]
    NotOnLink {
        /// The family.
        family: Family,
        /// The address.
        ip: IpAddr,
        /// Our interface.
        iface: IfName,
    },
}

fn public_ip_key(family: Family) -> &'static str {
    match family {
        Family::V4 => "PublicIP",
        Family::V6 => "PublicIPv6",
    }
}

fn data_key(family: Family) -> &'static str {
    match family {
        Family::V4 => "BackendData",
        Family::V6 => "BackendV6Data",
    }
}

/// The address to send the peer's packets to.
pub(crate) fn underlay(peer: &Lease, family: Family, host: &Host) -> Result<IpAddr, Fault> {
    let ip = *peer
        .attrs
        .public_ip
        .get(family)
        .ok_or(Fault::NoAddress(family))?;
    let ours = [host.public_ip.get(family), host.addr.get(family)];
    if ours.contains(&Some(&ip)) {
        Err(Fault::OurAddress { family, ip })
    } else {
        Ok(ip)
    }
}
