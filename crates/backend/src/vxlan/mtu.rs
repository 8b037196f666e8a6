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
pub(super) fn underlay(
    config: &NetConfig,
    host: &Host,
    warnings: &mut Vec<String>,
) -> Result<u32, BackendError> {
    let needed = |family| least_mtu(family) + overhead(family);
    let mtu = match config.backend.u32("MTU", 0, 0..=65535)? {
        0 => host.mtu,
        mtu if mtu > host.mtu => {
            let (iface, carried) = (host.iface, host.mtu);
            warnings.push(format!(
                "Backend.MTU is {mtu}: {iface} carries only {carried}, which is used"
            ));
            carried
        }
        mtu => {
            // Says so of the option, and not of the interface.
            let least = config.families().map(needed).max().unwrap_or(0);
            config.backend.u32("MTU", 0, least..=65535)?;
            mtu
        }
    };
    match config.families().find(|family| mtu < needed(*family)) {
        None => Ok(mtu),
        Some(family) => Err(BackendError::SmallMtu {
            iface: host.iface,
            mtu,
            family,
            needed: needed(family),
        }),
    }
}
