//! Which families of the network this node serves. A fault in one takes nothing from the other.

use std::net::IpAddr;

use model::{Dual, Family, Host, NetConfig};

use crate::BackendError;

/// The families that a backend serves, with what it has for each, and why it does not serve the others.
pub(crate) struct Served<T> {
    /// What the backend has for each family that it serves.
    pub(crate) families: Dual<T>,
    /// What this node publishes as its addresses: also of a family that it does not serve, since an upstream
    /// flannel drops a peer that has a subnet and no address.
    pub(crate) public_ip: Dual<IpAddr>,
    /// Why the other families of the network are not served.
    pub(crate) missing: Vec<(Family, BackendError)>,
}

impl<T> Served<T> {
    /// Asks `each` for every family that the network has and the host has an address of, with the
    /// interface's address.
    ///
    /// # Errors
    /// No family can be served: the first family's error.
    pub(crate) fn new(
        config: &NetConfig,
        host: &Host,
        mut each: impl FnMut(Family, IpAddr) -> Result<T, BackendError>,
    ) -> Result<Served<T>, BackendError> {
        let mut served = Served {
            families: Dual::default(),
            public_ip: Dual::default(),
            missing: Vec::new(),
        };
        for family in config.families() {
            let (addr, public_ip) = (host.addr.get(family), host.public_ip.get(family));
            served.public_ip.set(family, public_ip.copied());
            let found = match addr.filter(|_| public_ip.is_some()) {
                Some(addr) => each(family, *addr),
                None => Err(BackendError::NoAddress {
                    iface: host.iface,
                    family,
                }),
            };
            match found {
                Ok(found) => served.families.set(family, Some(found)),
                Err(error) => served.missing.push((family, error)),
            }
        }
        if served.families.is_empty() && !served.missing.is_empty() {
            return Err(served.missing.swap_remove(0).1);
        }
        Ok(served)
    }
}
