//! Why a lease is not used, and what is worth reporting of one that is.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{BackendType, IfName, Outside, SubnetKey};

/// Why a lease is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Its owner carries packets in another way.
    #[error("its backend is {theirs}, and this node's is {ours}: the two cannot reach each other", theirs = named(.theirs))]
    OtherBackend {
        /// The lease's; `None` where it names none.
        theirs: Option<BackendType>,
        /// Ours.
        ours: BackendType,
    },
    /// It would have us send packets to ourselves.
    #[error(
        "its public IP {0} is this node's own: an old lease of this node, or two nodes with one address"
    )]
    OurPublicIp(IpAddr),
    /// It has no subnet of a family that we run.
    #[error("it has no subnet of an address family that this node runs")]
    OtherFamily,
    /// It claims addresses that are not the network's.
    #[error("its subnet {net} is outside the network {network}")]
    Outside {
        /// The subnet.
        net: IpNet,
        /// `Network` or `IPv6Network`.
        network: IpNet,
    },
    /// It claims addresses of our own pods.
    #[error("its subnet {net} overlaps this node's own {own}")]
    OverlapsOwn {
        /// The subnet.
        net: IpNet,
        /// Ours.
        own: IpNet,
    },
    /// It claims addresses that an older lease has.
    #[error("its subnet {net} overlaps the older lease {other}, which is used")]
    Overlaps {
        /// The subnet.
        net: IpNet,
        /// The older lease.
        other: SubnetKey,
    },
    /// It claims, in its backend data, what a newer lease has: its owner took another subnet.
    #[error(
        "its backend data names the same device (MAC) as the newer lease {other}, which is used"
    )]
    SameClaim {
        /// The newer lease.
        other: SubnetKey,
    },
    /// It would cut this node off from its own network.
    #[error(
        "its subnet {net} contains {needed}, which this node needs to reach the others: give the nodes and the pods different networks"
    )]
    CoversUnderlay {
        /// The subnet.
        net: IpNet,
        /// An address of this node's interface, its gateway, or a network on its link.
        needed: IpNet,
    },
    /// The kernel routes that subnet by itself: an interface of this node is connected to it.
    #[error(
        "its subnet {net} is the network of this node's interface {dev}, whose route the kernel made: \
         remove that address from {dev}"
    )]
    Connected {
        /// The subnet.
        net: IpNet,
        /// The interface.
        dev: IfName,
    },
    /// Its subnet is another family's in disguise.
    #[error("its subnet {0} is made of IPv4 addresses, which IPv6 does not route")]
    MappedSubnet(IpNet),
    /// Its owner cannot be reached so.
    #[error("its public IP {ip} can be no node's address: it is {what}")]
    ImpossibleIp {
        /// The address.
        ip: IpAddr,
        /// What it is.
        what: &'static str,
    },
}

fn named(kind: &Option<BackendType>) -> Outside<'_> {
    Outside(kind.as_ref().map_or("not named", BackendType::as_str))
}

impl Reason {
    /// One word for the kind of reason: a label to count by.
    pub fn label(&self) -> &'static str {
        match self {
            Reason::OtherBackend { .. } => "other_backend",
            Reason::OurPublicIp(_) => "our_public_ip",
            Reason::OtherFamily => "other_family",
            Reason::Outside { .. } => "outside_network",
            Reason::OverlapsOwn { .. } => "overlaps_own",
            Reason::Overlaps { .. } => "overlaps",
            Reason::SameClaim { .. } => "same_claim",
            Reason::CoversUnderlay { .. } => "covers_underlay",
            Reason::Connected { .. } => "connected",
            Reason::MappedSubnet(_) => "mapped_subnet",
            Reason::ImpossibleIp { .. } => "impossible_ip",
        }
    }
}

/// Something that a person should look at, although it keeps no lease from being used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Note {
    /// Two accepted leases name one public IP.
    #[error(
        "leases {a} and {b} both have the public IP {ip}: one of them may be of a node that is gone, or two nodes have one address"
    )]
    SharedPublicIp {
        /// The address.
        ip: IpAddr,
        /// One lease.
        a: SubnetKey,
        /// The other.
        b: SubnetKey,
    },
    /// A lease's subnet is of another size than ours.
    #[error(
        "lease {key} has a subnet of length {theirs}, and this node's has {ours}: other leases of that length are not reported"
    )]
    OtherLength {
        /// The lease.
        key: SubnetKey,
        /// Its length.
        theirs: u8,
        /// Ours.
        ours: u8,
    },
}
