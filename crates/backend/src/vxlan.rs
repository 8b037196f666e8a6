//! `vxlan`: the kernel's VXLAN device, one for each family of the underlay.
//!
//! There is no learning and no broadcast: each peer has a neighbour entry (its subnet's first address →
//! its MAC), a forwarding entry (that MAC → its public IP) and a route to its subnet.

mod mtu;
mod offload;
mod vtep;

pub use mtu::overhead;
pub use offload::{OPTION as OFFLOAD_OPTION, TxChecksumOffload, breaks_checksums};
pub use vtep::{BadVtep, Vtep, choose_mac, mac_of};

use std::net::IpAddr;

use model::object::{
    AddrKey, Beneath, FdbKey, Link, LinkKind, Mark, NeighKey, NextHop, Remote, Route, RouteKey,
    RouteTo, Vxlan as Tunnel,
};
use model::subnet::first;
use model::{BackendType, Dual, Family, Host, IfName, Lease, LeaseAttrs, Mac, NetConfig, Object};

use crate::error::{public_ips, underlay};
use crate::{Backend, BackendError, Fault, Identity, PeerPlan};

const OPTIONS: [&str; 7] = [
    "VNI",
    "Port",
    "GBP",
    "Learning",
    "DirectRouting",
    "MTU",
    OFFLOAD_OPTION,
];

/// A VNI has 24 bits.
const MAX_VNI: u32 = (1 << 24) - 1;

/// The kernel's own default port, which is not the registered one: where `Port` is absent.
pub const PORT: u16 = 8472;

/// The number of the network, which is part of the device's name: `Backend.VNI`.
///
/// # Errors
/// It is not within 24 bits, or zero.
pub fn vni(config: &NetConfig) -> Result<u32, BackendError> {
    Ok(config.backend.u32("VNI", 1, 1..=MAX_VNI)?)
}

/// The name of the tunnel device over an underlay of `family`.
///
/// # Errors
/// It would be longer than the kernel takes, because of the VNI.
pub fn device(vni: u32, family: Family) -> Result<IfName, BackendError> {
    let name = match family {
        Family::V4 => format!("flannel.{vni}"),
        Family::V6 => format!("flannel-v6.{vni}"),
    };
    name.parse()
        .map_err(|_| BackendError::DeviceName { vni, family, name })
}

/// One tunnel device.
#[derive(Clone, Copy)]
struct Device {
    name: IfName,
    mac: Mac,
}

/// The vxlan backend.
pub(crate) struct Vxlan {
    devices: Dual<Device>,
    public_ip: Dual<IpAddr>,
    vni: u32,
    port: u16,
    gbp: bool,
    learning: bool,
    direct_routing: bool,
    /// Checksum offload of the tunnel devices; `None` leaves it as it is.
    tx_checksum: Option<bool>,
    /// MTU of the underlay.
    underlay_mtu: u32,
    /// What says on the devices which network they belong to.
    mark: Option<Mark>,
    warnings: Vec<String>,
}

impl Vxlan {
    pub(crate) fn new(
        config: &NetConfig,
        host: &Host,
        identity: &Identity,
    ) -> Result<Vxlan, BackendError> {
        let options = &config.backend;
        let vni = vni(config)?;
        // Upstream takes a port of 0 for an absent one.
        let port = match options.u16("Port", PORT, 0..=u16::MAX)? {
            0 => PORT,
            port => port,
        };
        let unknown = options.unknown(&OPTIONS);
        let mut warnings: Vec<String> = unknown
            .iter()
            .map(|key| format!("{key}: vxlan has no such option"))
            .collect();
        let underlay_mtu = mtu::underlay(config, host, &mut warnings)?;
        let mut devices = Dual::default();
        for family in config.families() {
            let mac = *identity
                .mac
                .get(family)
                .ok_or(BackendError::NoMac(family))?;
            devices.set(
                family,
                Some(Device {
                    name: device(vni, family)?,
                    mac,
                }),
            );
        }
        Ok(Vxlan {
            devices,
            public_ip: public_ips(config, host)?,
            vni,
            port,
            gbp: options.bool("GBP", false)?,
            learning: options.bool("Learning", false)?,
            direct_routing: options.bool("DirectRouting", false)?,
            tx_checksum: TxChecksumOffload::read(config)?.over(host),
            underlay_mtu,
            mark: Mark::of(&config.pools.map(|_, pool| pool.network)),
            warnings,
        })
    }

    fn device_mtu(&self, family: Family) -> u32 {
        self.underlay_mtu.saturating_sub(mtu::overhead(family))
    }

    fn link(&self, family: Family, device: &Device, local: IpAddr, host: &Host) -> Object {
        let tunnel = Tunnel {
            vni: self.vni,
            port: self.port,
            local,
            beneath: Beneath {
                index: host.ifindex,
                name: Some(host.iface),
            },
            learning: self.learning,
            gbp: self.gbp,
            tx_checksum: self.tx_checksum,
        };
        let link = Link {
            kind: LinkKind::Vxlan(tunnel),
            mac: Some(device.mac),
            mtu: self.device_mtu(family),
            up: true,
            mark: self.mark,
            enslaved: false,
        };
        Object::Link(device.name, link)
    }

    /// Adds what `peer` needs in one family to `objects`.
    fn peer_in(
        &self,
        family: Family,
        peer: &Lease,
        host: &Host,
        objects: &mut Vec<Object>,
    ) -> Result<(), Fault> {
        let (Some(device), Some(net)) = (self.devices.get(family), peer.key.nets().get(family))
        else {
            return Ok(());
        };
        let ip = underlay(peer, family, host)?;
        let mac = self.peer_mac(family, peer)?;
        let key = RouteKey::to(*net);
        if self.direct_routing && host.is_on_link(&ip) {
            let hop = NextHop {
                via: ip,
                dev: host.iface,
                onlink: false,
            };
            objects.push(Object::Route(key, Route::ours(RouteTo::Gateway(hop))));
            return Ok(());
        }
        let gateway = first(net).addr();
        let hop = NextHop {
            via: gateway,
            dev: device.name,
            onlink: true,
        };
        objects.extend([
            Object::Neigh(
                NeighKey {
                    dev: device.name,
                    ip: gateway,
                },
                mac,
            ),
            Object::Fdb(
                FdbKey {
                    dev: device.name,
                    mac,
                },
                Remote::At(ip),
            ),
            Object::Route(key, Route::ours(RouteTo::Gateway(hop))),
        ]);
        Ok(())
    }

    fn peer_mac(&self, family: Family, peer: &Lease) -> Result<Mac, Fault> {
        let data = peer.attrs.data.get(family).ok_or(Fault::NoData(family))?;
        let Vtep { vni, mac } = Vtep::from_json(data).map_err(|bad| Fault::BadData {
            family,
            reason: bad.to_string(),
        })?;
        if self.devices.iter().any(|(_, device)| device.mac == mac) {
            return Err(Fault::OurMac { family, mac });
        }
        match vni {
            Some(theirs) if theirs != self.vni && theirs != vtep::published(self.vni) => {
                Err(Fault::OtherVni {
                    family,
                    theirs,
                    ours: self.vni,
                })
            }
            _ => Ok(mac),
        }
    }
}

impl Backend for Vxlan {
    fn kind(&self) -> BackendType {
        BackendType::Vxlan
    }

    fn lease_attrs(&self) -> LeaseAttrs {
        let vtep = |_, device: &Device| Vtep {
            vni: Some(self.vni),
            mac: device.mac,
        };
        let vteps = self.devices.map(vtep);
        LeaseAttrs {
            public_ip: self.public_ip,
            backend_type: Some(BackendType::Vxlan),
            data: Dual::from_fn(|family| vteps.get(family).and_then(|vtep| vtep.to_json())),
        }
    }

    fn mtu(&self) -> u32 {
        let mtus = self
            .devices
            .iter()
            .map(|(family, _)| self.device_mtu(family));
        mtus.min().unwrap_or(self.underlay_mtu)
    }

    fn devices(&self) -> Vec<IfName> {
        self.devices.iter().map(|(_, device)| device.name).collect()
    }

    fn node(&self, own: &Lease, host: &Host) -> Vec<Object> {
        let mut objects = Vec::new();
        for (family, device) in self.devices.iter() {
            let local = host.addr.get(family);
            objects.extend(local.map(|local| self.link(family, device, *local, host)));
            let net = own.key.nets().get(family);
            objects.extend(net.map(|net| {
                Object::Addr(
                    AddrKey {
                        dev: device.name,
                        net: first(net),
                    },
                    (),
                )
            }));
        }
        objects
    }

    fn peer(&self, peer: &Lease, host: &Host) -> PeerPlan {
        PeerPlan::by_family(|family, objects| self.peer_in(family, peer, host, objects))
    }

    fn identities(&self) -> fn(&Lease) -> Dual<u64> {
        vtep::macs_of
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
