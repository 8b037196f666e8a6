//! One connection to one endpoint, and the calls over it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::failure::innermost;
use super::farewell::Farewell;
use crate::activity::Activity;
use crate::endpoint::Endpoint;

/// No message of etcd's is larger but a page of keys, which is read bit by bit (`page.rs`): etcd cuts what a
/// watch sends at about 2 MB. Room for it is made before it arrives.
const LARGEST_ANSWER: usize = 16 << 20;

/// A connection ready for a call.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub channel: Channel,
    pub token: Option<MetadataValue<Ascii>>,
    /// Which connection it is, among all of a client.
    pub number: u64,
    pub endpoint: Arc<Endpoint>,
    pub farewell: Farewell,
    /// It was opened for this call, or for another one just before.
    pub fresh: bool,
}

/// Sends one request and waits for its answer. `token` says who asks.
pub(super) async fn unary<Q, A>(
    channel: &Channel,
    path: &'static str,
    query: Q,
    token: Option<MetadataValue<Ascii>>,
) -> Result<A, Status>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(LARGEST_ANSWER);
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

/// Sends a stream of requests; returns the stream of answers.
pub(super) async fn streaming<Q, A>(
    connection: &Connection,
    path: &'static str,
    query: impl tokio_stream::Stream<Item = Q> + Send + 'static,
) -> Result<Streaming<A>, Status>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut grpc = Grpc::new(connection.channel.clone()).max_decoding_message_size(LARGEST_ANSWER);
    ready(&mut grpc).await?;
    let mut request = Request::new(query);
    if let Some(token) = connection.token.clone() {
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

/// Limits the time of a call.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let late = |_| Err(Status::deadline_exceeded("no answer in time"));
    timeout(limit, call).await.unwrap_or_else(late)
}

/// Counts a call of `path` that ended, by the last part of its name.
pub(super) fn count<T>(activity: &Activity, path: &'static str, ended: &Result<T, Status>) {
    let verb = path.rsplit('/').next().unwrap_or(path);
    let code = ended.as_ref().err().map_or(Code::Ok, Status::code);
    let silent = matches!(
        code,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown
    );
    activity.ended(verb, format_args!("{code:?}"), !silent);
}

async fn ready(grpc: &mut Grpc<Channel>) -> Result<(), Status> {
    grpc.ready()
        .await
        .map_err(|e| Status::unavailable(innermost(&e)))
}
