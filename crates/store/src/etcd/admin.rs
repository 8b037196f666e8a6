//! The administrator's access to etcd.

use model::LeaseAttrs;

use super::EtcdStore;
use super::config_key;
use super::failure::Failure;
use super::listing::Listing;
use super::txn::{self, Outcome, Write};
use crate::admin::{AdminError, Administer, ListedLease, StoredConfig};

impl From<Failure> for AdminError {
    fn from(failure: Failure) -> AdminError {
        AdminError(match failure {
            Failure::Unreachable(why) => format!("etcd does not answer: {why}"),
            other => other.to_string(),
        })
    }
}

impl EtcdStore {
    /// One pass over all leases.
    async fn list(&self) -> Result<Vec<ListedLease>, Failure> {
        let (start, end) = self.keys.subnets();
        let mut listing = Listing::new(start);
        let mut leases = Vec::new();
        while let Some(kv) = listing.next(&self.client, &end).await? {
            if let Ok(key) = self.keys.parse(&kv.key) {
                leases.push(ListedLease {
                    key,
                    attrs: LeaseAttrs::from_json(&kv.value).map_err(|e| e.to_string()),
                    reserved: kv.lease == 0,
                });
            }
        }
        leases.sort_by_key(|lease| lease.key);
        Ok(leases)
    }
}

impl Administer for EtcdStore {
    fn config_place(&self) -> String {
        format!("etcd key {}", self.keys.config())
    }

    async fn stored_config(&self) -> Result<Option<StoredConfig>, AdminError> {
        let (found, _) = config_key::read(&self.client, &self.keys).await?;
        Ok(found.map(|kv| StoredConfig {
            json: kv.value.to_vec(),
            revision: kv.mod_revision,
        }))
    }

    async fn swap_config(
        &self,
        json: &[u8],
        was: Option<&StoredConfig>,
    ) -> Result<bool, AdminError> {
        let write = Write {
            key: self.keys.config().into(),
            value: json.to_vec().into(),
            lease: 0,
        };
        let outcome = match was {
            Some(was) => txn::update(&self.client, &write, was.revision).await?,
            None => txn::create(&self.client, &write, bytes::Bytes::new(), None).await?,
        };
        Ok(match outcome {
            Outcome::Done(..) => true,
            // A member may have written it and died before it could say so.
            Outcome::Differs(found) => found.is_some_and(|kv| kv.value == json),
        })
    }

    async fn leases(&self) -> Result<Vec<ListedLease>, AdminError> {
        loop {
            match self.list().await {
                // The pages would not fit together.
                Err(Failure::Compacted) => {}
                listed => return Ok(listed?),
            }
        }
    }
}
