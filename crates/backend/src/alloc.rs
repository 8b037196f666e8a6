//! `alloc`: a subnet, and no traffic. For those who bring their own.

use std::net::IpAddr;

use model::{BackendType, Dual, Host, IfName, Lease, LeaseAttrs, NetConfig, Object};

use crate::error::public_ips;
use crate::{Backend, BackendError, PeerPlan};

pub(crate) struct Alloc {
    public_ip: Dual<IpAddr>,
    mtu: u32,
    warnings: Vec<String>,
}

impl Alloc {
    pub(crate) fn new(config: &NetConfig, host: &Host) -> Result<Alloc, BackendError> {
        let unknown = config.backend.unknown(&[]);
        let warnings = unknown
            .iter()
            .map(|key| format!("{key}: alloc has no such option"))
            .collect();
        Ok(Alloc {
            public_ip: public_ips(config, host)?,
            mtu: host.mtu,
            warnings,
        })
    }
}

impl Backend for Alloc {
    fn kind(&self) -> BackendType {
        BackendType::Alloc
    }

    fn lease_attrs(&self) -> LeaseAttrs {
        LeaseAttrs {
            public_ip: self.public_ip,
            backend_type: None,
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

    fn peer(&self, _peer: &Lease, _host: &Host) -> PeerPlan {
        PeerPlan::by_family(|_, _| Ok(()))
    }

    fn identities(&self) -> fn(&Lease) -> Dual<u64> {
        |_| Dual::default()
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
