//! What the failure of a call means.

use std::error::Error;

use tonic::{Code, Status};

use super::farewell::Farewell;
use crate::endpoint::Endpoint;

/// What an etcd with users says to a request without a token.
const USER_IS_EMPTY: &str = "user name is empty";

/// What it says to a grant of an etcd lease that it has granted before.
pub(super) const LEASE_EXISTS: &str = "lease already exists";

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// No endpoint answers: wait, and retry.
    #[error("etcd (-etcd-endpoints): {0}")]
    Unreachable(String),
    /// The revision asked for is gone: list again.
    #[error("the revision was compacted away")]
    Compacted,
    /// There is no such etcd lease.
    #[error("the etcd lease does not exist")]
    NoLease,
    /// etcd says no; another endpoint would say the same.
    #[error("etcd refuses: {0}")]
    Refused(String),
}

impl Failure {
    /// Returns the reason, for a line that names etcd already.
    pub(super) fn reason(self) -> String {
        match self {
            Failure::Unreachable(reason) => reason,
            other => other.to_string(),
        }
    }
}

/// What it says when asked for a revision that it has not reached.
pub(super) const FUTURE_REVISION: &str = "future revision";

/// What to do after an error status.
pub(super) enum Remedy {
    /// Try another endpoint: this one cannot answer.
    TryElsewhere,
    /// Log in again: the token is no longer good.
    LogIn,
    /// None: it is etcd's answer.
    None(Failure),
}

/// etcd's error texts are part of its interface: its own clients compare them too.
pub(super) fn remedy(status: &Status) -> Remedy {
    let text = status.message();
    if text.contains("required revision has been compacted") {
        return Remedy::None(Failure::Compacted);
    }
    if text.contains("requested lease not found") {
        return Remedy::None(Failure::NoLease);
    }
    // A failed precondition, as other codes that another member may answer better; and whatever a proxy makes
    // of the code.
    if text.contains(LEASE_EXISTS) || text.contains(FUTURE_REVISION) {
        return Remedy::None(Failure::Refused(text.into()));
    }
    if is_about_login(text) {
        return Remedy::LogIn;
    }
    // Not etcd's own word, whatever the code: the connection failed.
    if status.source().is_some() {
        return Remedy::TryElsewhere;
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
        | Code::Unimplemented => Remedy::TryElsewhere,
        _ => Remedy::None(Failure::Refused(text.into())),
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

/// Describes a failure at `endpoint`, over a connection that ended with `farewell`.
pub(super) fn describe(endpoint: &Endpoint, farewell: &Farewell, status: &Status) -> String {
    let mut text = match (farewell.error(), status.source()) {
        (Some(error), _) => error.to_string(),
        (None, Some(source)) => innermost(source),
        (None, None) => status.message().to_string(),
    };
    if text.is_empty() {
        text = status.code().to_string();
    }
    let hint = if lacks_v3_api(status, &text) {
        NO_V3_API
    } else if text.contains(USER_IS_EMPTY) {
        NO_USER
    } else {
        ""
    };
    format!("{endpoint}: {text}{hint}")
}

const NO_V3_API: &str = ": this server has no etcd v3 API, which flannel needs: it is etcd before 3.0, etcd's \
                         v2 proxy, or no etcd";

const NO_USER: &str = ": it asks for a user: give -etcd-username and -etcd-password-file";

/// Returns whether a failure shows a server that does not have the v3 API: it does not know the service, or
/// speaks HTTP/1.1 only, which is no frame of HTTP/2.
fn lacks_v3_api(status: &Status, text: &str) -> bool {
    status.code() == Code::Unimplemented || text.contains("frame with invalid size")
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
            let remedy = remedy(&Status::new(code, text));
            assert!(matches!(remedy, Remedy::TryElsewhere), "{text}");
        }
        for text in [
            "etcdserver: user name is empty",
            "etcdserver: invalid auth token",
        ] {
            let remedy = remedy(&Status::new(Code::InvalidArgument, text));
            assert!(matches!(remedy, Remedy::LogIn), "{text}");
        }
        for (code, text) in [
            (Code::PermissionDenied, "etcdserver: permission denied"),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
            ),
            (Code::FailedPrecondition, "etcdserver: lease already exists"),
            // As a grpc-proxy passes it on.
            (
                Code::Unknown,
                "etcdserver: mvcc: required revision is a future revision",
            ),
        ] {
            let remedy = remedy(&Status::new(code, text));
            assert!(
                matches!(remedy, Remedy::None(Failure::Refused(_))),
                "{text}"
            );
        }
    }
}
