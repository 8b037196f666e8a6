//! Our own lease, defended: what follows when somebody else writes or deletes our key.
//!
//! | our key | and | what follows |
//! |---|---|---|
//! | was deleted | nothing else is odd | revoked: it was deleted on purpose |
//! | is gone | its time had run out while etcd was away | taken again, if it is free |
//! | is gone, or older | etcd's revision went back, or it is another cluster: data was lost or restored | written again |
//! | names another address | | revoked: it belongs to that node now |
//! | names our address | and we did not write it | see [`crate::tenure`] |
//!
//! The third line is for whoever restores a backup under thousands of nodes. If each of them took
//! its missing lease for a revoked one, all would stop at once, and in the meantime their peers
//! would drop the routes to them. So the leases are written again under the same keys, and what
//! is still missing is kept for [`crate::Timing::grace`] before it counts as gone. A lease deleted on
//! purpose in the same moment comes back; deleting it again is cheap.

use bytes::Bytes;
use model::LeaseAttrs;
use tokio::time::Instant;
use tracing::info;

use super::client::Failure;
use super::follow::Follower;
use super::holding::{Holding, write};
use super::proto::KeyValue;
use super::txn::{self, Outcome};
use crate::claim::{addresses, same_node};
use crate::tenure::{self, Reaction, Tenure};

impl Follower {
    /// Our key was written: by us, or by somebody else?
    pub(super) async fn own_changed(&mut self, kv: &KeyValue) -> Result<(), Failure> {
        let Some(own) = &mut self.holding else {
            return Ok(());
        };
        if kv.mod_revision <= own.mod_revision {
            return Ok(());
        }
        let late = own.unanswered.as_ref() == Some(&kv.value) && kv.lease == own.etcd_lease();
        own.mod_revision = kv.mod_revision;
        own.create_revision = kv.create_revision;
        if late {
            own.unanswered = None;
            own.attrs = LeaseAttrs::from_json(&kv.value).unwrap_or(own.attrs.clone());
            return Ok(());
        }
        let (key, ours) = (own.key, own.attrs.public_ip);
        let theirs = LeaseAttrs::from_json(&kv.value).ok();
        if let Some(theirs) = theirs.filter(|theirs| !same_node(theirs, &ours)) {
            self.give_up(tenure::taken_by(&key, &theirs.public_ip));
            return Ok(());
        }
        match own.tenure.foreign_write() {
            Reaction::Yield => self.give_up(tenure::outranked(&key, &ours)),
            Reaction::Endure => {}
            Reaction::Answer => {
                tenure::say_answer(&key, &ours);
                if kv.lease == 0 {
                    // Made a reservation under our feet, which is for its maker to say.
                    own.term = None;
                }
                self.publish().await?;
            }
        }
        Ok(())
    }

    /// Our key is gone. Deleted under us it is revoked. If its time had run out, or etcd lost it
    /// together with other things, it is taken again.
    pub(super) async fn own_deleted(&mut self) -> Result<(), Failure> {
        let Some(own) = &mut self.holding else {
            return Ok(());
        };
        let ran_out = own.term.is_some_and(|term| Instant::now() >= term.ends);
        if !ran_out && !self.regressed {
            let key = own.key;
            self.give_up(format!("{key} was deleted from etcd"));
            return Ok(());
        }
        let (key, attrs, reserved) = (own.key, own.attrs.clone(), own.term.is_none());
        let term = if reserved {
            None
        } else {
            Some(self.grant().await?)
        };
        let write = write(
            &self.keys,
            &key,
            &attrs,
            term.map_or(0, |term| term.etcd_lease),
        );
        match txn::create(&self.client, &write, Bytes::new(), None).await? {
            Outcome::Done(revision, _) => {
                info!("lease {key} had been lost in etcd and is published again");
                let tenure = Tenure::created();
                self.hold(Holding {
                    key,
                    attrs,
                    create_revision: revision,
                    mod_revision: revision,
                    term,
                    tenure,
                    unanswered: None,
                });
            }
            Outcome::Differs(now) => {
                self.revoke(term).await;
                let owner = now.and_then(|kv| LeaseAttrs::from_json(&kv.value).ok());
                let owner =
                    owner.map_or("somebody else".into(), |attrs| addresses(&attrs.public_ip));
                self.give_up(format!(
                    "{key} ran out while etcd was away, and belongs to {owner} now"
                ));
            }
        }
        Ok(())
    }

    fn give_up(&mut self, reason: String) {
        self.holding = None;
        self.feed.revoke(reason);
        self.feed.flush();
    }
}
