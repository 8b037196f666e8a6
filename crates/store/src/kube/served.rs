//! Which of our Node's subnets can be served, and what is wrong with the others.

use ipnet::IpNet;
use model::{Dual, Family, SubnetKey};

use super::own::OwnNode;

/// What can be served of our Node's subnets.
#[derive(Debug, PartialEq)]
pub(super) struct Served {
    /// The subnets that are assigned and in the network.
    pub key: Option<SubnetKey>,
    /// What is wrong with the other families: an event's reason, and the text.
    pub faults: Vec<(&'static str, String)>,
}

impl Served {
    /// Returns the subnets of `own` that lie in their `networks`, and what is wrong with the others.
    pub(super) fn of(own: &OwnNode, networks: &Dual<IpNet>) -> Served {
        let mut faults = Vec::new();
        let subnets = Dual::from_fn(|family| {
            let network = networks.get(family)?;
            match subnet_in(own, family, network) {
                Ok(net) => Some(net),
                Err(fault) => {
                    faults.push(fault);
                    None
                }
            }
        });
        Served {
            key: SubnetKey::new(subnets),
            faults,
        }
    }

    /// Returns all faults as one text; empty if there are none.
    pub(super) fn text(&self) -> String {
        let texts: Vec<&str> = self.faults.iter().map(|(_, text)| text.as_str()).collect();
        texts.join("; ")
    }
}

fn subnet_in(
    own: &OwnNode,
    family: Family,
    network: &IpNet,
) -> Result<IpNet, (&'static str, String)> {
    if let Some(text) = own.bad_subnets.get(family) {
        return Err((
            "InvalidPodCIDR",
            format!("spec.podCIDRs holds {text:?}, which is not a subnet"),
        ));
    }
    let Some(net) = own.subnets.get(family) else {
        return Err((
            "NoPodCIDR",
            format!(
                "no {family} subnet in spec.podCIDRs yet: the controller manager assigns it, with --allocate-node-cidrs and --cluster-cidr"
            ),
        ));
    };
    if network.contains(net) {
        return Ok(*net);
    }
    let named = match family {
        Family::V4 => "Network",
        Family::V6 => "IPv6Network",
    };
    Err((
        "PodCIDROutsideNetwork",
        format!(
            "spec.podCIDRs has {net}, which is outside {named} {network} of the network configuration: make the controller manager's --cluster-cidr and {named} agree"
        ),
    ))
}
