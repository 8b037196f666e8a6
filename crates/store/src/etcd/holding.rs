//! Our own lease, kept: alive, and saying what we want said.

use std::time::Duration;

use bytes::Bytes;
use model::{Lease, LeaseAttrs, SubnetKey};
use tokio::time::Instant;
use tracing::warn;

use super::client::Failure;
use super::follow::Follower;
use super::keyspace::Keyspace;
use super::proto::{LeaseGrantRequest, LeaseId, LeaseResponse, Nothing, path};
use super::txn::{self, Outcome, Write};
use crate::tenure::Tenure;

/// When etcd answers a renewal with an error, it is tried again after about so long.
const RENEW_AGAIN: Duration = Duration::from_secs(20);

/// The lease that this daemon holds.
#[derive(Debug)]
pub(super) struct Holding {
    pub key: SubnetKey,
    pub attrs: LeaseAttrs,
    pub create_revision: i64,
    /// The revision of our last write: any other one is somebody else's.
    pub mod_revision: i64,
    /// Its time in etcd; `None` for a reservation, which does not expire.
    pub term: Option<Term>,
    pub tenure: Tenure,
    /// A write whose answer was lost: it may show up yet.
    pub unanswered: Option<Bytes>,
}

/// An etcd lease and its end, reckoned from before the request that set it: etcd's own is later.
#[derive(Clone, Copy, Debug)]
pub(super) struct Term {
    pub etcd_lease: i64,
    pub ends: Instant,
    pub renew: Instant,
}

impl Holding {
    pub(super) fn etcd_lease(&self) -> i64 {
        self.term.map_or(0, |term| term.etcd_lease)
    }

    pub(super) fn lease(&self) -> Lease {
        Lease {
            key: self.key,
            attrs: self.attrs.clone(),
            seniority: u64::try_from(self.create_revision).unwrap_or(0),
        }
    }
}

/// The write that publishes `attrs` under `key`.
pub(super) fn write(
    keys: &Keyspace,
    key: &SubnetKey,
    attrs: &LeaseAttrs,
    etcd_lease: i64,
) -> Write {
    Write {
        key: keys.subnet(key).into(),
        value: attrs.to_json().into(),
        lease: etcd_lease,
    }
}

impl Follower {
    /// A new etcd lease.
    pub(super) async fn grant(&mut self) -> Result<Term, Failure> {
        let asked = Instant::now();
        let ttl = i64::try_from(self.timing.ttl.as_secs())
            .unwrap_or(i64::MAX)
            .max(1);
        let answer: LeaseResponse = self
            .client
            .call(path::LEASE_GRANT, LeaseGrantRequest { ttl })
            .await?;
        Ok(self.term(answer.id, asked, answer.ttl))
    }

    /// Takes over the etcd lease of an existing key, so that a restart leaves none behind. One that is gone,
    /// or was granted for another time than ours, is not taken over.
    pub(super) async fn take_over(&mut self, etcd_lease: i64) -> Result<Option<Term>, Failure> {
        let asked = Instant::now();
        let ttl = match self.client.keep_alive(etcd_lease).await {
            Ok(ttl) => ttl,
            Err(Failure::NoLease) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let ours = i64::try_from(self.timing.ttl.as_secs()).unwrap_or(i64::MAX);
        let alike = (ttl - ours).abs() <= ours / 10;
        Ok(alike.then(|| self.term(etcd_lease, asked, ttl)))
    }

    fn term(&self, etcd_lease: i64, asked: Instant, ttl: i64) -> Term {
        let ttl = Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
        let margin = if self.timing.margin < ttl {
            self.timing.margin
        } else {
            ttl / 2
        };
        // A cluster that was started at once need not renew at once.
        let spread = (margin / 20)
            .min(Duration::from_secs(5))
            .mul_f64(fastrand::f64());
        Term {
            etcd_lease,
            ends: asked + ttl,
            renew: asked + ttl - margin + spread,
        }
    }

    /// Gives an etcd lease back that nothing hangs on. If that fails it ends by itself.
    pub(super) async fn revoke(&mut self, term: Option<Term>) {
        let Some(term) = term else { return };
        let _: Result<Nothing, _> = self
            .client
            .call(
                path::LEASE_REVOKE,
                LeaseId {
                    id: term.etcd_lease,
                },
            )
            .await;
    }

    /// From now on this is ours, and everybody is to know.
    pub(super) fn hold(&mut self, holding: Holding) -> Lease {
        let lease = holding.lease();
        self.catalog
            .saw(holding.key, holding.mod_revision, Some(lease.clone()));
        self.feed.flush();
        self.candidates.clear();
        self.holding = Some(holding);
        self.own_expected = false;
        lease
    }

    /// When there is something to do for our lease.
    pub(super) fn next_chore(&self) -> Option<Instant> {
        self.holding
            .as_ref()
            .and_then(|own| own.term)
            .map(|term| term.renew)
    }

    /// Publishes what is to be published, and renews what is due.
    pub(super) async fn do_chores(&mut self) -> Result<(), Failure> {
        self.wish.mark_unchanged();
        let Some(own) = &self.holding else {
            return Ok(());
        };
        if self.wished().is_some_and(|attrs| attrs != own.attrs) {
            self.publish().await?;
        }
        let Some(term) = self.holding.as_ref().and_then(|own| own.term) else {
            return Ok(());
        };
        if Instant::now() >= term.renew {
            self.renew(term).await?;
        }
        Ok(())
    }

    /// Whether the daemon asked to have another address published.
    pub(super) fn has_moved(&self) -> bool {
        let held = self.holding.as_ref().map(|own| own.attrs.public_ip);
        let wished = self.wished().map(|attrs| attrs.public_ip);
        held.is_some() && wished.is_some() && wished != held
    }

    /// What the daemon last asked to have published.
    fn wished(&self) -> Option<LeaseAttrs> {
        self.wish.borrow().clone()
    }

    async fn renew(&mut self, term: Term) -> Result<(), Failure> {
        let asked = Instant::now();
        let renewed = match self.client.keep_alive(term.etcd_lease).await {
            Ok(ttl) => self.term(term.etcd_lease, asked, ttl),
            Err(Failure::NoLease) => {
                // It ended without us. If the key is there still, it hangs on nothing we know.
                let fresh = self.grant().await?;
                self.set_term(fresh);
                return self.publish().await;
            }
            Err(Failure::Refused(reason)) => {
                if self.waiting.is_due(&reason) {
                    warn!("etcd does not renew our lease: {reason}; trying again");
                }
                Term {
                    renew: asked + RENEW_AGAIN.mul_f64(0.5 + fastrand::f64()),
                    ..term
                }
            }
            Err(failure) => return Err(failure),
        };
        self.set_term(renewed);
        Ok(())
    }

    fn set_term(&mut self, term: Term) {
        if let Some(own) = &mut self.holding {
            own.term = Some(term);
        }
    }

    /// Writes what we are to publish under our key, if nobody else has written there since we
    /// did. If somebody has, the watch is about to tell what.
    pub(super) async fn publish(&mut self) -> Result<(), Failure> {
        loop {
            let wished = self.wished();
            let Some(own) = &mut self.holding else {
                return Ok(());
            };
            let attrs = wished.unwrap_or_else(|| own.attrs.clone());
            let (key, revision) = (own.key, own.mod_revision);
            let write = write(&self.keys, &key, &attrs, own.etcd_lease());
            own.unanswered = Some(write.value.clone());
            match txn::update(&self.client, &write, revision).await {
                Ok(Outcome::Done(revision, _)) => {
                    own.mod_revision = revision;
                    own.unanswered = None;
                    own.attrs = attrs;
                    self.public_ip = own.attrs.public_ip;
                    self.catalog.saw(key, revision, Some(own.lease()));
                    self.feed.flush();
                    return Ok(());
                }
                Ok(Outcome::Differs(_)) => {
                    own.unanswered = None;
                    return Ok(());
                }
                Err(Failure::NoLease) => {
                    let fresh = self.grant().await?;
                    self.set_term(fresh);
                }
                Err(failure) => return Err(failure),
            }
        }
    }
}
