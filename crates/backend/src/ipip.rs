//! `ipip`: the kernel's IP-in-IP device. One IPv4 header around each packet, nothing else: smaller than
//! vxlan's, and IPv4 only.
//!
//! One device leads to all peers (`remote any`): the gateway of each route is the outer destination.

use std::net::IpAddr;

use model::object::{
    AddrKey, Ipip as Tunnel, Link, LinkKind, Mark, NextHop, Route, RouteKey, RouteTo,
};
use model::subnet::first;
use model::{BackendType, Dual, Family, Host, IfName, Lease, LeaseAttrs, NetConfig, Object};

use crate::error::underlay;
use crate::host_gw::direct;
use crate::served::Served;
use crate::{Backend, BackendError, Fault, OwnDevice, PeerPlan, unknown_options};

pub(crate) const OPTIONS: [&str; 1] = ["DirectRouting"];

/// What the outer IPv4 header takes from the MTU, in bytes.
const OVERHEAD: u32 = 20;

/// The least MTU of a device that carries IPv4 (RFC 791).
const LEAST_MTU: u32 = 68;

pub(crate) struct Ipip {
    /// The device, for IPv4.
    served: Served<IfName>,
    mtu: u32,
    direct_routing: bool,
    mark: Option<Mark>,
    warnings: Vec<String>,
}

impl Ipip {
    pub(crate) fn new(config: &NetConfig, host: &Host) -> Result<Ipip, BackendError> {
        let direct_routing = config.backend.bool("DirectRouting", false)?;
        let device = |text: &str| {
            text.parse().map_err(|_| BackendError::NoAddress {
                iface: host.iface,
                family: Family::V4,
            })
        };
        let served = Served::new(config, host, |family, _| match family {
            Family::V4 if host.mtu < LEAST_MTU + OVERHEAD => Err(BackendError::SmallMtu {
                iface: host.iface,
                mtu: host.mtu,
                family,
                needed: LEAST_MTU + OVERHEAD,
            }),
            Family::V4 => device("flannel.ipip"),
            Family::V6 => Err(BackendError::V4Only(BackendType::Ipip)),
        })?;
        Ok(Ipip {
            served,
            mtu: host.mtu.saturating_sub(OVERHEAD),
            direct_routing,
            mark: Mark::of(&config.pools.map(|_, pool| pool.network)),
            warnings: unknown_options(config),
        })
    }

    fn link(&self, local: IpAddr) -> Link {
        Link {
            kind: LinkKind::Ipip(Tunnel { local }),
            mac: None,
            mtu: self.mtu,
            up: true,
            mark: self.mark,
            enslaved: false,
        }
    }

    fn route(&self, peer: &Lease, family: Family, host: &Host) -> Result<Option<Object>, Fault> {
        let (Some(device), Some(net)) = (
            self.served.families.get(family),
            peer.key.nets().get(family),
        ) else {
            return Ok(None);
        };
        let via = underlay(peer, family, host)?;
        if self.direct_routing && host.is_on_link(&via) {
            return Ok(Some(direct(net, via, host)));
        }
        let hop = NextHop {
            via,
            dev: *device,
            onlink: true,
        };
        Ok(Some(Object::Route(
            RouteKey::to(*net),
            Route::ours(RouteTo::Gateway(hop)),
        )))
    }
}

impl Backend for Ipip {
    fn kind(&self) -> BackendType {
        BackendType::Ipip
    }

    fn publish(&self) -> LeaseAttrs {
        LeaseAttrs {
            public_ip: self.served.public_ip,
            backend_type: Some(BackendType::Ipip),
            data: Dual::default(),
            also: Box::default(),
        }
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }

    fn devices(&self) -> Vec<OwnDevice> {
        let own = |(_, name): (Family, &IfName)| OwnDevice {
            name: *name,
            kind: "ipip",
        };
        self.served.families.iter().map(own).collect()
    }

    fn node(&self, own: &Lease, host: &Host) -> Vec<Object> {
        let mut objects = Vec::new();
        for (family, dev) in self.served.families.iter() {
            let local = host.addr.get(family);
            objects.extend(local.map(|local| Object::Link(*dev, self.link(*local))));
            let net = own.key.nets().get(family);
            objects.extend(net.map(|net| {
                let net = first(net);
                Object::Addr(AddrKey { dev: *dev, net }, ())
            }));
        }
        objects
    }

    fn peer(&self, peer: &Lease, host: &Host) -> PeerPlan {
        PeerPlan::by_family(|family, objects| {
            objects.extend(self.route(peer, family, host)?);
            Ok(())
        })
    }

    fn missing(&self) -> &[(Family, BackendError)] {
        &self.served.missing
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
