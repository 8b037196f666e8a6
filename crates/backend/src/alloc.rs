//! `alloc`: a subnet, and no traffic. For those who bring their own.

use model::{BackendType, Dual, Family, Host, Lease, LeaseAttrs, NetConfig, Object};

use crate::served::Served;
use crate::{Backend, BackendError, OwnDevice, PeerPlan, unknown_options};

pub(crate) struct Alloc {
    served: Served<()>,
    mtu: u32,
    warnings: Vec<String>,
}

impl Alloc {
    pub(crate) fn new(config: &NetConfig, host: &Host) -> Result<Alloc, BackendError> {
        Ok(Alloc {
            served: Served::new(config, host, |_, _| Ok(()))?,
            mtu: host.mtu,
            warnings: unknown_options(config),
        })
    }
}

impl Backend for Alloc {
    fn kind(&self) -> BackendType {
        BackendType::Alloc
    }

    fn publish(&self) -> LeaseAttrs {
        LeaseAttrs {
            public_ip: self.served.public_ip,
            backend_type: None,
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

    fn peer(&self, _peer: &Lease, _host: &Host) -> PeerPlan {
        PeerPlan::by_family(|_, _| Ok(()))
    }

    fn missing(&self) -> &[(Family, BackendError)] {
        &self.served.missing
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
