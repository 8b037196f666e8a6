//! How large the packets in a tunnel may be.

use model::{Family, Host, NetConfig};

use crate::BackendError;

/// What a header costs: Ethernet 14, VXLAN 8, UDP 8, and IPv4 20 or IPv6 40 bytes.
pub fn overhead(family: Family) -> u32 {
    match family {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// The least MTU that a link of this family may have (RFC 791, RFC 8200). Below it the kernel
/// refuses IPv4 devices and switches IPv6 off.
fn least_mtu(family: Family) -> u32 {
    match family {
        Family::V4 => 68,
        Family::V6 => 1280,
    }
}

/// The MTU that the tunnels may count on: the option's, as far as the interface can carry it.
pub(super) struct Underlay<'a> {
    mtu: u32,
    /// It is the option's.
    option: bool,
    config: &'a NetConfig,
    host: &'a Host,
}

impl<'a> Underlay<'a> {
    /// Reads the option.
    pub(super) fn read(
        config: &'a NetConfig,
        host: &'a Host,
        warnings: &mut Vec<String>,
    ) -> Result<Underlay<'a>, BackendError> {
        let asked = config.backend.u32("MTU", 0, 0..=65535)?;
        if asked > host.mtu {
            let (iface, carried) = (host.iface, host.mtu);
            warnings.push(format!(
                "Backend.MTU is {asked}: {iface} carries only {carried}, which is used"
            ));
        }
        let option = (1..=host.mtu).contains(&asked);
        Ok(Underlay {
            mtu: if option { asked } else { host.mtu },
            option,
            config,
            host,
        })
    }

    /// Returns the MTU of a tunnel of this family.
    ///
    /// # Errors
    /// It would be less than the family needs.
    pub(super) fn tunnel(&self, family: Family) -> Result<u32, BackendError> {
        let needed = least_mtu(family) + overhead(family);
        if self.mtu >= needed {
            return Ok(self.mtu - overhead(family));
        }
        if self.option {
            // Says so of the option, and not of the interface.
            self.config.backend.u32("MTU", 0, needed..=65535)?;
        }
        Err(BackendError::SmallMtu {
            iface: self.host.iface,
            mtu: self.mtu,
            family,
            needed,
        })
    }
}
