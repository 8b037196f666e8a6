//! One gRPC call over one connection, and what its failure means.

use std::error::Error;
use std::time::Duration;

use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::client::Failure;
use super::link::Line;
use crate::endpoint::Endpoint;

const LARGEST_ANSWER: usize = 256 << 20;

pub(super) async fn unary<Q, A>(
    line: &Line,
    path: &'static str,
    query: Q,
    token: Option<MetadataValue<Ascii>>,
) -> Result<A, Status>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut grpc = Grpc::new(line.channel.clone()).max_decoding_message_size(LARGEST_ANSWER);
    ready(&mut grpc).await?;
    let mut request = Request::new(query);
    if let Some(token) = token {
        request.metadata_mut().insert("token", token);
    }
    let codec = ProstCodec::<Q, A>::default();
    Ok(grpc
        .unary(request, PathAndQuery::from_static(path), codec)
        .await?
        .into_inner())
}

pub(super) async fn streaming<Q, A>(
    line: &Line,
    path: &'static str,
    query: impl tokio_stream::Stream<Item = Q> + Send + 'static,
) -> Result<Streaming<A>, Status>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut grpc = Grpc::new(line.channel.clone()).max_decoding_message_size(LARGEST_ANSWER);
    ready(&mut grpc).await?;
    let mut request = Request::new(query);
    if let Some(token) = line.token.clone() {
        request.metadata_mut().insert("token", token);
    }
    // A member that lost touch with the others ends the stream rather than staying silent.
    request
        .metadata_mut()
        .insert("hasleader", MetadataValue::from_static("true"));
    let codec = ProstCodec::<Q, A>::default();
    Ok(grpc
        .streaming(request, PathAndQuery::from_static(path), codec)
        .await?
        .into_inner())
}

pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let late = |_| Err(Status::deadline_exceeded("no answer in time"));
    timeout(limit, call).await.unwrap_or_else(late)
}

async fn ready(grpc: &mut Grpc<Channel>) -> Result<(), Status> {
    grpc.ready()
        .await
        .map_err(|e| Status::unavailable(innermost(&e)))
}

/// What follows from an error status.
pub(super) enum Verdict {
    /// This endpoint cannot answer; another one may.
    Elsewhere,
    /// Our token is no longer good.
    LogIn,
    /// An answer, if not the one hoped for.
    No(Failure),
}

/// etcd's error texts are part of its interface: its own clients compare them too.
pub(super) fn verdict(status: &Status) -> Verdict {
    let text = status.message();
    if text.contains("required revision has been compacted") {
        return Verdict::No(Failure::Compacted);
    }
    if text.contains("requested lease not found") {
        return Verdict::No(Failure::NoLease);
    }
    if text.contains("invalid auth token") || text.contains("revision of auth store is old") {
        return Verdict::LogIn;
    }
    match status.code() {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::Aborted => Verdict::Elsewhere,
        _ => Verdict::No(Failure::Refused(text.into())),
    }
}

pub(super) fn describe(endpoint: &Endpoint, status: &Status) -> String {
    let text = match status.source() {
        Some(source) => innermost(source),
        None => status.message().to_string(),
    };
    match text.is_empty() {
        true => format!("{endpoint}: {}", status.code()),
        false => format!("{endpoint}: {text}"),
    }
}

/// The cause that the wrappers wrap: "Connection refused", not "transport error".
pub(super) fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
