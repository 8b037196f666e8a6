//! What taking a subnet means in etcd: transactions, and an etcd lease to hang the key on.

use bytes::Bytes;
use model::{Lease, LeaseAttrs, SubnetKey};

use super::client::Failure;
use super::follow::Follower;
use super::holding::{Holding, Term, write};
use super::proto::RangeRequest;
use super::txn::{self, Outcome};
use crate::claim::{Candidate, Ground};
use crate::tenure::Tenure;

/// A key of ours as it was seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub create_revision: i64,
    pub mod_revision: i64,
    /// 0: none, it is a reservation.
    pub etcd_lease: i64,
}

impl Ground for Follower {
    type Fault = Failure;
    type Mark = Mark;

    fn candidates(&mut self) -> &mut Vec<Candidate<Mark>> {
        &mut self.candidates
    }

    fn taken(&self) -> Vec<SubnetKey> {
        self.catalog.taken().collect()
    }

    fn all_read(&self) -> bool {
        self.listing.is_none() && self.position.is_some()
    }

    fn read_again(&mut self) {
        self.list_anew();
    }

    async fn read_more(&mut self) -> Result<(), Failure> {
        if self.listing.is_none() {
            self.list_anew();
        }
        self.read_some().await
    }

    async fn adopt(
        &mut self,
        old: &Candidate<Mark>,
        attrs: &LeaseAttrs,
    ) -> Result<Option<Lease>, Failure> {
        let (key, mark) = (old.lease.key, old.mark);
        let mut term = match mark.etcd_lease {
            0 => None,
            id => match self.take_over(id).await? {
                Some(term) => Some(term),
                None => Some(self.granted().await?),
            },
        };
        loop {
            let write = write(
                &self.keys,
                &key,
                attrs,
                term.map_or(0, |term| term.etcd_lease),
            );
            match txn::update(&self.client, &write, mark.mod_revision).await {
                Ok(Outcome::Done(revision, _)) => {
                    self.granted = None;
                    return Ok(Some(self.hold(Holding {
                        key,
                        attrs: attrs.clone(),
                        create_revision: mark.create_revision,
                        mod_revision: revision,
                        term,
                        tenure: Tenure::adopted(),
                        unanswered: None,
                    })));
                }
                Ok(Outcome::Differs(_)) => return Ok(None),
                Err(Failure::NoLease) => {
                    self.granted = None;
                    term = Some(self.granted().await?);
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn discard(&mut self, old: &Candidate<Mark>) -> Result<(), Failure> {
        let key = Bytes::from(self.keys.subnet(&old.lease.key));
        if let Outcome::Done(..) = txn::delete(&self.client, key, old.mark.mod_revision).await? {
            self.catalog.gone(&old.lease.key);
        }
        Ok(())
    }

    async fn create(
        &mut self,
        key: SubnetKey,
        attrs: &LeaseAttrs,
    ) -> Result<Option<Lease>, Failure> {
        loop {
            let term = self.granted().await?;
            match self.create_under(term, key, attrs).await {
                Err(Failure::NoLease) => self.granted = None,
                result => return result,
            }
        }
    }

    async fn none_created(&mut self) {
        let term = self.granted.take();
        self.revoke(term).await;
    }
}

impl Follower {
    /// The etcd lease for our key: granted once, and kept while races are lost.
    async fn granted(&mut self) -> Result<Term, Failure> {
        match self.granted {
            Some(term) => Ok(term),
            None => {
                let fresh = self.grant().await?;
                Ok(*self.granted.insert(fresh))
            }
        }
    }

    async fn create_under(
        &mut self,
        term: Term,
        key: SubnetKey,
        attrs: &LeaseAttrs,
    ) -> Result<Option<Lease>, Failure> {
        let write = write(&self.keys, &key, attrs, term.etcd_lease);
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
            Outcome::Differs(_) => {
                // Taken; its lease is still to be read, so this is no revision that it has.
                self.catalog.saw(key, 0, None);
                return Ok(None);
            }
        };
        let others = created
            .iter()
            .filter_map(|kv| self.keys.parse(&kv.key).ok());
        let before = others
            .filter(|other| *other != key)
            .find(|other| other.overlaps(&key));
        if let Some(other) = before {
            txn::delete(&self.client, write.key, revision).await?;
            self.catalog.saw(other, 0, None);
            return Ok(None);
        }
        self.granted = None;
        Ok(Some(self.hold(Holding {
            key,
            attrs: attrs.clone(),
            create_revision: revision,
            mod_revision: revision,
            term: Some(term),
            tenure: Tenure::created(),
            unanswered: None,
        })))
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
