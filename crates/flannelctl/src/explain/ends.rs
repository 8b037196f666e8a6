//! The two ends: who has them, and what stands for each.

use std::net::IpAddr;

use anyhow::{Result, bail};
use ipnet::IpNet;
use model::subnet::first;
use model::{Family, SubnetKey};
use store::ListedLease;

use crate::check::report::Report;
use crate::check::scene::Scene;
use crate::check::subnet::own_leases;

/// What was typed: an address, or a subnet.
#[derive(Clone, Copy)]
pub(super) enum Typed {
    Address(IpAddr),
    Subnet(IpNet),
}

/// Reads an address or a subnet.
///
/// # Errors
/// It is neither; names it.
pub(super) fn parse(text: &str) -> Result<Typed> {
    if let Ok(address) = text.parse() {
        return Ok(Typed::Address(address));
    }
    match text.parse::<IpNet>() {
        Ok(net) => Ok(Typed::Subnet(net)),
        Err(_) => bail!(
            "{text:?} is neither an address nor a subnet such as 10.244.3.0/24: give the address of a container (kubectl get pod -o wide), a node's subnet or its public address"
        ),
    }
}

/// One end.
#[derive(Clone)]
pub(super) struct End {
    /// The address that is looked up.
    pub(super) address: IpAddr,
    /// It is a node's own address, or stands for a node.
    pub(super) is_node: bool,
    /// The lease that covers it.
    pub(super) lease: Option<ListedLease>,
}

/// Both ends, seen from this node.
pub(super) struct Ends {
    /// The end on this node.
    pub(super) local: End,
    /// The other end's address.
    pub(super) far: IpAddr,
    /// The other end, unless it is on this node, too.
    pub(super) remote: Option<End>,
    /// The end on this node is where the packets go.
    pub(super) swapped: bool,
    pub(super) family: Family,
    /// This node's lease.
    pub(super) own: ListedLease,
}

/// An end before it is known where it is.
struct Candidate {
    end: End,
    is_local: bool,
}

impl Ends {
    /// Finds both.
    ///
    /// # Errors
    /// What keeps that from being known, with the remedy.
    pub(super) fn find(
        report: &Report,
        scene: &Scene,
        source: Typed,
        destination: Typed,
    ) -> Result<Ends> {
        let (Some(leases), Some(host)) = (&scene.stored.leases, &scene.host) else {
            bail!(
                "leases and interface cannot be read, so that it is not known who has these addresses: {}",
                report.faults().join("; ")
            );
        };
        let Some(own) = own_leases(leases, &host.public_ip)
            .first()
            .copied()
            .cloned()
        else {
            bail!(
                "no lease has this node's public address: flanneld has no subnet here; `flannelctl status` says what it waits for"
            );
        };
        let family = family_of(source, destination)?;
        let source = candidate(source, family, leases, &own)?;
        let destination = candidate(destination, family, leases, &own)?;
        let (source, destination) = (&source, &destination);
        let (local, far, swapped) = match (source.is_local, destination.is_local) {
            (true, _) => (source, destination, false),
            (false, true) => (destination, source, true),
            (false, false) => bail!(
                "neither {} nor {} is on this node, whose subnet is {}: run this command on the node of one of them: {}",
                source.end.address,
                destination.end.address,
                own.key,
                homes(&[source, destination])
            ),
        };
        Ok(Ends {
            local: local.end.clone(),
            far: far.end.address,
            remote: (!far.is_local).then(|| far.end.clone()),
            swapped,
            family,
            own,
        })
    }

    /// The local end as the source of a packet; `None` if the node itself sends it.
    pub(super) fn sender(&self) -> Option<IpAddr> {
        (!self.local.is_node).then_some(self.local.address)
    }
}

/// The public addresses of the nodes that have these ends.
fn homes(ends: &[&Candidate]) -> String {
    let homes = ends.iter().map(|candidate| {
        let lease = candidate.end.lease.as_ref();
        let attrs = lease.and_then(|lease| lease.attrs.as_ref().ok());
        let ip = attrs.and_then(|attrs| attrs.public_ip.iter().next());
        let address = candidate.end.address;
        match ip {
            Some((_, ip)) => format!("{address} is on the node {ip}"),
            None => format!("no lease covers {address}"),
        }
    });
    homes.collect::<Vec<_>>().join(", ")
}

fn family_of(source: Typed, destination: Typed) -> Result<Family> {
    let of = |typed| match typed {
        Typed::Address(ip) => Family::of(&ip),
        Typed::Subnet(net) => Family::of(&net.addr()),
    };
    if of(source) == of(destination) {
        Ok(of(source))
    } else {
        bail!("one is IPv4 and the other IPv6: give two addresses of one family")
    }
}

fn candidate(
    typed: Typed,
    family: Family,
    leases: &[ListedLease],
    own: &ListedLease,
) -> Result<Candidate> {
    let covers = |key: &SubnetKey, ip: &IpAddr| {
        let net = key.nets().get(family);
        net.is_some_and(|net| net.contains(ip))
    };
    match typed {
        Typed::Address(ip) => {
            let published = |lease: &&ListedLease| {
                let attrs = lease.attrs.as_ref();
                attrs.is_ok_and(|attrs| attrs.public_ip.iter().any(|(_, public)| *public == ip))
            };
            if let Some(lease) = leases.iter().find(published) {
                return node(lease, family, own);
            }
            let lease = leases.iter().find(|lease| covers(&lease.key, &ip));
            // The first address of a subnet is its node's tunnel device.
            let net = lease.and_then(|lease| lease.key.nets().get(family));
            let is_node = net.is_some_and(|net| first(net).addr() == ip);
            Ok(Candidate {
                is_local: covers(&own.key, &ip),
                end: End {
                    address: ip,
                    is_node,
                    lease: lease.cloned(),
                },
            })
        }
        Typed::Subnet(net) => {
            let is = |lease: &&ListedLease| lease.key.nets().get(family) == Some(&net.trunc());
            match leases.iter().find(is) {
                Some(lease) => node(lease, family, own),
                None => bail!(
                    "no lease is {net}: `flannelctl peers` lists the subnets of the other nodes, this node's is {}",
                    own.key
                ),
            }
        }
    }
}

/// Returns the end that stands for a node: the address of its tunnel device.
fn node(lease: &ListedLease, family: Family, own: &ListedLease) -> Result<Candidate> {
    let Some(net) = lease.key.nets().get(family) else {
        bail!("lease {} has no {family} subnet", lease.key);
    };
    Ok(Candidate {
        is_local: lease.key == own.key,
        end: End {
            address: first(net).addr(),
            is_node: true,
            lease: Some(lease.clone()),
        },
    })
}
