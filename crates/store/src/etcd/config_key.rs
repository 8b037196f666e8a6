//! The key of the network configuration: read at the start, followed from then on.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use model::NetConfig;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::NoConfig;
use super::client::Client;
use super::failure::Failure;
use super::keyspace::Keyspace;
use super::proto::{KeyValue, RangeRequest, RangeResponse, WatchCreate, path};
use crate::backoff::Backoff;
use crate::event_queue::EventQueue;
use crate::retry_log::RetryLog;

/// A watch is replaced after about so long: one whose connection died unnoticed shows nothing.
const REPLACED: Duration = Duration::from_secs(300);
/// The kind of a watch's event that says that a key was deleted.
const DELETE: i32 = 1;

/// Reads the key; returns it, if it exists, and etcd's revision.
pub(super) async fn read(
    client: &Client,
    keys: &Keyspace,
) -> Result<(Option<KeyValue>, i64), Failure> {
    let query = RangeRequest {
        key: keys.config().into(),
        ..RangeRequest::default()
    };
    let answer: RangeResponse = client.call(path::RANGE, query).await?;
    let revision = answer.header.map_or(0, |header| header.revision);
    Ok((answer.kvs.into_iter().next(), revision))
}

/// Returns the configuration that the key holds.
pub(super) fn parse(keys: &Keyspace, found: Option<&KeyValue>) -> Result<NetConfig, NoConfig> {
    let key = keys.config();
    let Some(kv) = found else {
        return Err(NoConfig::Missing(key));
    };
    let json = String::from_utf8_lossy(&kv.value);
    NetConfig::from_json(&json).map_err(|e| NoConfig::Bad(key, e.to_string()))
}

/// Reports every change of the key after the revision `since`, for ever. That etcd cannot be reached is
/// reported by whoever follows the leases.
pub(super) async fn follow(
    client: Arc<Client>,
    keys: Keyspace,
    since: i64,
    queue: Arc<EventQueue>,
) {
    let mut follower = Follower {
        client,
        keys,
        queue,
    };
    let mut backoff = Backoff::default();
    let mut refused = RetryLog::default();
    let mut position = (since > 0).then_some(since);
    loop {
        match follower.session(position.take(), &mut backoff).await {
            Ok(never) => match never {},
            Err(Failure::Refused(why)) => {
                let key = follower.keys.config();
                let text = format!("etcd key {key}: its changes are not followed: {why}");
                if refused.is_due(&text) {
                    warn!("{text}; retrying");
                }
            }
            Err(failure) => debug!("etcd: following the configuration: {}", failure.reason()),
        }
        backoff.wait().await;
    }
}

struct Follower {
    client: Arc<Client>,
    keys: Keyspace,
    queue: Arc<EventQueue>,
}

impl Follower {
    /// Watches the key from `position`, the revision at which it was read; reads it first where there is none.
    async fn session(
        &mut self,
        position: Option<i64>,
        backoff: &mut Backoff,
    ) -> Result<Infallible, Failure> {
        let mut position = position;
        loop {
            let since = match position.take() {
                Some(since) => since,
                None => {
                    let (found, revision) = read(&self.client, &self.keys).await?;
                    self.report(found.as_ref());
                    revision
                }
            };
            let create = WatchCreate {
                key: self.keys.config().into(),
                start_revision: since + 1,
                ..WatchCreate::default()
            };
            let mut watch = self.client.watch(create).await?;
            backoff.reset();
            let lasts = REPLACED.mul_f64(0.75 + fastrand::f64() / 2.0);
            let watching = async {
                loop {
                    let answer = self.client.next(&mut watch).await?;
                    if answer.compact_revision > 0 {
                        return Err::<Infallible, _>(Failure::Compacted);
                    }
                    if answer.canceled {
                        return Err(Failure::Refused(answer.cancel_reason));
                    }
                    if let Some(event) = answer.events.last() {
                        self.report(event.kv.as_ref().filter(|_| event.kind != DELETE));
                    }
                }
            };
            if let Ok(ended) = timeout(lasts, watching).await {
                ended?;
            }
        }
    }

    fn report(&self, found: Option<&KeyValue>) {
        let config = parse(&self.keys, found);
        self.queue.config(config.map_err(|e| e.to_string()));
    }
}
