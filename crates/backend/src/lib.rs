//! The backends: from a configuration, a lease and what the machine is like to the kernel objects
//! that carry packets. No I/O, no clock, no state: asked the same twice, they answer the same.
//!
//! How to add one: ARCHITECTURE.md.

#![forbid(unsafe_code)]

mod alloc;
mod check;
mod error;
mod host_gw;
pub mod vxlan;

pub use check::check;
pub use error::{BackendError, Fault};

use model::{BackendType, Dual, Family, Host, IfName, Lease, LeaseAttrs, Mac, NetConfig, Object};

/// A way to carry packets between nodes.
///
/// A value is good for the [`Host`] it was built for; when the host changes (an address, the MTU,
/// the interface), it is built anew, which costs nothing.
pub trait Backend {
    /// Its type, as the configuration calls it.
    fn kind(&self) -> BackendType;

    /// What this node publishes under its subnet.
    fn lease_attrs(&self) -> LeaseAttrs;

    /// The MTU that pods are to use, in bytes: what `subnet.env` says.
    fn mtu(&self) -> u32;

    /// The devices it makes. All that is on them is ours.
    fn devices(&self) -> Vec<IfName>;

    /// What this node needs for itself, devices first.
    fn node(&self, own: &Lease, host: &Host) -> Vec<Object>;

    /// What one peer needs. Objects of different peers never share a key, as long as their
    /// subnets do not overlap and their [`Backend::identities`] differ.
    ///
    /// A family that only one side has is left out: a dual-stack peer of an IPv4-only node gets
    /// IPv4 objects.
    ///
    /// A fault in one family takes nothing from the other.
    fn peer(&self, peer: &Lease, host: &Host) -> PeerPlan;

    /// Reads from a lease, for each family, what no two peers may have in common (vxlan: the MAC,
    /// which is a key of the forwarding database). Of two that have, the older lease stands.
    fn identities(&self) -> fn(&Lease) -> Dual<u64>;

    /// What in the configuration has no effect or another one than its author may think; to be
    /// logged once.
    fn warnings(&self) -> &[String];
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

/// What this node is known by among its peers, chosen before its lease is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The MAC of the tunnel devices, by family of the underlay; see [`vxlan::choose_mac`].
    pub mac: Dual<Mac>,
}

/// The backend that `config` names, for this machine.
///
/// # Errors
/// [`BackendError`]: an option that it cannot have, a machine that it cannot work on, or a type
/// that this version does not have.
pub fn new(
    config: &NetConfig,
    host: &Host,
    identity: &Identity,
) -> Result<Box<dyn Backend>, BackendError> {
    match &config.backend.kind {
        BackendType::Vxlan => Ok(Box::new(vxlan::Vxlan::new(config, host, identity)?)),
        BackendType::HostGw => Ok(Box::new(host_gw::HostGw::new(config, host)?)),
        BackendType::Alloc => Ok(Box::new(alloc::Alloc::new(config, host)?)),
        BackendType::Other(name) => Err(BackendError::Unknown(name.clone())),
        known => Err(BackendError::NotYet(known.clone())),
    }
}
