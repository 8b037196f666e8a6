//! Who this node is among its peers: the MACs of its tunnel devices, kept over restarts and reboots.

use backend::{BackendError, Identity, vxlan};
use model::{BackendType, Dual, Family, Host, IfName, Lease, Mac, NetConfig};

/// Chooses the identity: what the peers believe already (`own`, the lease that the store holds for
/// us), else what our devices have (`mac_of`), else what follows from the public address.
///
/// # Errors
/// The configuration names devices that cannot be.
pub fn choose(
    config: &NetConfig,
    host: &Host,
    own: Option<&Lease>,
    mac_of: impl Fn(&IfName) -> Option<Mac>,
) -> Result<Identity, BackendError> {
    if config.backend.kind != BackendType::Vxlan {
        return Ok(Identity::default());
    }
    let vni = vxlan::vni(config)?;
    let mut mac = Dual::default();
    for family in config.families() {
        let device = vxlan::device(vni, family)?;
        let Some(ip) = host.public_ip.get(family) else {
            continue;
        };
        let chosen = vxlan::choose_mac(published(own, family), mac_of(&device), ip, vni, family);
        mac.set(family, Some(chosen));
    }
    // One MAC on two devices would be two entries under one identity.
    if mac.v4.is_some()
        && mac.v4 == mac.v6
        && let Some(ip) = host.public_ip.v6
    {
        mac.v6 = Some(vxlan::choose_mac(None, None, &ip, vni, Family::V6));
    }
    Ok(Identity { mac })
}

/// Returns how our devices, as far as they exist, are named in a lease's backend data: a lease that names one was
/// ours, whatever its address.
pub fn published_names(config: &NetConfig, mac_of: impl Fn(&IfName) -> Option<Mac>) -> Vec<String> {
    if config.backend.kind != BackendType::Vxlan {
        return Vec::new();
    }
    let Ok(vni) = vxlan::vni(config) else {
        return Vec::new();
    };
    config
        .families()
        .filter_map(|family| mac_of(&vxlan::device(vni, family).ok()?))
        .map(|mac| mac.to_string())
        .collect()
}

fn published(own: Option<&Lease>, family: Family) -> Option<Mac> {
    let data = own?.attrs.data.get(family)?;
    vxlan::mac_of(data).ok()
}
