//! `ipsec`: the kernel encrypts, strongSwan's charon agrees on the keys.
//!
//! Policies that drop what no policy for a peer takes keep packets between pods from leaving or arriving
//! unencrypted.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::object::{
    IkeConnection, IkeKey, Psk, Route, RouteKey, RouteTo, XfrmDir, XfrmPolicy, XfrmPolicyKey,
};
use model::{
    BackendType, ConfigError, Dual, Family, Host, Lease, LeaseAttrs, NetConfig, Object, SubnetKey,
};

use crate::error::underlay;
use crate::served::Served;
use crate::{Backend, BackendError, Identity, OwnDevice, PeerPlan, unknown_options};

/// The options beside `Type`.
pub(crate) const OPTIONS: [&str; 3] = ["PSK", "UDPEncap", "ESPProposal"];

const ESP: &str = "aes128gcm16-sha256-prfsha256-ecp256";

/// The shortest secret that upstream takes, in bytes.
pub const LEAST_PSK: usize = 96;

/// What ESP adds to a packet in the worst case, and UDP on top of it, in bytes.
const OVERHEAD: u32 = 77;
const UDP_OVERHEAD: u32 = 8;

/// How long charon may take to start: it reads its plugins and certificates, and gathers randomness.
const CHARON: Duration = Duration::from_secs(60);

/// Behind every route that anybody writes.
const LAST_METRIC: u32 = u32::MAX - 1;

/// The ipsec backend.
pub(crate) struct Ipsec {
    /// This node's addresses: as its packets leave it, and as the peers know it.
    served: Served<(IpAddr, IpAddr)>,
    networks: Dual<IpNet>,
    psk: Psk,
    esp: Arc<str>,
    encap: bool,
    own: Dual<IpNet>,
    mtu: u32,
    warnings: Vec<String>,
}

impl Ipsec {
    pub(crate) fn new(
        config: &NetConfig,
        host: &Host,
        identity: &Identity,
    ) -> Result<Ipsec, BackendError> {
        let options = &config.backend;
        let mut warnings = unknown_options(config);
        let configured = options.string("PSK")?.unwrap_or_default();
        let psk = match identity {
            // The node's own file wins over what everybody can read.
            Identity::Psk(Some(psk)) => psk.clone(),
            _ if configured.len() >= LEAST_PSK => Psk(configured.into()),
            // No node was asked.
            Identity::Nothing if configured.is_empty() => {
                warnings.push(
                    "Backend.PSK is not set: every node needs the flag -ipsec-psk-file".into(),
                );
                Psk("".into())
            }
            _ => {
                return Err(BackendError::Config(ConfigError::Value {
                    key: "Backend.PSK".into(),
                    value: format!("a text of {} characters (not shown)", configured.len()),
                    expected: format!(
                        "at least {LEAST_PSK} characters, as `dd if=/dev/urandom count=48 bs=1 status=none | xxd -p -c 48` makes them, here or in the file that -ipsec-psk-file names"
                    ),
                }));
            }
        };
        let esp = options.string("ESPProposal")?.filter(|esp| !esp.is_empty());
        let asked = options.bool("UDPEncap", false)?;
        let served = Served::new(config, host, |family, addr| {
            let known = host.public_ip.get(family).copied().unwrap_or(addr);
            Ok((addr, known))
        })?;
        let translated = served
            .families
            .iter()
            .any(|(_, (addr, known))| addr != known);
        if translated && !asked {
            warnings.push(
                "the public IP is not the interface's address: packets travel in UDP, as with Backend.UDPEncap"
                    .into(),
            );
        }
        let encap = asked || translated;
        let overhead = OVERHEAD + if encap { UDP_OVERHEAD } else { 0 };
        Ok(Ipsec {
            served,
            networks: config.pools.map(|_, pool| pool.network),
            psk,
            esp: esp.unwrap_or(ESP).into(),
            encap,
            own: Dual::default(),
            mtu: host.mtu.saturating_sub(overhead),
            warnings,
        })
    }
}

impl Backend for Ipsec {
    fn kind(&self) -> BackendType {
        BackendType::Ipsec
    }

    fn set_own(&mut self, own: &SubnetKey) {
        self.own = *own.nets();
    }

    fn publish(&self) -> LeaseAttrs {
        LeaseAttrs {
            public_ip: self.served.public_ip,
            backend_type: Some(BackendType::Ipsec),
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

    fn node(&self, own: &Lease, host: &Host) -> Vec<Object> {
        let mut objects = Vec::new();
        for (family, network) in self.networks.iter() {
            let Some(own) = own.key.nets().get(family) else {
                continue;
            };
            // Between pods of this node, and between them and the node.
            for dir in XfrmDir::ALL {
                objects.push(policy(dir, *own, *own, XfrmPolicy::Allow));
            }
            objects.push(policy(XfrmDir::Out, *own, *network, XfrmPolicy::Block));
            for dir in [XfrmDir::In, XfrmDir::Fwd] {
                objects.push(policy(dir, *network, *own, XfrmPolicy::Block));
            }
            // What is to be encrypted needs a route as well, any route; most nodes have a default one.
            let key = RouteKey::with_metric(*network, LAST_METRIC);
            objects.push(Object::Route(key, Route::ours(RouteTo::Dev(host.iface))));
        }
        objects.push(Object::IkeDaemon((), false));
        objects
    }

    fn peer(&self, peer: &Lease, host: &Host) -> PeerPlan {
        PeerPlan::by_family(|family, objects| {
            let ends = self.served.families.get(family).zip(self.own.get(family));
            let Some(((local, local_id), own)) = ends else {
                return Ok(());
            };
            let Some(net) = peer.key.nets().get(family) else {
                return Ok(());
            };
            objects.extend(self.connect(
                *own,
                *net,
                *local,
                *local_id,
                underlay(peer, family, host)?,
            ));
            Ok(())
        })
    }

    fn encrypts(&self) -> bool {
        true
    }

    fn needs_connection(&self) -> bool {
        true
    }

    fn patience(&self) -> Duration {
        CHARON
    }

    fn missing(&self) -> &[(Family, BackendError)] {
        &self.served.missing
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

impl Ipsec {
    /// Returns what carries packets between two subnets.
    fn connect(
        &self,
        own: IpNet,
        net: IpNet,
        local: IpAddr,
        local_id: IpAddr,
        remote: IpAddr,
    ) -> [Object; 4] {
        let to_peer = XfrmPolicy::Tunnel {
            src: local,
            dst: remote,
            or_plain: false,
        };
        let from_peer = XfrmPolicy::Tunnel {
            src: remote,
            dst: local,
            or_plain: false,
        };
        let key = IkeKey {
            local: own,
            remote: net,
        };
        let connection = IkeConnection {
            local,
            local_id,
            remote,
            esp: self.esp.clone(),
            encap: self.encap,
            psk: self.psk.clone(),
        };
        [
            policy(XfrmDir::Out, own, net, to_peer),
            policy(XfrmDir::In, net, own, from_peer),
            policy(XfrmDir::Fwd, net, own, from_peer),
            Object::IkeConnection(key, connection),
        ]
    }
}

fn policy(dir: XfrmDir, src: IpNet, dst: IpNet, value: XfrmPolicy) -> Object {
    Object::XfrmPolicy(XfrmPolicyKey { dir, src, dst }, value)
}
