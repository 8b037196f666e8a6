//! `-backend`: a backend that this node tries beside the network's.
//!
//! The node offers it after the network's own. So every other node, upstream's too, reaches it as before, and those that
//! try the same backend reach each other by it.

use model::{BackendConfig, BackendType, Host, IfName, LeaseAttrs, NetConfig};
use tokio::time::Instant;

use crate::generations::{Generation, networks, published_by};
use crate::identity::{Answer, Answers};
use crate::lock::Lock;
use crate::options::Options;
use crate::settle::device_mac;

/// What the value may be.
pub(crate) const EXPECTED: &str = "vxlan, host-gw, ipip, wireguard, udp or ipsec, or an object like Backend of the network configuration, such as {\"Type\": \"vxlan\", \"VNI\": 7}";

/// Reads the value of `-backend`. `None`: it cannot be tried.
pub(crate) fn parse(text: &str) -> Option<BackendConfig> {
    let json = if text.trim_start().starts_with('{') {
        text.to_owned()
    } else {
        serde_json::json!({ "Type": text }).to_string()
    };
    let backend = BackendConfig::from_json(&json).ok()?;
    match backend.kind {
        BackendType::Vxlan
        | BackendType::HostGw
        | BackendType::Ipip
        | BackendType::Wireguard
        | BackendType::Udp
        | BackendType::Ipsec => Some(backend),
        // Carries nothing; runs commands that may undo what carries packets; is not known.
        BackendType::Alloc | BackendType::Extension | BackendType::Other(_) => None,
    }
}

/// Returns why a backend cannot be tried in a network with this one, if it cannot.
pub(crate) fn refusal(trial: &BackendConfig, network: &BackendConfig) -> Option<String> {
    let encrypts = |kind: &BackendType| matches!(kind, BackendType::Wireguard | BackendType::Ipsec);
    let kind = &trial.kind;
    if *kind == network.kind {
        return Some(format!("-backend {kind}: it is the network's backend"));
    }
    match &network.kind {
        BackendType::Extension | BackendType::Alloc | BackendType::Other(_) => Some(format!(
            "-backend {kind}: it cannot be tried beside {}",
            network.kind
        )),
        of if encrypts(of) && !encrypts(kind) => Some(format!(
            "-backend {kind}: it does not encrypt, and the network's backend, {of}, does; it is not used"
        )),
        _ => None,
    }
}

/// Builds the backend to try beside `newest`. `own` is what this node published.
///
/// # Errors
/// Why it cannot be used here.
pub(crate) async fn prepare(
    trial: &BackendConfig,
    newest: &Generation,
    own: &LeaseAttrs,
    host: &Host,
    options: &Options,
) -> Result<Generation, String> {
    if let Some(reason) = refusal(trial, &newest.config.backend) {
        return Err(reason);
    }
    let named = |reason: String| {
        let (kind, network) = (&trial.kind, newest.backend.kind());
        format!("-backend {kind}: {reason}; {network} alone is used")
    };
    let config = NetConfig {
        backend: trial.clone(),
        ..newest.config.clone()
    };
    let need = backend::need(&config);
    let mac_of = |name: &IfName| device_mac(&*options.machine, name);
    let answer = Answers::default().find(&need, &options.keys, mac_of).await;
    let Answer { identity, .. } = answer.map_err(named)?;
    let published = published_by(own, &trial.kind);
    let backend = backend::new(&config, host, &identity, published.as_ref());
    let backend = backend.map_err(|error| named(error.to_string()))?;
    let mut built = Generation::new(config, identity, backend, Instant::now());
    if built.is_offered_by(own) {
        built.is_served(false, Instant::now());
    }
    Ok(built)
}

/// Keeps other daemons from the devices of a backend that is tried.
///
/// # Errors
/// Which other daemon has one.
pub(crate) async fn lock(trial: &Generation, lock: &mut Lock) -> Result<(), String> {
    let devices = trial.backend.devices();
    let devices: Vec<IfName> = devices.iter().map(|own| own.name).collect();
    let locked = lock.extend(&networks(&trial.config), &devices).await;
    locked.map_err(|reason| format!("-backend {}: {reason}", trial.backend.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_tried() {
        let parsed = |text: &str| parse(text).map(|of| of.to_json());
        assert_eq!(parsed("host-gw"), parsed(r#"{"Type":"host-gw"}"#));
        assert!(parsed(r#"{"Type":"vxlan","VNI":7}"#).is_some());
        for text in ["", "extension", "alloc", "vlan", "{", r#"{"VNI":7}"#] {
            assert_eq!(parsed(text), None, "{text}");
        }
        let refused = |trial: &str, network: &str| {
            let network = BackendConfig::from_json(&format!(r#"{{"Type":"{network}"}}"#));
            refusal(&parse(trial).unwrap(), &network.unwrap())
        };
        for (trial, network, why) in [
            ("vxlan", "vxlan", "the network's backend"),
            ("vxlan", "wireguard", "does not encrypt"),
            ("vxlan", "ipsec", "does not encrypt"),
            ("vxlan", "extension", "beside extension"),
        ] {
            let said = refused(trial, network).unwrap();
            assert!(said.contains(why), "{said}");
        }
        assert_eq!(refused("ipsec", "wireguard"), None);
        assert_eq!(refused("host-gw", "vxlan"), None);
    }
}
