//! The transactions that change a subnet's key: each of them only if the key is as we know it.

use bytes::Bytes;

use super::client::Client;
use super::failure::Failure;
use super::proto::{
    Compare, CompareTo, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest, Request, RequestOp,
    Response, Target, TxnRequest, TxnResponse, path,
};

/// What a transaction found.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It was carried out, at this revision of the store. The keys are the answer to the
    /// transaction's own question, if it asked one.
    Done(i64, Vec<KeyValue>),
    /// The key was not as expected: this is how it is; `None` if it is not there.
    Differs(Option<KeyValue>),
}

/// A value to write, and the etcd lease to hang it on (0: none).
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub key: Bytes,
    pub value: Bytes,
    pub lease: i64,
}

impl Write {
    fn op(&self) -> RequestOp {
        op(Request::Put(PutRequest {
            key: self.key.clone(),
            value: self.value.clone(),
            lease: self.lease,
        }))
    }
}

/// Writes, if the key was last changed at `revision`.
pub(super) async fn update(
    client: &Client,
    write: &Write,
    revision: i64,
) -> Result<Outcome, Failure> {
    let compare = vec![unchanged(write.key.clone(), revision)];
    run(client, &write.key, compare, vec![write.op()]).await
}

/// Writes, if no key from the written one up to `end` exists. `ask`, when given, is answered in
/// the same transaction.
pub(super) async fn create(
    client: &Client,
    write: &Write,
    end: Bytes,
    ask: Option<RangeRequest>,
) -> Result<Outcome, Failure> {
    let absent = Compare {
        target: Target::Create.into(),
        key: write.key.clone(),
        to: Some(CompareTo::CreateRevision(0)),
        range_end: end.clone(),
    };
    let mut success = vec![write.op()];
    success.extend(ask.map(|range| op(Request::Range(range))));
    let found = RangeRequest {
        key: write.key.clone(),
        range_end: end,
        limit: 1,
        ..RangeRequest::default()
    };
    execute(
        client,
        TxnRequest {
            compare: vec![absent],
            success,
            failure: vec![op(Request::Range(found))],
        },
    )
    .await
}

/// Deletes, if the key was last changed at `revision`.
pub(super) async fn delete(client: &Client, key: Bytes, revision: i64) -> Result<Outcome, Failure> {
    let compare = vec![unchanged(key.clone(), revision)];
    run(
        client,
        &key,
        compare,
        vec![op(Request::Delete(DeleteRangeRequest { key: key.clone() }))],
    )
    .await
}

async fn run(
    client: &Client,
    key: &Bytes,
    compare: Vec<Compare>,
    success: Vec<RequestOp>,
) -> Result<Outcome, Failure> {
    let found = RangeRequest {
        key: key.clone(),
        ..RangeRequest::default()
    };
    execute(
        client,
        TxnRequest {
            compare,
            success,
            failure: vec![op(Request::Range(found))],
        },
    )
    .await
}

async fn execute(client: &Client, txn: TxnRequest) -> Result<Outcome, Failure> {
    let answer: TxnResponse = client.call(path::TXN, txn).await?;
    let ranges = answer
        .responses
        .into_iter()
        .filter_map(|op| match op.response {
            Some(Response::Range(range)) => Some(range.kvs),
            _ => None,
        });
    let mut kvs: Vec<KeyValue> = ranges.flatten().collect();
    if answer.succeeded {
        return Ok(Outcome::Done(
            answer.header.unwrap_or_default().revision,
            kvs,
        ));
    }
    Ok(Outcome::Differs(
        (!kvs.is_empty()).then(|| kvs.swap_remove(0)),
    ))
}

fn unchanged(key: Bytes, revision: i64) -> Compare {
    Compare {
        target: Target::Mod.into(),
        key,
        to: Some(CompareTo::ModRevision(revision)),
        range_end: Bytes::new(),
    }
}

fn op(request: Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}
