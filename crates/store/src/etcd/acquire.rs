//! Taking a subnet (contract §4).

use bytes::Bytes;
use model::{Lease, NetConfig, SubnetKey};
use tracing::{info, warn};

use super::client::Failure;
use super::follow::Follower;
use super::holding::{Holding, Term, write};
use super::proto::RangeRequest;
use super::txn::{self, Outcome};
use crate::claim::choose;
use crate::tenure::Tenure;
use crate::{AcquireError, Claim};

/// Why this try to take a subnet ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Setback {
    /// Waiting mends it.
    #[error(transparent)]
    Store(#[from] Failure),
    /// Waiting does not.
    #[error(transparent)]
    Final(#[from] AcquireError),
}

impl Follower {
    /// Takes a subnet. May be called again after a [`Setback::Store`].
    pub(super) async fn acquire(
        &mut self,
        config: &NetConfig,
        claim: &Claim,
    ) -> Result<Lease, Setback> {
        if self.listing.is_none() && self.position.is_none() {
            self.list_anew();
        }
        loop {
            if let Some(old) = self.best_candidate(config, claim).await? {
                self.candidates.retain(|other| other.key != old.key);
                let (key, reserved) = (old.key, old.etcd_lease == 0);
                if let Some(lease) = self.adopt(old, &claim.attrs).await? {
                    let kind = if reserved { "reservation" } else { "lease" };
                    info!("lease {key}: ours from before ({kind}), taken up again");
                    return Ok(lease);
                }
                self.list_anew();
                continue;
            }
            self.drop_candidates().await?;
            if let Some(lease) = self.create(config, claim).await? {
                info!("lease {}: new", lease.key);
                return Ok(lease);
            }
            self.list_anew();
        }
    }

    /// The lease to take up again, if we have one that fits: the previous one, else the oldest.
    /// Reads only as many pages as it takes to find one.
    async fn best_candidate(
        &mut self,
        config: &NetConfig,
        claim: &Claim,
    ) -> Result<Option<super::listing::Candidate>, Failure> {
        loop {
            let fitting = self.candidates.iter().filter(|old| config.fits(&old.key));
            let best =
                fitting.min_by_key(|old| (Some(old.key) != claim.previous, old.create_revision));
            if best.is_some() || self.listing.is_none() {
                return Ok(best.cloned());
            }
            self.read_page().await?;
        }
    }

    /// Deletes leases of ours that the configuration no longer allows.
    async fn drop_candidates(&mut self) -> Result<(), Failure> {
        while let Some(old) = self.candidates.last().cloned() {
            warn!(
                "lease {}: ours from before, but outside what the configuration allows: deleted",
                old.key
            );
            let key = Bytes::from(self.keys.subnet(&old.key));
            if let Outcome::Done(..) = txn::delete(&self.client, key, old.mod_revision).await? {
                self.catalog.gone(&old.key);
            }
            self.candidates.pop();
        }
        Ok(())
    }

    /// Takes a free subnet; `None` when the pool looks used up, but has been changing under us: look
    /// again. Losing a race costs one request, and there are at most as many as there are subnets.
    async fn create(
        &mut self,
        config: &NetConfig,
        claim: &Claim,
    ) -> Result<Option<Lease>, Setback> {
        let mut term: Option<Term> = None;
        let mut lost = 0_u32;
        loop {
            let key = match choose(config, self.catalog.taken(), claim) {
                Ok(key) => key,
                Err(full) => {
                    self.revoke(term).await;
                    return if lost > 0 { Ok(None) } else { Err(full.into()) };
                }
            };
            let granted = match term {
                Some(term) => term,
                None => *term.insert(self.grant().await?),
            };
            match self.try_key(key, claim, granted).await {
                Ok(true) => {}
                Ok(false) => {
                    lost += 1;
                    continue;
                }
                Err(Failure::NoLease) => {
                    term = None;
                    continue;
                }
                Err(failure) => return Err(failure.into()),
            }
            return Ok(self.holding.as_ref().map(Holding::lease));
        }
    }

    /// Tries to create `key`. One that somebody else has is noted as taken.
    async fn try_key(
        &mut self,
        key: SubnetKey,
        claim: &Claim,
        term: Term,
    ) -> Result<bool, Failure> {
        let write = write(&self.keys, &key, &claim.attrs, term.etcd_lease);
        // A key of one family can stand in the way of one of both: "10.1.2.0-24" and whatever
        // follows it after '&' all claim the same IPv4 subnet.
        let end = match key.nets().v4 {
            Some(v4) => format!("{}'", self.keys.subnet_v4(v4)).into(),
            None => Bytes::new(),
        };
        // Their IPv6 subnets cannot be compared so: ask what else was created since the listing.
        let since = self.position.map_or(0, |at| at.revision) + 1;
        let ask = key.nets().v6.is_some().then(|| self.created_since(since));
        let (revision, created) = match txn::create(&self.client, &write, end, ask).await? {
            Outcome::Done(revision, created) => (revision, created),
            Outcome::Differs(Some(kv))
                if kv.value == write.value && kv.lease == term.etcd_lease =>
            {
                // Our own write of a moment ago, whose answer was lost.
                (kv.mod_revision, Vec::new())
            }
            Outcome::Differs(now) => {
                self.catalog
                    .saw(key, now.map_or(0, |kv| kv.mod_revision), None);
                return Ok(false);
            }
        };
        let others = created
            .iter()
            .filter_map(|kv| self.keys.parse(&kv.key).ok());
        if let Some(other) = others
            .filter(|other| *other != key)
            .find(|other| other.overlaps(&key))
        {
            // It was there first.
            txn::delete(&self.client, write.key, revision).await?;
            self.catalog.saw(other, 0, None);
            return Ok(false);
        }
        self.hold(Holding {
            key,
            attrs: claim.attrs.clone(),
            create_revision: revision,
            mod_revision: revision,
            term: Some(term),
            tenure: Tenure::created(),
            unanswered: None,
        });
        Ok(true)
    }

    fn created_since(&self, revision: i64) -> RangeRequest {
        let (key, range_end) = self.keys.subnets();
        RangeRequest {
            key,
            range_end,
            keys_only: true,
            min_create_revision: revision,
            ..RangeRequest::default()
        }
    }
}
