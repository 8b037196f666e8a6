//! The node as far as it can be told: what the store says, what flanneld would choose.

use anyhow::Result;
use backend::{Backend, Identity, Need};
use dataplane::host::{Interface, interfaces, standing};
use flanneld::identity::{self, Implementation, KeyOptions};
use flanneld::iface::{self, NoIface};
use flanneld::wg_key_file;
use model::{Host, IfName, NetConfig, WgSecret};

use super::report::Report;
use super::settings::Settings;
use super::store::{self, Stored};
use super::subnet;
use crate::runtime::wait_for;

/// The node as far as it can be told.
pub(crate) struct Scene {
    pub(crate) stored: Stored,
    pub(crate) host: Option<Host>,
    pub(crate) backend: Option<Box<dyn Backend>>,
    pub(crate) interfaces: Vec<Interface>,
}

impl Scene {
    /// Asks store and kernel, and reports what they say.
    ///
    /// # Errors
    /// The kernel does not show its interfaces.
    pub(crate) fn gather(report: &mut Report, settings: &Settings) -> Result<Scene> {
        let stored = wait_for(async {
            Ok::<_, anyhow::Error>(store::check(report, &settings.options).await)
        })?;
        let host = stored.config.as_ref();
        let host = host.and_then(|config| find_host(report, settings, config));
        let both = stored.config.as_ref().zip(host.as_ref());
        let backend =
            both.and_then(|(config, host)| find_backend(report, settings, config, host, &stored));
        Ok(Scene {
            stored,
            host,
            backend,
            interfaces: interfaces()?,
        })
    }

    /// The tunnel devices that there should be.
    pub(crate) fn devices(&self) -> Vec<IfName> {
        self.backend
            .as_ref()
            .map(|b| b.devices().iter().map(|own| own.name).collect())
            .unwrap_or_default()
    }

    /// Returns whether there is a device of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.interfaces.iter().any(|i| i.name.to_string() == name)
    }

    /// Those that are there.
    pub(crate) fn standing_devices(&self) -> Vec<IfName> {
        let there = |name: &IfName| self.interfaces.iter().any(|i| i.name == *name && i.up);
        self.devices().into_iter().filter(there).collect()
    }
}

fn find_host(report: &mut Report, settings: &Settings, config: &NetConfig) -> Option<Host> {
    const ABOUT: &str = "interface";
    let cure =
        "give flanneld -iface, -iface-regex or -iface-can-reach; `ip address` shows what there is";
    let options = &settings.options;
    match iface::find(
        &*options.machine,
        &options.iface,
        &options.public_ip,
        config,
    ) {
        Ok((host, _)) => {
            let ips: Vec<String> = host
                .public_ip
                .iter()
                .map(|(_, ip)| ip.to_string())
                .collect();
            report.ok(
                ABOUT,
                format!("{}, MTU {}, {}", host.iface, host.mtu, ips.join(", ")),
            );
            Some(host)
        }
        Err(error @ NoIface::Kernel(_)) => {
            report.fail(ABOUT, error.to_string(), "run this command as root");
            None
        }
        Err(error) => {
            report.fail(ABOUT, error.to_string(), cure);
            None
        }
    }
}

/// Returns the node's WireGuard key. A check makes none: without one it goes on with a key that nobody uses.
fn wg_key(report: &mut Report, options: &KeyOptions) -> Identity {
    const ABOUT: &str = "wireguard key";
    let nobodys = WgSecret([0x40; 32]);
    let secret = match wg_key_file::read(&wg_key_file::own_places()) {
        Ok(Some(key)) => {
            for warning in key.warnings {
                report.warn(ABOUT, warning, "as the line says");
            }
            key.secret
        }
        Ok(None) => nobodys,
        Err(error) => {
            report.fail(ABOUT, error, "flanneld waits until the file is fixed");
            nobodys
        }
    };
    let in_kernel = match options.implementation {
        Implementation::UserSpace => false,
        Implementation::Kernel => true,
        // Asking may load the module.
        Implementation::Auto => standing_is_kernels(),
    };
    identity::wg_key(secret, None, in_kernel)
}

fn standing_is_kernels() -> bool {
    let name = "flannel-wg".parse();
    let found = name.ok().and_then(|name| standing(&name).ok().flatten());
    found.is_some_and(|found| found.kind.name() == "wireguard")
}

fn find_backend(
    report: &mut Report,
    settings: &Settings,
    config: &NetConfig,
    host: &Host,
    stored: &Stored,
) -> Option<Box<dyn Backend>> {
    const ABOUT: &str = "backend";
    let leases = stored.leases.as_deref().unwrap_or_default();
    let own = subnet::own_leases(leases, &host.public_ip);
    let own = own.first().and_then(|lease| lease.attrs.as_ref().ok());
    let mac_of = |name: &IfName| standing(name).ok().flatten().and_then(|found| found.mac);
    let options = &settings.options.keys;
    let identity = match backend::need(config) {
        Need::WgKey => wg_key(report, options),
        Need::Macs(devices) => {
            let found = |family| devices.get(family).and_then(mac_of);
            Identity::Macs(model::Dual::from_fn(found))
        }
        Need::Psk => match identity::ipsec_psk(options) {
            Ok(answer) => answer.identity,
            Err(error) => {
                report.fail(
                    "ipsec secret",
                    error,
                    "flanneld waits until the file is fixed",
                );
                Identity::Nothing
            }
        },
        // A check runs no commands.
        Need::Nothing | Need::Command { .. } => Identity::Nothing,
    };
    let made = backend::new(config, host, &identity, own);
    match made {
        Ok(backend) => {
            report.ok(
                ABOUT,
                format!("{}, MTU {} for containers", backend.kind(), backend.mtu()),
            );
            for (family, why) in backend.missing() {
                let text = format!("{family} is not served: {why}");
                report.warn(
                    ABOUT,
                    text,
                    "correct that, or leave the family out of the network",
                );
            }
            Some(backend)
        }
        Err(error) => {
            let cure = "flannelctl config set, or another interface (-iface)";
            report.fail(ABOUT, error.to_string(), cure);
            None
        }
    }
}
