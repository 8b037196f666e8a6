//! Whether a configuration can be used at all, asked before any machine is there to use it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::{ConfigError, Dual, Host, IfName, NetConfig, WgKey, WgSecret};

use crate::{BackendError, Identity, Need, need, new};

/// Asks the backend that `config` names what it thinks of its options. Returns what it would warn of.
/// What depends on the machine (its addresses, its MTU) is not looked at.
///
/// # Errors
/// Every option for which a node would refuse the configuration, in no particular order; never empty.
pub fn check(config: &NetConfig) -> Result<Vec<String>, Vec<BackendError>> {
    let Some(host) = any_host() else {
        return Ok(Vec::new());
    };
    let mut config = config.clone();
    let mut refusals = Vec::new();
    loop {
        match new(&config, &host, &any_identity(&config), None) {
            Ok(backend) if refusals.is_empty() => {
                let missing = backend.missing().iter();
                let missing = missing.map(|(family, why)| format!("{family} is not served: {why}"));
                return Ok(backend.warnings().iter().cloned().chain(missing).collect());
            }
            Ok(_) => return Err(refusals),
            Err(refusal) => {
                // A backend names one option at a time: without that one it names the next.
                let option = option_of(&refusal).map(str::to_ascii_lowercase);
                refusals.push(refusal);
                if option.is_none_or(|option| config.backend.options.remove(&option).is_none()) {
                    return Err(refusals);
                }
            }
        }
    }
}

/// The option that a refusal is about.
fn option_of(refusal: &BackendError) -> Option<&str> {
    match refusal {
        BackendError::Config(ConfigError::Value { key, .. }) => key.strip_prefix("Backend."),
        BackendError::DeviceName { .. } => Some("VNI"),
        _ => None,
    }
}

/// What a node answers that has all it needs.
fn any_identity(config: &NetConfig) -> Identity {
    match need(config) {
        Need::WgKey => Identity::WgKey {
            private: WgSecret([0x40; 32]),
            public: WgKey([0x40; 32]),
            preshared: None,
            in_kernel: true,
        },
        Need::Nothing | Need::Macs(_) | Need::Psk | Need::Command { .. } => Identity::Nothing,
    }
}

/// A machine on which every backend works.
fn any_host() -> Option<Host> {
    let iface: IfName = "eth0".parse().ok()?;
    let addr = Dual {
        v4: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
        v6: Some(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))),
    };
    Some(Host {
        iface,
        ifindex: 1,
        mtu: 65_535,
        kind: String::new(),
        addr,
        public_ip: addr,
        on_link: Vec::new(),
        underlay: Vec::new(),
    })
}
