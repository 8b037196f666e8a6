//! `host-gw`: routes through the peers' own addresses, on a link that all nodes share. No tunnel,
//! no header, no device.

use model::object::{NextHop, Route, RouteKey, RouteTo};
use model::{BackendType, Dual, Family, Host, Lease, LeaseAttrs, NetConfig, Object};

use crate::error::underlay;
use crate::served::Served;
use crate::{Backend, BackendError, Fault, OwnDevice, PeerPlan, unknown_options};

pub(crate) struct HostGw {
    served: Served<()>,
    mtu: u32,
    warnings: Vec<String>,
}

impl HostGw {
    pub(crate) fn new(config: &NetConfig, host: &Host) -> Result<HostGw, BackendError> {
        let served = Served::new(config, host, |family, addr| {
            match host.public_ip.get(family) {
                Some(&public_ip) if public_ip != addr => Err(BackendError::Translated {
                    public_ip,
                    addr,
                    iface: host.iface,
                }),
                _ => Ok(()),
            }
        })?;
        Ok(HostGw {
            served,
            mtu: host.mtu,
            warnings: unknown_options(config),
        })
    }

    fn route(&self, peer: &Lease, family: Family, host: &Host) -> Result<Option<Object>, Fault> {
        let (Some(()), Some(net)) = (
            self.served.families.get(family),
            peer.key.nets().get(family),
        ) else {
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
        Ok(Some(direct(net, ip, host)))
    }
}

/// Returns the route to a peer's subnet through the peer's own address on the host's link.
pub(crate) fn direct(net: &ipnet::IpNet, via: std::net::IpAddr, host: &Host) -> Object {
    let hop = NextHop {
        via,
        dev: host.iface,
        onlink: false,
    };
    Object::Route(RouteKey::to(*net), Route::ours(RouteTo::Gateway(hop)))
}

impl Backend for HostGw {
    fn kind(&self) -> BackendType {
        BackendType::HostGw
    }

    fn publish(&self) -> LeaseAttrs {
        LeaseAttrs {
            public_ip: self.served.public_ip,
            backend_type: Some(BackendType::HostGw),
            data: Dual::default(),
            also: Box::default(),
        }
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }

    fn devices(&self) -> Vec<OwnDevice> {
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

    fn missing(&self) -> &[(Family, BackendError)] {
        &self.served.missing
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
