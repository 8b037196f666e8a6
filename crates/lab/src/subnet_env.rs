//! `subnet.env`, read the way its users do: a shell's `NAME=value` lines.

use ipnet::IpNet;
use model::{Dual, Family};

use crate::Error;

/// What a flanneld tells the rest of its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// `FLANNEL_NETWORK`, `FLANNEL_IPV6_NETWORK`.
    pub network: Dual<IpNet>,
    /// `FLANNEL_SUBNET`, `FLANNEL_IPV6_SUBNET`: the node's own address in its subnet and the
    /// subnet's length.
    pub subnet: Dual<IpNet>,
    /// `FLANNEL_MTU` in bytes.
    pub mtu: u32,
    /// `FLANNEL_IPMASQ`.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// Reads the text of a `subnet.env`.
    ///
    /// # Errors
    /// [`Error::Bad`] names the line or the missing variable.
    pub fn parse(text: &str) -> Result<SubnetEnv, Error> {
        let (mut network, mut subnet) = (Dual::default(), Dual::default());
        let (mut mtu, mut ip_masq) = (None, None);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let bad = || Error::Bad(format!("subnet.env: cannot read the line {line:?}"));
            let (name, value) = line.split_once('=').ok_or_else(bad)?;
            let net = || value.parse::<IpNet>().map_err(|_| bad());
            match name {
                "FLANNEL_NETWORK" => network.set(Family::V4, Some(net()?)),
                "FLANNEL_IPV6_NETWORK" => network.set(Family::V6, Some(net()?)),
                "FLANNEL_SUBNET" => subnet.set(Family::V4, Some(net()?)),
                "FLANNEL_IPV6_SUBNET" => subnet.set(Family::V6, Some(net()?)),
                "FLANNEL_MTU" => mtu = Some(value.parse().map_err(|_| bad())?),
                "FLANNEL_IPMASQ" => ip_masq = Some(value.parse().map_err(|_| bad())?),
                _ => return Err(bad()),
            }
        }
        let lacks = |name: &str| Error::Bad(format!("subnet.env has no {name}:\n{text}"));
        if subnet.is_empty() {
            return Err(lacks("FLANNEL_SUBNET"));
        }
        Ok(SubnetEnv {
            network,
            subnet,
            mtu: mtu.ok_or_else(|| lacks("FLANNEL_MTU"))?,
            ip_masq: ip_masq.ok_or_else(|| lacks("FLANNEL_IPMASQ"))?,
        })
    }

    /// The subnet itself, its host bits cleared.
    pub fn cidr(&self, family: Family) -> Option<IpNet> {
        self.subnet.get(family).map(IpNet::trunc)
    }
}
