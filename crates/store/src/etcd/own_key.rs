//! What the own lease's requests mean in etcd: transactions on one key.

use std::sync::Arc;

use bytes::Bytes;
use model::{LeaseAttrs, NetConfig, SubnetKey};

use super::client::Client;
use super::etcd_lease::EtcdLease;
use super::failure::Failure;
use super::keyspace::Keyspace;
use super::proto::{KeyValue, RangeRequest, RangeResponse, path};
use super::txn::{self, Outcome, Write};
use crate::lease_value;
use crate::own_lease::{Answer, Cause, Entry, Look, Signature, Value};

/// A state of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Revision {
    pub create_revision: i64,
    pub mod_revision: i64,
    /// 0: it is a reservation.
    pub etcd_lease: i64,
}

/// The transactions, and the etcd lease that the own key hangs on.
pub(super) struct OwnKey {
    client: Arc<Client>,
    keys: Keyspace,
    config: NetConfig,
    pub life: EtcdLease,
    /// Keys created since this revision are not in the listing. 0: not known.
    pub listed_at: i64,
    /// What is missing may have been lost: the history was compacted away.
    pub doubtful: bool,
}

impl OwnKey {
    pub(super) fn new(
        client: Arc<Client>,
        keys: Keyspace,
        config: NetConfig,
        life: EtcdLease,
    ) -> OwnKey {
        OwnKey {
            client,
            keys,
            config,
            life,
            listed_at: 0,
            doubtful: false,
        }
    }

    /// A key as the own lease's machine sees it; `None` if it names no subnet.
    pub(super) fn entry(&self, kv: &KeyValue) -> Option<Entry<Revision>> {
        let key = self.keys.parse(&kv.key).ok()?;
        Some(Entry {
            key,
            attrs: LeaseAttrs::from_json(&kv.value).ok(),
            signature: lease_value::signature(&kv.value),
            life: self.life.life(kv.lease),
            seniority: u64::try_from(kv.create_revision).unwrap_or(0),
            fits: self.config.fits(&key),
            mark: Revision {
                create_revision: kv.create_revision,
                mod_revision: kv.mod_revision,
                etcd_lease: kv.lease,
            },
        })
    }

    pub(super) async fn write(
        &mut self,
        key: SubnetKey,
        value: &Value,
        over: Option<Revision>,
        reserved: bool,
    ) -> Result<Answer<Revision>, Failure> {
        let question = matches!(value.signature, Some(Signature::Claimant(_)));
        let old = over.map_or(0, |mark| mark.etcd_lease);
        loop {
            let lease = if reserved {
                0
            } else if question {
                // The key's life is its holder's business.
                old
            } else {
                self.life.ensure(old).await?
            };
            let write = Write {
                key: self.keys.subnet(&key).into(),
                value: lease_value::render(value).into(),
                lease,
            };
            let outcome = match over {
                Some(mark) => txn::update(&self.client, &write, mark.mod_revision).await,
                None => self.create(&key, &write).await,
            };
            return match outcome {
                Ok(Outcome::Done(revision, created)) => {
                    let rival = self.rival(&key, &created);
                    let kv = KeyValue {
                        key: write.key,
                        create_revision: over.map_or(revision, |mark| mark.create_revision),
                        mod_revision: revision,
                        value: write.value,
                        lease,
                    };
                    self.written(&kv, rival)
                }
                // An attempt of a moment ago at another endpoint, whose answer was lost.
                Ok(Outcome::Differs(Some(kv)))
                    if kv.key == write.key && kv.value == write.value && kv.lease == lease =>
                {
                    let rival = match over {
                        Some(_) => None,
                        None => self.rival_of(&key, &kv).await?,
                    };
                    self.written(&kv, rival)
                }
                Ok(Outcome::Differs(kv)) => Ok(Answer::Differs(kv.and_then(|kv| self.entry(&kv)))),
                Err(Failure::NoLease) if !question && !reserved => {
                    self.life.forget();
                    continue;
                }
                // The lease has just ended, and with it the key.
                Err(Failure::NoLease) => Ok(Answer::Differs(None)),
                Err(failure) => Err(failure),
            };
        }
    }

    async fn create(&self, key: &SubnetKey, write: &Write) -> Result<Outcome, Failure> {
        // A key of one family can prevent one of both: "10.1.2.0-24" and whatever
        // follows it after '&' all claim the same IPv4 subnet.
        let end = match key.nets().v4 {
            Some(v4) => format!("{}'", self.keys.subnet_v4(v4)).into(),
            None => Bytes::new(),
        };
        // Their IPv6 subnets cannot be compared so: ask what else was created since the listing.
        let ask = self.asks_for_rivals(key).then(|| self.created_since());
        txn::create(&self.client, write, end, ask).await
    }

    fn asks_for_rivals(&self, key: &SubnetKey) -> bool {
        key.nets().v6.is_some() && self.listed_at > 0
    }

    fn written(
        &self,
        kv: &KeyValue,
        rival: Option<SubnetKey>,
    ) -> Result<Answer<Revision>, Failure> {
        let entry = self.entry(kv).ok_or_else(|| {
            let key = String::from_utf8_lossy(&kv.key);
            Failure::Refused(format!("key {key} names no subnet"))
        })?;
        Ok(Answer::Written { entry, rival })
    }

    pub(super) async fn delete(
        &self,
        key: &SubnetKey,
        over: Revision,
    ) -> Result<Answer<Revision>, Failure> {
        let name = Bytes::from(self.keys.subnet(key));
        Ok(
            match txn::delete(&self.client, name, over.mod_revision).await? {
                Outcome::Done(..) => Answer::Deleted,
                Outcome::Differs(kv) => Answer::Differs(kv.and_then(|kv| self.entry(&kv))),
            },
        )
    }

    pub(super) async fn look(&mut self, key: &SubnetKey) -> Result<Answer<Revision>, Failure> {
        let query = RangeRequest {
            key: self.keys.subnet(key).into(),
            ..RangeRequest::default()
        };
        let answer: RangeResponse = self.client.call(path::RANGE, query).await?;
        let kv = answer.kvs.into_iter().next();
        let Some((entry, kv)) = kv.and_then(|kv| Some((self.entry(&kv)?, kv))) else {
            let look = Look::Gone(self.why_missing().await?);
            return Ok(Answer::Looked { look, rival: None });
        };
        let rival = self.rival_of(key, &kv).await?;
        let look = Look::There(entry);
        Ok(Answer::Looked { look, rival })
    }

    /// Returns why the own key does not exist, when no event showed its deletion: a deletion leaves the
    /// etcd lease, while a store that lost the key does not know the lease either.
    pub(super) async fn why_missing(&mut self) -> Result<Cause, Failure> {
        let lost = if self.life.exists() {
            self.life.renew().await?.is_none()
        } else {
            self.doubtful
        };
        Ok(if lost { Cause::Lost } else { Cause::Deleted })
    }

    async fn rival_of(
        &self,
        key: &SubnetKey,
        own: &KeyValue,
    ) -> Result<Option<SubnetKey>, Failure> {
        if !self.asks_for_rivals(key) {
            return Ok(None);
        }
        let answer: RangeResponse = self.client.call(path::RANGE, self.created_since()).await?;
        let older: Vec<KeyValue> = answer
            .kvs
            .into_iter()
            .filter(|kv| kv.create_revision < own.create_revision)
            .collect();
        Ok(self.rival(key, &older))
    }

    fn rival(&self, key: &SubnetKey, created: &[KeyValue]) -> Option<SubnetKey> {
        created
            .iter()
            .filter_map(|kv| self.keys.parse(&kv.key).ok())
            .find(|other| other != key && other.overlaps(key))
    }

    fn created_since(&self) -> RangeRequest {
        let (key, range_end) = self.keys.subnets();
        RangeRequest {
            key,
            range_end,
            keys_only: true,
            min_create_revision: self.listed_at.saturating_add(1),
            ..RangeRequest::default()
        }
    }
}
