//! How a node takes a subnet (contract §4), whatever the store: the lease it has from before, else
//! the previous subnet, else a random free one.

use std::fmt::Display;
use std::future::Future;

use model::{Lease, LeaseAttrs, NetConfig, SubnetKey, pool};
use tracing::{debug, info, warn};

use crate::complaints::Complaints;
pub(crate) use crate::own_lease::addresses;
pub(crate) use crate::own_lease::same_node;
use crate::patience::Patience;
use crate::{AcquireError, Claim};

/// A lease in the store that was published with our public addresses.
#[derive(Clone, Debug)]
pub(crate) struct Candidate<M> {
    pub lease: Lease,
    /// It never expires, and must not begin to.
    pub reserved: bool,
    /// What the store needs to change it only if it is still as seen.
    pub mark: M,
}

/// What taking a subnet needs of a store. After a [`Ground::Fault`] any of it may be tried again.
pub(crate) trait Ground {
    /// The store did not answer, or not so that one could go on.
    type Fault;
    /// See [`Candidate::mark`].
    type Mark: Clone;

    /// Leases of ours that were read so far.
    fn candidates(&mut self) -> &mut Vec<Candidate<Self::Mark>>;
    /// Every key that was read so far.
    fn taken(&self) -> Vec<SubnetKey>;
    /// All keys have been read.
    fn all_read(&self) -> bool;
    /// Begins to read all keys again.
    fn read_again(&mut self);
    /// Reads some more keys.
    fn read_more(&mut self) -> impl Future<Output = Result<(), Self::Fault>>;
    /// Writes our attributes under a lease of ours; `None` if it is no longer as seen.
    fn adopt(
        &mut self,
        old: &Candidate<Self::Mark>,
        attrs: &LeaseAttrs,
    ) -> impl Future<Output = Result<Option<Lease>, Self::Fault>>;
    /// Deletes a lease of ours, if it is still as seen.
    fn discard(
        &mut self,
        old: &Candidate<Self::Mark>,
    ) -> impl Future<Output = Result<(), Self::Fault>>;
    /// Takes a subnet that seems to be free; `None` if it is not, which is then known.
    fn create(
        &mut self,
        key: SubnetKey,
        attrs: &LeaseAttrs,
    ) -> impl Future<Output = Result<Option<Lease>, Self::Fault>>;
    /// Gives back what was prepared for a new lease that there will not be.
    fn none_created(&mut self) -> impl Future<Output = ()>;
}

/// Why this try to take a subnet ended.
enum Setback<F> {
    /// Waiting mends it: call again.
    Store(F),
    /// Waiting does not.
    Final(AcquireError),
}

impl<F> From<F> for Setback<F> {
    fn from(fault: F) -> Self {
        Setback::Store(fault)
    }
}

/// The oldest lease of ours. Reads only as far as it takes to find one.
async fn find_own<G: Ground>(ground: &mut G) -> Result<Option<Lease>, G::Fault> {
    loop {
        let oldest = ground
            .candidates()
            .iter()
            .min_by_key(|old| old.lease.seniority);
        if let Some(old) = oldest {
            return Ok(Some(old.lease.clone()));
        }
        if ground.all_read() {
            return Ok(None);
        }
        ground.read_more().await?;
    }
}

/// Takes a subnet.
async fn acquire<G: Ground>(
    ground: &mut G,
    config: &NetConfig,
    claim: &Claim,
) -> Result<Lease, Setback<G::Fault>> {
    loop {
        if let Some(old) = best_candidate(ground, config, claim).await? {
            ground
                .candidates()
                .retain(|other| other.lease.key != old.lease.key);
            if let Some(lease) = ground.adopt(&old, &claim.attrs).await? {
                let kind = if old.reserved { "reservation" } else { "lease" };
                info!("{kind} {}: ours from before, taken up again", lease.key);
                return Ok(lease);
            }
            ground.read_again();
            continue;
        }
        while let Some(old) = ground.candidates().last().cloned() {
            warn!(
                "lease {}: ours from before, but not one that the configuration allows: deleted",
                old.lease.key
            );
            ground.discard(&old).await?;
            ground.candidates().pop();
        }
        if let Some(lease) = create(ground, config, claim).await? {
            info!("lease {}: new", lease.key);
            return Ok(lease);
        }
    }
}

/// The lease to take up again, if we have one that fits: the previous one, else the oldest.
async fn best_candidate<G: Ground>(
    ground: &mut G,
    config: &NetConfig,
    claim: &Claim,
) -> Result<Option<Candidate<G::Mark>>, G::Fault> {
    loop {
        let fitting = ground
            .candidates()
            .iter()
            .filter(|old| config.fits(&old.lease.key));
        let best =
            fitting.min_by_key(|old| (Some(old.lease.key) != claim.previous, old.lease.seniority));
        if let Some(best) = best {
            return Ok(Some(best.clone()));
        }
        if ground.all_read() {
            return Ok(None);
        }
        ground.read_more().await?;
    }
}

/// Takes a free subnet; `None` when the pool looks used up but has been changing under us: look
/// again. Each lost race makes one more subnet known as taken, so that it ends.
async fn create<G: Ground>(
    ground: &mut G,
    config: &NetConfig,
    claim: &Claim,
) -> Result<Option<Lease>, Setback<G::Fault>> {
    let mut lost = 0_u32;
    loop {
        let pick = |n| fastrand::usize(..n);
        let key = match pool::choose(config, &ground.taken(), claim.previous.as_ref(), pick) {
            Ok(key) => key,
            Err(full) => {
                ground.none_created().await;
                // Whoever asks again is to see what has changed.
                ground.read_again();
                return match lost {
                    0 => Err(Setback::Final(AcquireError::Full(full.to_string()))),
                    _ => Ok(None),
                };
            }
        };
        if let Some(lease) = ground.create(key, &claim.attrs).await? {
            return Ok(Some(lease));
        }
        lost += 1;
    }
}

/// [`find_own`], again and again while the store does not answer.
pub(crate) async fn own_at_last<G: Ground>(ground: &mut G) -> Option<Lease>
where
    G::Fault: Display,
{
    let mut patience = Patience::default();
    loop {
        match find_own(ground).await {
            Ok(own) => {
                patience.over();
                return own;
            }
            Err(fault) => patience.wait(&fault.to_string(), true).await,
        }
    }
}

/// [`acquire`], again and again while the store does not answer.
pub(crate) async fn acquire_at_last<G: Ground>(
    ground: &mut G,
    config: &NetConfig,
    claim: &Claim,
) -> Result<Lease, AcquireError>
where
    G::Fault: Display,
{
    let mut patience = Patience::default();
    loop {
        match acquire(ground, config, claim).await {
            Ok(lease) => {
                patience.over();
                return Ok(lease);
            }
            Err(Setback::Final(error)) => return Err(error),
            Err(Setback::Store(fault)) => patience.wait(&fault.to_string(), true).await,
        }
    }
}

/// Notes that a lease beside our own one carries our public addresses. The daemon's roster refuses
/// such a lease and says why: one line is enough.
pub(crate) fn twin(said: &mut Complaints, own: SubnetKey, other: &Lease) {
    if said.is_new(("twin", other.key), other.attrs.public_ip) {
        debug!(
            "lease {} is published with our own public address {}, ours is {own}: two nodes with one \
             address, or a left-over that will expire",
            other.key,
            addresses(&other.attrs.public_ip)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Dual;

    #[test]
    fn a_node_is_known_by_its_public_address() {
        let theirs = |json: &str| LeaseAttrs::from_json(json.as_bytes()).unwrap();
        let ours = |v4: Option<&str>, v6: Option<&str>| Dual {
            v4: v4.map(|ip| ip.parse().unwrap()),
            v6: v6.map(|ip| ip.parse().unwrap()),
        };
        let v4 = theirs(r#"{"PublicIP":"10.0.0.1"}"#);
        let both = theirs(r#"{"PublicIP":"10.0.0.1","PublicIPv6":"fd00::1"}"#);
        let v6 = theirs(r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::1"}"#);
        assert!(same_node(&v4, &ours(Some("10.0.0.1"), None)));
        assert!(same_node(&v4, &ours(Some("10.0.0.1"), Some("fd00::1"))));
        assert!(!same_node(&v4, &ours(Some("10.0.0.2"), None)));
        assert!(
            !same_node(&both, &ours(Some("10.0.0.2"), Some("fd00::1"))),
            "IPv4 decides"
        );
        assert!(same_node(&both, &ours(None, Some("fd00::1"))));
        assert!(same_node(&v6, &ours(Some("10.0.0.1"), Some("fd00::1"))));
        assert!(!same_node(&v6, &ours(Some("10.0.0.1"), None)));
        assert!(!same_node(&v4, &ours(None, None)));
    }
}
