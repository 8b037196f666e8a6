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
use super::connection::Connection;
use crate::endpoint::Endpoint;

/// No message of etcd's is larger but a page of keys, which is read bit by bit (`page.rs`): etcd cuts what a
/// watch sends at about 2 MB. Room for it is made before it arrives.
const LARGEST_ANSWER: usize = 16 << 20;
/// What an etcd with users says to a request without a token.
pub(super) const USER_IS_EMPTY: &str = "user name is empty";

/// What it says to a grant of an etcd lease that it has granted before.
pub(super) const LEASE_EXISTS: &str = "lease already exists";

pub(super) async fn unary<Q, A>(
    connection: &Connection,
    path: &'static str,
    query: Q,
    token: Option<MetadataValue<Ascii>>,
) -> Result<A, Status>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut grpc = Grpc::new(connection.channel.clone()).max_decoding_message_size(LARGEST_ANSWER);
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
    // A failed precondition, as other codes that another member may answer better.
    if text.contains(LEASE_EXISTS) {
        return Verdict::No(Failure::Refused(text.into()));
    }
    if is_about_login(text) {
        return Verdict::LogIn;
    }
    // Not etcd's own word, whatever the code: the connection failed.
    if status.source().is_some() {
        return Verdict::Elsewhere;
    }
    match status.code() {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::Aborted
        // A learner, a member whose data are damaged, a server that is no etcd.
        | Code::FailedPrecondition
        | Code::DataLoss
        | Code::Unimplemented => Verdict::Elsewhere,
        _ => Verdict::No(Failure::Refused(text.into())),
    }
}

/// Returns whether etcd's `text` asks for a new token: it has run out, or etcd has got users since.
pub(super) fn is_about_login(text: &str) -> bool {
    let reasons = [
        "invalid auth token",
        "revision of auth store is old",
        USER_IS_EMPTY,
    ];
    reasons.iter().any(|reason| text.contains(reason))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_about_the_request_is_final() {
        for (code, text) in [
            (
                Code::Unavailable,
                "etcdserver: rpc not supported for learner",
            ),
            (
                Code::FailedPrecondition,
                "etcdserver: rpc not supported for learner",
            ),
            (Code::DataLoss, "etcdserver: corrupt cluster"),
            (Code::Unimplemented, "unknown service etcdserverpb.KV"),
        ] {
            let verdict = verdict(&Status::new(code, text));
            assert!(matches!(verdict, Verdict::Elsewhere), "{text}");
        }
        for text in [
            "etcdserver: user name is empty",
            "etcdserver: invalid auth token",
        ] {
            let verdict = verdict(&Status::new(Code::InvalidArgument, text));
            assert!(matches!(verdict, Verdict::LogIn), "{text}");
        }
        for (code, text) in [
            (Code::PermissionDenied, "etcdserver: permission denied"),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
            ),
            (Code::FailedPrecondition, "etcdserver: lease already exists"),
        ] {
            let verdict = verdict(&Status::new(code, text));
            assert!(
                matches!(verdict, Verdict::No(Failure::Refused(_))),
                "{text}"
            );
        }
    }
}
