//! `wireguard`: encrypted tunnels, in the kernel or run in user space by this process. The packets on the wire are
//! the same, so that nodes of both kinds are peers.
//!
//! A blackhole route below the tunnel's own keeps packets for the network from leaving unencrypted while
//! the device does not exist.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;

use ipnet::IpNet;
use model::object::{
    AddrKey, Link, LinkKind, Mark, PacketLoop, Route, RouteKey, RouteTo, Tun, TunnelPeer, WgDevice,
    WgKeys, WgPeer, WgPeerKey,
};
use model::roster::Claims;
use model::subnet::first;
use model::{
    BackendType, ConfigError, Dual, Family, Host, IfName, Lease, LeaseAttrs, NetConfig, Object,
    WgKey, WgSecret, go_json,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::underlay;
use crate::served::Served;
use crate::{Backend, BackendError, Fault, Identity, OwnDevice, PeerPlan, unknown_options};

/// The options beside `Type`.
pub(crate) const OPTIONS: [&str; 6] = [
    "PSK",
    "ListenPort",
    "ListenPortV6",
    "MTU",
    "Mode",
    "PersistentKeepaliveInterval",
];

const PORT: u16 = 51_820;
const PORT_V6: u16 = 51_821;

/// What IPv6, UDP and WireGuard add to a packet, in bytes; upstream's figure for IPv4 too.
const OVERHEAD: u32 = 80;

/// The least MTUs that links may have (RFC 791, RFC 8200).
const LEAST_MTU: Dual<u32> = Dual {
    v4: Some(68),
    v6: Some(1280),
};

/// Behind every route that anybody writes.
const LAST_METRIC: u32 = u32::MAX - 1;

/// A tunnel of this node.
struct Tunnel {
    device: IfName,
    /// Carries the outer packets.
    outer: Family,
    /// The interface's address.
    local: IpAddr,
    port: u16,
}

/// What packets are encrypted with, and by whom.
#[derive(Clone, Copy)]
struct Keys {
    private: WgSecret,
    public: WgKey,
    preshared: Option<WgSecret>,
    in_kernel: bool,
}

/// The wireguard backend.
pub(crate) struct Wireguard {
    served: Served<()>,
    /// For each family of the pods its tunnel; one for both, unless `Mode` is `separate`.
    tunnels: Dual<Tunnel>,
    separate: bool,
    keys: Keys,
    keepalive: u16,
    ports: Dual<u16>,
    mtu: u32,
    networks: Dual<IpNet>,
    mark: Option<Mark>,
    warnings: Vec<String>,
}

/// `BackendData` of a lease.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire<'a> {
    #[serde(rename = "PublicKey", borrow)]
    public_key: std::borrow::Cow<'a, str>,
    /// Older versions of upstream leave it out.
    #[serde(rename = "Port", default)]
    port: u16,
}

impl Wire<'_> {
    fn read(data: &RawValue) -> Result<Wire<'_>, serde_json::Error> {
        go_json::decode(data.get().as_bytes(), &["PublicKey", "Port"])
    }
}

impl Wireguard {
    pub(crate) fn new(
        config: &NetConfig,
        host: &Host,
        identity: &Identity,
    ) -> Result<Wireguard, BackendError> {
        let options = &config.backend;
        let mut warnings = unknown_options(config);
        let port = |name, default| match options.u16(name, default, 0..=u16::MAX) {
            Ok(0) => Ok(default),
            other => other,
        };
        let ports = Dual {
            v4: Some(port("ListenPort", PORT)?),
            v6: Some(port("ListenPortV6", PORT_V6)?),
        };
        let mode = options.choice("Mode", "separate", &["separate", "auto", "ipv4", "ipv6"])?;
        let keepalive = options.u16("PersistentKeepaliveInterval", 0, 0..=u16::MAX)?;
        let (private, public, from_file, in_kernel) = match identity {
            Identity::WgKey {
                private,
                public,
                preshared,
                in_kernel,
            } => (*private, *public, *preshared, *in_kernel),
            Identity::Nothing | Identity::Macs(_) | Identity::Psk(_) | Identity::Data(_) => {
                return Err(BackendError::NoKey);
            }
        };
        let configured = match options.string("PSK")?.filter(|text| !text.is_empty()) {
            Some(text) => Some(text.parse().map_err(|_| ConfigError::Value {
                key: "Backend.PSK".into(),
                value: "(not shown)".into(),
                expected: "32 bytes in base64, as `wg genpsk` makes them".into(),
            })?),
            None => None,
        };
        let asked = options.u32("MTU", 0, 0..=65_535)?;
        if asked > host.mtu {
            warnings.push(format!(
                "Backend.MTU is {asked}: {} carries only {}, which is used",
                host.iface, host.mtu
            ));
        }
        let outer_mtu = if (1..=host.mtu).contains(&asked) {
            asked
        } else {
            host.mtu
        };
        let separate = mode == "separate";
        let mut tunnels = Dual::default();
        let served = Served::new(config, host, |family, _| {
            let outer = match mode {
                "separate" => family,
                "ipv4" => Family::V4,
                "ipv6" => Family::V6,
                _ if host.addr.v4.is_some() => Family::V4,
                _ => Family::V6,
            };
            let needed = LEAST_MTU.get(family).copied().unwrap_or(0) + OVERHEAD;
            if outer_mtu < needed {
                return Err(BackendError::SmallMtu {
                    iface: host.iface,
                    mtu: outer_mtu,
                    family,
                    needed,
                });
            }
            let local = *host.addr.get(outer).ok_or(BackendError::NoAddress {
                iface: host.iface,
                family: outer,
            })?;
            let of = if separate { family } else { Family::V4 };
            let device = device(of).ok_or(BackendError::Unknown("wireguard".into()))?;
            let port = ports.get(of).copied().unwrap_or(PORT);
            tunnels.set(
                family,
                Some(Tunnel {
                    device,
                    outer,
                    local,
                    port,
                }),
            );
            Ok(())
        })?;
        Ok(Wireguard {
            served,
            tunnels,
            separate,
            keys: Keys {
                private,
                public,
                // The node's own file wins over what everybody can read.
                preshared: from_file.or(configured),
                in_kernel,
            },
            keepalive,
            ports,
            mtu: outer_mtu.saturating_sub(OVERHEAD),
            networks: config.pools.map(|_, pool| pool.network),
            mark: Mark::of(&config.pools.map(|_, pool| pool.network)),
            warnings,
        })
    }

    /// Returns each device with the families that it carries.
    fn each_device(&self) -> Vec<(&Tunnel, Vec<Family>)> {
        let mut found: Vec<(&Tunnel, Vec<Family>)> = Vec::new();
        for (family, tunnel) in self.tunnels.iter() {
            match found.iter_mut().find(|(of, _)| of.device == tunnel.device) {
                Some((_, families)) => families.push(family),
                None => found.push((tunnel, vec![family])),
            }
        }
        found
    }

    /// Returns a peer's key, and the port that it says it listens on.
    fn read(&self, peer: &Lease, family: Family) -> Result<(WgKey, u16), Fault> {
        let data = peer.attrs.data.get(family).ok_or(Fault::NoData(family))?;
        let bad = |reason: String| Fault::BadData { family, reason };
        let wire = Wire::read(data).map_err(|error| bad(error.to_string()))?;
        let key: WgKey = wire
            .public_key
            .parse()
            .map_err(|error| bad(format!("PublicKey: {error}")))?;
        if key == self.keys.public {
            return Err(bad("PublicKey is this node's own".into()));
        }
        let port = if wire.port == 0 {
            self.ports.get(family).copied().unwrap_or(PORT)
        } else {
            wire.port
        };
        Ok((key, port))
    }

    /// Returns the peer behind one tunnel, with these families of its subnets.
    fn peer_at(
        &self,
        tunnel: &Tunnel,
        families: &[Family],
        data: Family,
        peer: &Lease,
        host: &Host,
    ) -> Result<Object, Fault> {
        let (key, port) = self.read(peer, data)?;
        let endpoint = SocketAddr::new(underlay(peer, tunnel.outer, host)?, port);
        let nets = families
            .iter()
            .filter_map(|family| peer.key.nets().get(*family));
        let allowed = nets.copied().collect();
        let key = WgPeerKey {
            dev: tunnel.device,
            key,
        };
        if self.keys.in_kernel {
            let value = WgPeer {
                endpoint: Some(endpoint),
                allowed,
                preshared: self.keys.preshared,
                keepalive: self.keepalive,
            };
            Ok(Object::WgPeer(key, value))
        } else {
            Ok(Object::TunnelPeer(key, TunnelPeer { endpoint, allowed }))
        }
    }

    /// Returns what encrypts the packets of a tunnel's device.
    fn carrier(&self, tunnel: &Tunnel) -> Object {
        let Keys {
            private, preshared, ..
        } = self.keys;
        if self.keys.in_kernel {
            let port = tunnel.port;
            return Object::WgDevice(tunnel.device, WgDevice { private, port });
        }
        let packet_loop = PacketLoop {
            listen: SocketAddr::new(tunnel.local, tunnel.port),
            mtu: self.mtu,
            keys: Some(WgKeys {
                private,
                preshared,
                keepalive: self.keepalive,
            }),
        };
        Object::PacketLoop(tunnel.device, packet_loop)
    }

    fn has(&self, peer: &Lease, family: Family) -> bool {
        self.tunnels.get(family).is_some() && peer.key.nets().get(family).is_some()
    }
}

/// Returns the device's name, which upstream's users know.
fn device(family: Family) -> Option<IfName> {
    let name = match family {
        Family::V4 => "flannel-wg",
        Family::V6 => "flannel-wg-v6",
    };
    name.parse().ok()
}

impl Backend for Wireguard {
    fn kind(&self) -> BackendType {
        BackendType::Wireguard
    }

    fn publish(&self) -> LeaseAttrs {
        let data = |family: Family| -> Option<Box<RawValue>> {
            self.networks.get(family)?;
            // With one device there is one port, whatever the option for IPv6 says.
            let of = if self.separate { family } else { Family::V4 };
            let wire = Wire {
                public_key: self.keys.public.to_string().into(),
                port: self.ports.get(of).copied().unwrap_or(PORT),
            };
            serde_json::value::to_raw_value(&wire).ok()
        };
        LeaseAttrs {
            public_ip: self.served.public_ip,
            backend_type: Some(BackendType::Wireguard),
            data: Dual::from_fn(data),
            also: Box::default(),
        }
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }

    fn devices(&self) -> Vec<OwnDevice> {
        let devices = self.each_device().into_iter();
        devices
            .map(|(tunnel, _)| OwnDevice {
                name: tunnel.device,
                kind: if self.keys.in_kernel {
                    "wireguard"
                } else {
                    "tun"
                },
            })
            .collect()
    }

    fn encrypts(&self) -> bool {
        true
    }

    fn node(&self, own: &Lease, _host: &Host) -> Vec<Object> {
        let mut objects = Vec::new();
        for (_, network) in self.networks.iter() {
            let key = RouteKey::with_metric(*network, LAST_METRIC);
            objects.push(Object::Route(key, Route::ours(RouteTo::Blackhole)));
        }
        for (tunnel, families) in self.each_device() {
            let dev = tunnel.device;
            let link = Link {
                kind: if self.keys.in_kernel {
                    LinkKind::Wireguard(model::object::Wireguard)
                } else {
                    LinkKind::Tun(Tun)
                },
                mac: None,
                mtu: self.mtu,
                up: true,
                mark: self.mark,
                enslaved: false,
            };
            objects.push(Object::Link(dev, link));
            for family in &families {
                let net = own.key.nets().get(*family).map(first);
                objects.extend(net.map(|net| Object::Addr(AddrKey { dev, net }, ())));
            }
            objects.push(self.carrier(tunnel));
            for family in &families {
                let network = self.networks.get(*family);
                objects.extend(network.map(|network| {
                    Object::Route(RouteKey::to(*network), Route::ours(RouteTo::Dev(dev)))
                }));
            }
        }
        objects
    }

    fn peer(&self, peer: &Lease, host: &Host) -> PeerPlan {
        if self.separate {
            return PeerPlan::by_family(|family, objects| {
                if let Some(tunnel) = self.tunnels.get(family).filter(|_| self.has(peer, family)) {
                    objects.push(self.peer_at(tunnel, &[family], family, peer, host)?);
                }
                Ok(())
            });
        }
        // One peer with both its subnets.
        let families: Vec<Family> = Family::ALL
            .into_iter()
            .filter(|family| self.has(peer, *family))
            .collect();
        let data = families
            .iter()
            .find(|family| peer.attrs.data.get(**family).is_some());
        let Some(of) = data.or(families.first()).copied() else {
            return PeerPlan::by_family(|_, _| Ok(()));
        };
        PeerPlan::by_family(|family, objects| {
            if let Some(tunnel) = self.tunnels.get(family).filter(|_| family == of) {
                objects.push(self.peer_at(tunnel, &families, of, peer, host)?);
            }
            Ok(())
        })
    }

    fn claims(&self, attrs: &LeaseAttrs) -> Claims {
        // Its key is secret, so that nobody can make a public key whose number is another node's.
        static HASHER: OnceLock<RandomState> = OnceLock::new();
        let hasher = HASHER.get_or_init(RandomState::new);
        Dual::from_fn(|family| {
            let data = attrs.data.get(family)?;
            let wire = Wire::read(data).ok()?;
            let key: WgKey = wire.public_key.parse().ok()?;
            Some(hasher.hash_one(key))
        })
    }

    fn needs_acquaintance(&self) -> bool {
        true
    }

    fn missing(&self) -> &[(Family, BackendError)] {
        &self.served.missing
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
