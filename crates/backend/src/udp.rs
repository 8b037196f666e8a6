//! `udp`: a TUN device, whose packets this process carries in UDP datagrams. For kernels and networks that
//! have nothing better. IPv4 only, as upstream's.
//!
//! There is one route, for the whole network, into the device; which peer a packet goes to is decided behind it.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use model::object::{
    AddrKey, Link, LinkKind, Mark, PacketLoop, Route, RouteKey, RouteTo, Tun, TunnelRouteKey,
};
use model::subnet::first;
use model::{BackendType, Dual, Family, Host, IfName, Lease, LeaseAttrs, NetConfig, Object};

use crate::error::underlay;
use crate::served::Served;
use crate::{Backend, BackendError, Fault, OwnDevice, PeerPlan, unknown_options};

/// The options beside `Type`.
pub(crate) const OPTIONS: [&str; 1] = ["Port"];

/// Upstream's port, where `Port` is absent.
const PORT: u16 = 8285;

/// What IPv4 and UDP add to a packet, in bytes.
const OVERHEAD: u32 = 28;

/// The least MTU that an IPv4 link may have (RFC 791).
const LEAST_MTU: u32 = 68;

/// The udp backend.
pub(crate) struct Udp {
    /// The interface's address.
    served: Served<IpAddr>,
    device: IfName,
    port: u16,
    mtu: u32,
    network: Option<IpNet>,
    mark: Option<Mark>,
    warnings: Vec<String>,
}

impl Udp {
    pub(crate) fn new(config: &NetConfig, host: &Host) -> Result<Udp, BackendError> {
        // Upstream takes a port of 0 for an absent one.
        let port = match config.backend.u16("Port", PORT, 0..=u16::MAX)? {
            0 => PORT,
            port => port,
        };
        let device = device().ok_or(BackendError::Unknown("udp".into()))?;
        let served = Served::new(config, host, |family, addr| match family {
            Family::V6 => Err(BackendError::V4Only(BackendType::Udp)),
            Family::V4 if host.mtu < LEAST_MTU + OVERHEAD => Err(BackendError::SmallMtu {
                iface: host.iface,
                mtu: host.mtu,
                family,
                needed: LEAST_MTU + OVERHEAD,
            }),
            Family::V4 => Ok(addr),
        })?;
        Ok(Udp {
            served,
            device,
            port,
            mtu: host.mtu.saturating_sub(OVERHEAD),
            network: config.pools.v4.as_ref().map(|pool| pool.network),
            mark: Mark::of(&config.pools.map(|_, pool| pool.network)),
            warnings: unknown_options(config),
        })
    }

    fn peer_v4(&self, peer: &Lease, host: &Host) -> Result<Option<Object>, Fault> {
        let (Some(_), Some(net)) = (&self.served.families.v4, &peer.key.nets().v4) else {
            return Ok(None);
        };
        // The peers' ports are not published: it is one for all.
        let to = SocketAddr::new(underlay(peer, Family::V4, host)?, self.port);
        let key = TunnelRouteKey {
            dev: self.device,
            dst: *net,
        };
        Ok(Some(Object::TunnelRoute(key, to)))
    }
}

/// Returns the device's name, which upstream's users know.
fn device() -> Option<IfName> {
    "flannel0".parse().ok()
}

impl Backend for Udp {
    fn kind(&self) -> BackendType {
        BackendType::Udp
    }

    fn publish(&self) -> LeaseAttrs {
        LeaseAttrs {
            public_ip: self.served.public_ip,
            // Upstream's nodes write none.
            backend_type: None,
            data: Dual::default(),
            also: Box::default(),
        }
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }

    fn devices(&self) -> Vec<OwnDevice> {
        vec![OwnDevice {
            name: self.device,
            kind: "tun",
        }]
    }

    fn node(&self, own: &Lease, _host: &Host) -> Vec<Object> {
        let (Some(local), Some(net), Some(network)) =
            (self.served.families.v4, &own.key.nets().v4, self.network)
        else {
            return Vec::new();
        };
        let dev = self.device;
        let link = Link {
            kind: LinkKind::Tun(Tun),
            mac: None,
            mtu: self.mtu,
            up: true,
            mark: self.mark,
            enslaved: false,
        };
        let packet_loop = PacketLoop {
            listen: SocketAddr::new(local, self.port),
            mtu: self.mtu,
            keys: None,
        };
        vec![
            Object::Link(dev, link),
            // The only address of the device, and so the source of the host's own packets to pods.
            Object::Addr(
                AddrKey {
                    dev,
                    net: first(net),
                },
                (),
            ),
            Object::PacketLoop(dev, packet_loop),
            Object::Route(RouteKey::to(network), Route::ours(RouteTo::Dev(dev))),
        ]
    }

    fn peer(&self, peer: &Lease, host: &Host) -> PeerPlan {
        PeerPlan::by_family(|family, objects| {
            if family == Family::V4 {
                objects.extend(self.peer_v4(peer, host)?);
            }
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
