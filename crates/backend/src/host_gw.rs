//! `host-gw`: routes through the peers' own addresses, on a link that all nodes share. No tunnel,
//! no header, no device.

use std::net::IpAddr;

use model::object::{NextHop, Route, RouteKey, RouteTo};
use model::{BackendType, Dual, Family, Host, IfName, Lease, LeaseAttrs, NetConfig, Object};

use crate::error::{public_ips, underlay};
use crate::{Backend, BackendError, Fault, PeerPlan};

pub(crate) struct HostGw {
    public_ip: Dual<IpAddr>,
    mtu: u32,
    warnings: Vec<String>,
}

impl HostGw {
    pub(crate) fn new(config: &NetConfig, host: &Host) -> Result<HostGw, BackendError> {
        let public_ip = public_ips(config, host)?;
        for (family, &public_ip) in public_ip.iter() {
            if let Some(&addr) = host.addr.get(family).filter(|addr| **addr != public_ip) {
                return Err(BackendError::Translated {
                    public_ip,
                    addr,
                    iface: host.iface,
                });
            }
        }
        let unknown = config.backend.unknown(&[]);
        let warnings = unknown
            .iter()
            .map(|key| format!("{key}: host-gw has no such option"))
            .collect();
        Ok(HostGw {
            public_ip,
            mtu: host.mtu,
            warnings,
        })
    }

    fn route(&self, peer: &Lease, family: Family, host: &Host) -> Result<Option<Object>, Fault> {
        let (Some(_), Some(net)) = (self.public_ip.get(family), peer.key.nets().get(family)) else {
            return Ok(None);
        };
        let ip = underlay(peer, family, host)?;
        if !host.is_on_link(&ip) {
            return Err(Fault::NotOnLink {
                family,
                ip,
                iface: host.iface,
            });
        }
        let hop = NextHop {
            via: ip,
            dev: host.iface,
            onlink: false,
        };
        Ok(Some(Object::Route(
            RouteKey::to(*net),
            Route::ours(RouteTo::Gateway(hop)),
        )))
    }
}

impl Backend for HostGw {
    fn kind(&self) -> BackendType {
        BackendType::HostGw
    }

    fn lease_attrs(&self) -> LeaseAttrs {
        LeaseAttrs {
            public_ip: self.public_ip,
            backend_type: Some(BackendType::HostGw),
            data: Dual::default(),
        }
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }

    fn devices(&self) -> Vec<IfName> {
        Vec::new()
    }

    fn node(&self, _own: &Lease, _host: &Host) -> Vec<Object> {
        Vec::new()
    }

    fn peer(&self, peer: &Lease, host: &Host) -> PeerPlan {
        PeerPlan::by_family(|family, objects| {
            objects.extend(self.route(peer, family, host)?);
            Ok(())
        })
    }

    fn identities(&self) -> fn(&Lease) -> Dual<u64> {
        |_| Dual::default()
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
