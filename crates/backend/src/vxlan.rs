//! `vxlan`: the kernel's VXLAN device, one for each family of the underlay.
//!
//! There is no learning and no broadcast: each peer has a neighbour entry (its subnet's first address →
//! its MAC), a forwarding entry (that MAC → its public IP) and a route to its subnet.

mod mtu;
mod offload;
mod vtep;

pub use mtu::overhead;
pub use offload::{OPTION as OFFLOAD_OPTION, TxChecksumOffload, breaks_checksums};
pub use vtep::{BadVtep, Vtep, mac_of};

use std::net::IpAddr;

use model::object::{
    AddrKey, Beneath, FdbKey, Link, LinkKind, Mark, NeighKey, NextHop, Remote, Route, RouteKey,
    RouteTo, Vxlan as Tunnel,
};
use model::roster::Claims;
use model::subnet::first;
use model::{BackendType, Dual, Family, Host, IfName, Lease, LeaseAttrs, Mac, NetConfig, Object};

use crate::error::underlay;
use crate::host_gw::direct;
use crate::served::Served;
use crate::{Backend, BackendError, Fault, Identity, Need, OwnDevice, PeerPlan, unknown_options};

pub(crate) const OPTIONS: [&str; 7] = [
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

/// Returns the devices whose MACs are kept.
pub(crate) fn need(config: &NetConfig) -> Need {
    let Ok(vni) = vni(config) else {
        return Need::Nothing;
    };
    let device = |family| device(vni, family).ok();
    Need::Macs(Dual::from_fn(|family| {
        config.pools.get(family).and_then(|_| device(family))
    }))
}

/// Returns the MACs that the devices get where neither a lease nor a device has one.
pub(crate) fn made_names(config: &NetConfig, host: &Host) -> Vec<String> {
    let Ok(vni) = vni(config) else {
        return Vec::new();
    };
    let macs = vtep::choose_macs(None, &Dual::default(), host, vni);
    macs.iter().map(|(_, mac)| mac.to_string()).collect()
}

/// One tunnel device.
#[derive(Clone, Copy)]
struct Device {
    name: IfName,
    mac: Mac,
    /// In bytes.
    mtu: u32,
}

/// The vxlan backend.
pub(crate) struct Vxlan {
    served: Served<Device>,
    mtu: u32,
    vni: u32,
    port: u16,
    gbp: bool,
    learning: bool,
    direct_routing: bool,
    /// Checksum offload of the tunnel devices; `None` leaves it as it is.
    tx_checksum: Option<bool>,
    /// What says on the devices which network they belong to.
    mark: Option<Mark>,
    warnings: Vec<String>,
}

impl Vxlan {
    pub(crate) fn new(
        config: &NetConfig,
        host: &Host,
        identity: &Identity,
        own: Option<&LeaseAttrs>,
    ) -> Result<Vxlan, BackendError> {
        let options = &config.backend;
        let vni = vni(config)?;
        // Upstream takes a port of 0 for an absent one.
        let port = match options.u16("Port", PORT, 0..=u16::MAX)? {
            0 => PORT,
            port => port,
        };
        let gbp = options.bool("GBP", false)?;
        let learning = options.bool("Learning", false)?;
        let direct_routing = options.bool("DirectRouting", false)?;
        let tx_checksum = TxChecksumOffload::read(config)?.over(host);
        let mut warnings = unknown_options(config);
        let underlay = mtu::Underlay::read(config, host, &mut warnings)?;
        let macs = vtep::choose_macs(own, &identity.macs(), host, vni);
        // Also of a family that gets its address later: the pods' MTU stays what it was.
        let mtu = config.families().filter_map(|f| underlay.tunnel(f).ok());
        let mtu = mtu.min().unwrap_or_default();
        let served = Served::new(config, host, |family, _| {
            Ok(Device {
                name: device(vni, family)?,
                mac: *macs.get(family).ok_or(BackendError::NoAddress {
                    iface: host.iface,
                    family,
                })?,
                mtu: underlay.tunnel(family)?,
            })
        })?;
        Ok(Vxlan {
            served,
            mtu,
            vni,
            port,
            gbp,
            learning,
            direct_routing,
            tx_checksum,
            mark: Mark::of(&config.pools.map(|_, pool| pool.network)),
            warnings,
        })
    }

    fn link(&self, device: &Device, local: IpAddr, host: &Host) -> Object {
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
            mtu: device.mtu,
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
        let (Some(device), Some(net)) = (
            self.served.families.get(family),
            peer.key.nets().get(family),
        ) else {
            return Ok(());
        };
        let ip = underlay(peer, family, host)?;
        let mac = self.peer_mac(family, peer)?;
        let key = RouteKey::to(*net);
        if self.direct_routing && host.is_on_link(&ip) {
            objects.push(direct(net, ip, host));
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
        let mut own = self.served.families.iter();
        if own.any(|(_, device)| device.mac == mac) {
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

    fn publish(&self) -> LeaseAttrs {
        let vtep = |_, device: &Device| Vtep {
            vni: Some(self.vni),
            mac: device.mac,
        };
        let vteps = self.served.families.map(vtep);
        LeaseAttrs {
            public_ip: self.served.public_ip,
            backend_type: Some(BackendType::Vxlan),
            data: Dual::from_fn(|family| vteps.get(family).and_then(|vtep| vtep.to_json())),
            also: Box::default(),
        }
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }

    fn devices(&self) -> Vec<OwnDevice> {
        let own = |(_, device): (Family, &Device)| OwnDevice {
            name: device.name,
            kind: "vxlan",
        };
        self.served.families.iter().map(own).collect()
    }

    fn node(&self, own: &Lease, host: &Host) -> Vec<Object> {
        let mut objects = Vec::new();
        for (family, device) in self.served.families.iter() {
            let local = host.addr.get(family);
            objects.extend(local.map(|local| self.link(device, *local, host)));
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

    fn claims(&self, attrs: &LeaseAttrs) -> Claims {
        vtep::claims(attrs)
    }

    fn missing(&self) -> &[(Family, BackendError)] {
        &self.served.missing
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
