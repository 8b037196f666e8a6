//! Why a request to the API server failed.

use std::time::Duration;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The server cannot be reached, or cannot answer now.
    #[error("{0}")]
    Away(String),
    /// The server asks for a pause.
    #[error("the API server is busy: {1}")]
    Busy(Duration, String),
    /// The history since that resource version is gone: list again.
    #[error("the resource version is too old: {0}")]
    Expired(String),
    /// The server does not have that resource version yet: list without asking for it.
    #[error("the resource version is not known: {0}")]
    Ahead(String),
    /// There is no such object.
    #[error("{0}")]
    NotFound(String),
    /// The object exists already, or has changed.
    #[error("{0}")]
    Conflict(String),
    /// The object itself is not accepted.
    #[error("the API server does not accept it: {0}")]
    Invalid(String),
    /// The credentials are not accepted.
    #[error("the API server refuses: {0}")]
    Unauthorized(String),
    /// Any other refusal.
    #[error("the API server refuses: {0}")]
    Refused(String),
}

impl Failure {
    /// Whether waiting for the server helps, without anybody's work.
    pub(super) fn is_away(&self) -> bool {
        matches!(self, Failure::Away(_) | Failure::Busy(..))
    }
}

/// Returns the innermost cause of an error as text.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
