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

/// What a peer's key lives for, in seconds: long enough for a benchmark.
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
        Ok(Etcd {
            runtime,
            grpc: Grpc::new(channel),
            prefix: prefix.into(),
        })
    }

    /// Puts the leases of `peers`.
    ///
    /// # Errors
    /// etcd refuses.
    pub fn put_all(&mut self, peers: impl Iterator<Item = Peer>) -> anyhow::Result<()> {
        let peers: Vec<Peer> = peers.collect();
        for some in peers.chunks(MAX_OPS) {
            // Not one lease for all: for each put etcd looks at every key that shares its lease.
            let lease = self.grant()?;
            let puts: Vec<PutRequest> = some.iter().map(|p| self.put_request(*p, lease)).collect();
            self.txn(puts.into_iter().map(Request::Put))?;
        }
        Ok(())
    }

    /// Deletes keys below `subnets/`.
    ///
    /// # Errors
    /// etcd refuses.
    pub fn delete_all(&mut self, keys: impl Iterator<Item = String>) -> anyhow::Result<()> {
        let path = |key| format!("{}/subnets/{key}", self.prefix);
        let paths: Vec<String> = keys.map(path).collect();
        for some in paths.chunks(MAX_OPS) {
            let deletes = some
                .iter()
                .map(|key| DeleteRangeRequest { key: key.clone() });
            self.txn(deletes.map(Request::Delete))?;
        }
        Ok(())
    }

    /// Puts one lease, on an etcd lease of its own; returns when it was sent and how long the
    /// answer took.
    ///
    /// # Errors
    /// etcd refuses.
    pub fn put(&mut self, peer: Peer) -> anyhow::Result<(Instant, Duration)> {
        let lease = self.grant()?;
        let request = self.put_request(peer, lease);
        let sent = Instant::now();
        let _: Nothing = self.call("/etcdserverpb.KV/Put", request)?;
        Ok((sent, sent.elapsed()))
    }

    fn grant(&mut self) -> anyhow::Result<i64> {
        let request = LeaseGrantRequest { ttl: TTL };
        let granted: LeaseGrantResponse = self.call("/etcdserverpb.Lease/LeaseGrant", request)?;
        Ok(granted.id)
    }

    fn put_request(&self, peer: Peer, lease: i64) -> PutRequest {
        let key = format!("{}/subnets/{}", self.prefix, peer.key());
        PutRequest {
            key,
            value: peer.value(),
            lease,
        }
    }

    fn txn(&mut self, requests: impl Iterator<Item = Request>) -> anyhow::Result<()> {
        let ops = requests.map(|request| RequestOp {
            request: Some(request),
        });
        let request = TxnRequest {
            success: ops.collect(),
        };
        let _: Nothing = self.call("/etcdserverpb.KV/Txn", request)?;
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
