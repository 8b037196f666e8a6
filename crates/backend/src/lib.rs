//! The backends: from a configuration, a lease and what the machine is like to the kernel objects
//! that carry packets. No I/O, no clock, no state: asked the same twice, they answer the same.
//!
//! How to add one: ARCHITECTURE.md.

#![forbid(unsafe_code)]

mod alloc;
mod check;
mod error;
mod extension;
mod host_gw;
mod identity;
mod ipip;
mod ipsec;
mod served;
mod udp;
pub mod vxlan;
mod wireguard;

pub use check::check;
pub use error::{BackendError, Fault, HAVE};
pub use identity::{Identity, Need};
pub use ipsec::LEAST_PSK;
pub use vxlan::{OFFLOAD_OPTION, TxChecksumOffload};

use std::time::Duration;

use model::roster::Claims;
use model::{BackendType, Family, Host, IfName, Lease, LeaseAttrs, NetConfig, Object, SubnetKey};

/// How long a device may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// A way to carry packets between nodes.
///
/// A value is good for the [`Host`] it was built for; when the host changes (an address, the MTU,
/// the interface), it is built anew, which costs nothing.
pub trait Backend {
    /// Returns its type, as the configuration calls it.
    fn kind(&self) -> BackendType;

    /// Sets which subnets are this node's, before [`Backend::peer`] is asked for the first time.
    fn set_own(&mut self, _own: &SubnetKey) {}

    /// Returns what this node publishes under its subnet.
    fn publish(&self) -> LeaseAttrs;

    /// Returns the MTU that pods are to use, in bytes: what `subnet.env` says.
    fn mtu(&self) -> u32;

    /// Returns the devices that it makes. All that is on them is ours.
    fn devices(&self) -> Vec<OwnDevice>;

    /// Returns what this node needs for itself, devices first.
    fn node(&self, own: &Lease, host: &Host) -> Vec<Object>;

    /// Returns what one peer needs. Objects of different peers never share a key, as long as their
    /// subnets do not overlap and their [`Backend::claims`] differ.
    ///
    /// A family that only one side has is left out: a dual-stack peer of an IPv4-only node gets
    /// IPv4 objects. A fault in one family takes nothing from the other.
    fn peer(&self, peer: &Lease, host: &Host) -> PeerPlan;

    /// Reads from a lease, for each family, what no two peers may have in common (vxlan: the MAC, which
    /// is a key of the forwarding database). Of two that have, the newer lease is used. Depends on the
    /// lease alone. By default nothing.
    fn claims(&self, _attrs: &LeaseAttrs) -> Claims {
        Claims::default()
    }

    /// Returns whether packets between nodes are encrypted. Then none may leave as it is: what would lead one out is
    /// removed at once.
    fn encrypts(&self) -> bool {
        false
    }

    /// Returns whether it receives only from nodes that it knows: a node must not send by it to one that may not
    /// have read this node's lease yet.
    fn needs_acquaintance(&self) -> bool {
        false
    }

    /// Returns whether both sides must have agreed on keys, which takes a while or fails, before packets can be sent to
    /// a peer. A peer whose plan has no [`Object::IkeConnection`] needs none.
    fn needs_connection(&self) -> bool {
        false
    }

    /// Returns how long what this node needs may take to come up, before another backend that was in use stays so.
    fn patience(&self) -> Duration {
        PATIENCE
    }

    /// Returns the families of the network that this node does not serve, and why not. The other one
    /// is served.
    fn missing(&self) -> &[(Family, BackendError)];

    /// Returns what in the configuration has no effect or another one than its author may think; to
    /// be logged once.
    fn warnings(&self) -> &[String];
}

/// A device of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnDevice {
    /// Its name.
    pub name: IfName,
    /// The kernel's name for its kind.
    pub kind: &'static str,
}

/// What one peer needs, family by family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerPlan {
    /// What the kernel should hold.
    pub objects: Vec<Object>,
    /// Why a family cannot be used.
    pub faults: Vec<Fault>,
    /// Whether a family can be used. A lease of which nothing is needed can.
    pub served: bool,
}

impl PeerPlan {
    /// Builds the plan from each family that both sides have. `family` adds what is needed to the
    /// objects; what it added before it failed is taken back.
    pub fn by_family(
        mut family: impl FnMut(Family, &mut Vec<Object>) -> Result<(), Fault>,
    ) -> PeerPlan {
        let mut plan = PeerPlan::default();
        for of in Family::ALL {
            let before = plan.objects.len();
            if let Err(fault) = family(of, &mut plan.objects) {
                plan.objects.truncate(before);
                plan.faults.push(fault);
            }
        }
        plan.served = plan.faults.is_empty() || !plan.objects.is_empty();
        plan
    }
}

/// Returns what the backend that `config` names must know of this node before its lease is taken.
pub fn need(config: &NetConfig) -> Need {
    match &config.backend.kind {
        BackendType::Vxlan => vxlan::need(config),
        BackendType::Wireguard => Need::WgKey,
        BackendType::Ipsec => Need::Psk,
        BackendType::Extension => extension::need(config),
        _ => Need::Nothing,
    }
}

/// Returns how this node is named in backend data unless somebody has chosen other names: a MAC that is made
/// from its address.
pub fn made_names(config: &NetConfig, host: &Host) -> Vec<String> {
    match &config.backend.kind {
        BackendType::Vxlan => vxlan::made_names(config, host),
        _ => Vec::new(),
    }
}

/// Returns the options that a backend of this type has, beside `Type`.
pub fn options(kind: &BackendType) -> &'static [&'static str] {
    match kind {
        BackendType::Vxlan => &vxlan::OPTIONS,
        BackendType::Udp => &udp::OPTIONS,
        BackendType::Ipip => &ipip::OPTIONS,
        BackendType::Wireguard => &wireguard::OPTIONS,
        BackendType::Extension => &extension::OPTIONS,
        BackendType::Ipsec => &ipsec::OPTIONS,
        _ => &[],
    }
}

/// Returns the backend that `config` names, for this machine. `identity` is the answer to [`need`]; `own` is
/// what this node published earlier and its peers still believe, which is kept.
///
/// # Errors
/// [`BackendError`]: an option that it cannot have, a machine on which it can serve no family of the
/// network, or a type that this version does not have.
pub fn new(
    config: &NetConfig,
    host: &Host,
    identity: &Identity,
    own: Option<&LeaseAttrs>,
) -> Result<Box<dyn Backend>, BackendError> {
    match &config.backend.kind {
        BackendType::Vxlan => Ok(Box::new(vxlan::Vxlan::new(config, host, identity, own)?)),
        BackendType::HostGw => Ok(Box::new(host_gw::HostGw::new(config, host)?)),
        BackendType::Udp => Ok(Box::new(udp::Udp::new(config, host)?)),
        BackendType::Ipip => Ok(Box::new(ipip::Ipip::new(config, host)?)),
        BackendType::Wireguard => Ok(Box::new(wireguard::Wireguard::new(config, host, identity)?)),
        BackendType::Alloc => Ok(Box::new(alloc::Alloc::new(config, host)?)),
        BackendType::Extension => Ok(Box::new(extension::Extension::new(config, host, identity)?)),
        BackendType::Ipsec => Ok(Box::new(ipsec::Ipsec::new(config, host, identity)?)),
        BackendType::Other(name) => Err(BackendError::Unknown(name.clone())),
    }
}

/// Returns a warning for each option that a backend of the configured type does not have.
pub(crate) fn unknown_options(config: &NetConfig) -> Vec<String> {
    let kind = &config.backend.kind;
    let unknown = config.backend.unknown(options(kind));
    unknown
        .iter()
        .map(|key| format!("{key}: {kind} has no such option"))
        .collect()
}
