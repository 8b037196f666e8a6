//! A small etcd client: puts thousands of keys in few calls, and one key with its time taken.
//! Apart from the daemon's own, and over gRPC as the daemon: a gateway or `etcdctl` would be
//! measured along with etcd.

use std::time::{Duration, Instant};

use anyhow::Context;
use lab::Namespace;
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::fleet::Peer;

/// What etcd takes in one transaction unless told otherwise.
const MAX_OPS: usize = 128;

/// What every peer's key lives for, in seconds: long enough for a benchmark.
const TTL: i64 = 24 * 3600;

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
    #[prost(int64, tag = "3")]
    lease: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DeleteRangeRequest {
    #[prost(string, tag = "1")]
    key: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TxnRequest {
    #[prost(message, repeated, tag = "2")]
    success: Vec<RequestOp>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RequestOp {
    #[prost(oneof = "Request", tags = "2, 3")]
    request: Option<Request>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Request {
    #[prost(message, tag = "2")]
    Put(PutRequest),
    #[prost(message, tag = "3")]
    Delete(DeleteRangeRequest),
}

#[derive(Clone, PartialEq, prost::Message)]
struct LeaseGrantRequest {
    #[prost(int64, tag = "1")]
    ttl: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LeaseGrantResponse {
    #[prost(int64, tag = "2")]
    id: i64,
}

/// An answer of which nothing is read.
#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

/// A connection to an etcd.
pub struct Etcd {
    runtime: Runtime,
    grpc: Grpc<Channel>,
    prefix: String,
    /// The etcd lease on which all peers' keys hang, as they would on their owners'.
    lease: i64,
}

impl Etcd {
    /// Connects from `place` to `endpoint`.
    ///
    /// # Errors
    /// It does not answer.
    pub fn connect(place: &Namespace, endpoint: &str, prefix: &str) -> anyhow::Result<Etcd> {
        let endpoint = Endpoint::from_shared(endpoint.to_owned())?.tcp_nodelay(true);
        let connect = || -> anyhow::Result<(Runtime, Channel)> {
            // One thread, the calling one: it is in the namespace while it connects.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let channel = runtime.block_on(endpoint.connect())?;
            Ok((runtime, channel))
        };
        let (runtime, channel) = place.run(connect)?.context("connect to etcd")?;
        let mut etcd = Etcd {
            runtime,
            grpc: Grpc::new(channel),
            prefix: prefix.into(),
            lease: 0,
        };
        let granted: LeaseGrantResponse = etcd.call(
            "/etcdserverpb.Lease/LeaseGrant",
            LeaseGrantRequest { ttl: TTL },
        )?;
        etcd.lease = granted.id;
        Ok(etcd)
    }

    /// Puts the leases of `peers`.
    ///
    /// # Errors
    /// etcd refuses.
    pub fn put_all(&mut self, peers: impl Iterator<Item = Peer>) -> anyhow::Result<()> {
        let puts = peers
            .map(|peer| Request::Put(self.put_request(peer)))
            .collect();
        self.txns(puts)
    }

    /// Deletes keys below `subnets/`.
    ///
    /// # Errors
    /// etcd refuses.
    pub fn delete_all(&mut self, keys: impl Iterator<Item = String>) -> anyhow::Result<()> {
        let path = |key| format!("{}/subnets/{key}", self.prefix);
        let deletes = keys
            .map(|key| Request::Delete(DeleteRangeRequest { key: path(key) }))
            .collect();
        self.txns(deletes)
    }

    /// Puts one lease; returns when it was sent and how long the answer took.
    ///
    /// # Errors
    /// etcd refuses.
    pub fn put(&mut self, peer: Peer) -> anyhow::Result<(Instant, Duration)> {
        let request = self.put_request(peer);
        let sent = Instant::now();
        let _: Nothing = self.call("/etcdserverpb.KV/Put", request)?;
        Ok((sent, sent.elapsed()))
    }

    fn put_request(&self, peer: Peer) -> PutRequest {
        let key = format!("{}/subnets/{}", self.prefix, peer.key());
        PutRequest {
            key,
            value: peer.value(),
            lease: self.lease,
        }
    }

    fn txns(&mut self, requests: Vec<Request>) -> anyhow::Result<()> {
        for some in requests.chunks(MAX_OPS) {
            let success = some
                .iter()
                .map(|r| RequestOp {
                    request: Some(r.clone()),
                })
                .collect();
            let _: Nothing = self.call("/etcdserverpb.KV/Txn", TxnRequest { success })?;
        }
        Ok(())
    }

    fn call<A, B>(&mut self, path: &'static str, request: A) -> anyhow::Result<B>
    where
        A: prost::Message + Send + Sync + 'static,
        B: prost::Message + Default + Send + Sync + 'static,
    {
        let grpc = &mut self.grpc;
        let answer = self.runtime.block_on(async {
            grpc.ready().await.context("etcd")?;
            let codec = ProstCodec::<A, B>::default();
            let answer = grpc
                .unary(
                    tonic::Request::new(request),
                    PathAndQuery::from_static(path),
                    codec,
                )
                .await;
            answer.with_context(|| format!("etcd: {path}"))
        })?;
        Ok(answer.into_inner())
    }
}
