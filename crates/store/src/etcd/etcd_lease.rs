//! The etcd lease that the own key hangs on: granted, taken over, kept alive, given back.

use std::sync::Arc;
use std::time::Duration;

use super::client::Client;
use super::failure::{Failure, LEASE_EXISTS};
use super::proto::{LeaseGrantRequest, LeaseId, LeaseResponse, Nothing, path};
use crate::Timing;
use crate::clock::now;
use crate::own_lease::{Life, Time};

/// A server may answer any number; nobody asks for more than this.
const LONGEST_TTL: Duration = Duration::from_secs(10 * 365 * 86_400);

/// One etcd lease at a time.
pub(super) struct EtcdLease {
    client: Arc<Client>,
    timing: Timing,
    current: Option<Term>,
    /// The identity under which a lease is being granted: kept while the answer is missing, so that
    /// a second attempt grants no second lease.
    granting: Option<i64>,
}

/// An etcd lease and its end, counted from before the request that set it: etcd's own is later.
#[derive(Clone, Copy, Debug)]
struct Term {
    id: i64,
    ends: Time,
    renew: Time,
}

impl EtcdLease {
    pub(super) fn new(client: Arc<Client>, timing: Timing) -> EtcdLease {
        EtcdLease {
            client,
            timing,
            current: None,
            granting: None,
        }
    }

    /// How long a key lives that hangs on etcd lease `id`.
    pub(super) fn life(&self, id: i64) -> Life {
        match self.current {
            _ if id == 0 => Life::Reserved,
            Some(Term {
                id: ours,
                ends,
                renew,
            }) if id == ours => Life::Until { ends, renew },
            _ => Life::Foreign,
        }
    }

    /// Returns an etcd lease to hang the key on: the one that we have, `old` if it lives and was granted for
    /// the same time as ours would be, or a new one.
    pub(super) async fn ensure(&mut self, old: i64) -> Result<i64, Failure> {
        if let Some(term) = self.current {
            return Ok(term.id);
        }
        if old != 0
            && let Some(id) = self.take_over(old).await?
        {
            return Ok(id);
        }
        self.grant().await
    }

    async fn grant(&mut self) -> Result<i64, Failure> {
        let id = *self
            .granting
            .get_or_insert_with(|| i64::from_ne_bytes(fastrand::u64(1..1 << 62).to_ne_bytes()));
        let asked = now();
        let ttl = self.ttl().max(1);
        let answer = self
            .client
            .call(path::LEASE_GRANT, LeaseGrantRequest { ttl, id })
            .await;
        let ttl = match answer {
            Ok(LeaseResponse { ttl, .. }) => ttl,
            // Granted by an attempt whose answer was lost, perhaps long ago.
            Err(Failure::Refused(why)) if why.contains(LEASE_EXISTS) => {
                self.client.keep_alive(id).await?
            }
            Err(failure) => return Err(failure),
        };
        self.granting = None;
        self.current = Some(self.term(id, asked, ttl));
        Ok(id)
    }

    async fn take_over(&mut self, id: i64) -> Result<Option<i64>, Failure> {
        let asked = now();
        let ttl = match self.client.keep_alive(id).await {
            Ok(ttl) => ttl,
            Err(Failure::NoLease) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        if ttl.abs_diff(self.ttl()) > self.ttl().unsigned_abs() / 10 {
            return Ok(None);
        }
        self.current = Some(self.term(id, asked, ttl));
        Ok(Some(id))
    }

    /// Keeps it alive; `None`: it does not exist any more.
    pub(super) async fn renew(&mut self) -> Result<Option<Life>, Failure> {
        let Some(Term { id, .. }) = self.current else {
            return Ok(None);
        };
        let asked = now();
        match self.client.keep_alive(id).await {
            Ok(ttl) => {
                self.current = Some(self.term(id, asked, ttl));
                Ok(Some(self.life(id)))
            }
            Err(Failure::NoLease) => {
                self.current = None;
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    /// The store does not know it.
    pub(super) fn forget(&mut self) {
        self.current = None;
    }

    pub(super) fn exists(&self) -> bool {
        self.current.is_some()
    }

    /// Gives it back, as nothing hangs on it. If that fails it ends by itself.
    pub(super) async fn release(&mut self) {
        if let Some(Term { id, .. }) = self.current.take() {
            let _: Result<Nothing, _> = self.client.call(path::LEASE_REVOKE, LeaseId { id }).await;
        }
    }

    fn ttl(&self) -> i64 {
        i64::try_from(self.timing.ttl.as_secs()).unwrap_or(i64::MAX)
    }

    fn term(&self, id: i64, asked: Time, ttl: i64) -> Term {
        let ttl = Duration::from_secs(u64::try_from(ttl).unwrap_or(0)).min(LONGEST_TTL);
        let margin = self.timing.margin_of(ttl);
        // A cluster that was started at once need not renew at once.
        let spread = (margin / 20)
            .min(Duration::from_secs(5))
            .mul_f64(fastrand::f64());
        Term {
            id,
            ends: asked + ttl,
            renew: asked + ttl - margin + spread,
        }
    }
}
