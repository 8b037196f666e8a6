//! The other nodes: which of their leases are used, and what the kernel must hold for them.

use std::collections::BTreeMap;

use backend::Backend;
use dataplane::Dataplane;
use model::roster::{Roster, RosterChange};
use model::{Host, Lease, Object, SubnetKey};
use tracing::{debug, info, warn};

use crate::reconcile::Reconciler;

/// The other nodes' leases, and the backend that says what they mean for this kernel.
pub struct Cluster {
    roster: Roster,
    backend: Box<dyn Backend>,
    host: Host,
    /// Accepted leases that the backend can do nothing with, and why. Told once.
    unusable: BTreeMap<SubnetKey, String>,
}

impl Cluster {
    /// No peers yet.
    pub fn new(roster: Roster, backend: Box<dyn Backend>, host: Host) -> Cluster {
        Cluster {
            roster,
            backend,
            host,
            unusable: BTreeMap::new(),
        }
    }

    /// Takes in what the store told, and changes what the kernel should hold accordingly. Tells of
    /// each subnet if `each`; returns how many were added or changed, and removed.
    pub fn take<D: Dataplane>(
        &mut self,
        leases: impl Iterator<Item = (SubnetKey, Option<Lease>)>,
        each: bool,
        reconciler: &mut Reconciler<D>,
    ) -> (usize, usize) {
        let (mut added, mut removed) = (0, 0);
        for (key, lease) in leases {
            let old = self.roster.accepted(&key).cloned();
            let changes = match lease {
                Some(lease) => self.roster.put(lease),
                None => self.roster.remove(&key),
            };
            let of_key = |other: &SubnetKey| old.as_ref().filter(|old| old.key == *other);
            for change in changes {
                match change {
                    RosterChange::Accept(lease) => {
                        self.place(of_key(&lease.key), &lease, each, reconciler);
                        added += 1;
                    }
                    RosterChange::Drop(dropped) => {
                        // Its own key: as it was. Another's: it is there still, but not used.
                        let gone = of_key(&dropped)
                            .or_else(|| self.roster.lease(&dropped))
                            .cloned();
                        if let Some(lease) = gone {
                            self.displace(&lease, each, reconciler);
                            removed += 1;
                        }
                    }
                    other => tell(other),
                }
            }
        }
        (added, removed)
    }

    /// Another backend or host: every peer anew.
    pub fn rebuild<D: Dataplane>(
        &mut self,
        own: SubnetKey,
        backend: Box<dyn Backend>,
        host: Host,
        reconciler: &mut Reconciler<D>,
    ) {
        for lease in self.roster.all_accepted() {
            reconciler.unwant(&self.objects(lease).unwrap_or_default());
        }
        self.roster
            .set_own(own, host.public_ip)
            .into_iter()
            .for_each(tell);
        (self.backend, self.host) = (backend, host);
        self.unusable.clear();
        let leases: Vec<Lease> = self.roster.all_accepted().cloned().collect();
        for lease in &leases {
            self.place(None, lease, false, reconciler);
        }
    }

    /// The backend in use.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// The host as it was when the backend was built.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// How many peers are in use, and how many leases cannot be used.
    pub fn counts(&self) -> (usize, usize) {
        let unusable = self.unusable.len();
        (
            self.roster.accepted_len() - unusable,
            self.roster.refused_len() + unusable,
        )
    }

    fn objects(&self, lease: &Lease) -> Result<Vec<Object>, backend::PeerError> {
        self.backend.peer(lease, &self.host)
    }

    fn place<D: Dataplane>(
        &mut self,
        old: Option<&Lease>,
        lease: &Lease,
        tell: bool,
        reconciler: &mut Reconciler<D>,
    ) {
        if let Some(old) = old {
            reconciler.unwant(&self.objects(old).unwrap_or_default());
        }
        match self.objects(lease) {
            Ok(objects) => {
                self.unusable.remove(&lease.key);
                reconciler.want(objects);
                match (tell, old) {
                    (false, _) => debug!("subnet {}", described(lease)),
                    (true, None) => info!("subnet added: {}", described(lease)),
                    (true, Some(_)) => info!("subnet changed: {}", described(lease)),
                }
            }
            Err(error) => {
                let text = error.to_string();
                if self.unusable.get(&lease.key) != Some(&text) {
                    warn!("lease {} is not used: {text}", lease.key);
                    self.unusable.insert(lease.key, text);
                }
            }
        }
    }

    fn displace<D: Dataplane>(
        &mut self,
        lease: &Lease,
        tell: bool,
        reconciler: &mut Reconciler<D>,
    ) {
        self.unusable.remove(&lease.key);
        reconciler.unwant(&self.objects(lease).unwrap_or_default());
        match tell {
            true => info!("subnet removed: {}", described(lease)),
            false => debug!("subnet removed: {}", described(lease)),
        }
    }
}

/// What the roster has to say that changes nothing in the kernel.
fn tell(change: RosterChange) {
    match change {
        RosterChange::Refuse { key, reason } => warn!("lease {key} is not used: {reason}"),
        RosterChange::Note(note) => warn!("{note}"),
        RosterChange::Accept(_) | RosterChange::Drop(_) => {}
    }
}

/// `10.1.4.0/24 via 192.168.2.45`
fn described(lease: &Lease) -> String {
    let list = |items: Vec<String>| items.join(", ");
    let nets = list(
        lease
            .key
            .nets()
            .iter()
            .map(|(_, net)| net.to_string())
            .collect(),
    );
    let ips = list(
        lease
            .attrs
            .public_ip
            .iter()
            .map(|(_, ip)| ip.to_string())
            .collect(),
    );
    format!("{nets} via {ips}")
}
