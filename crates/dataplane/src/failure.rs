//! Refusals of the kernel.

use std::io;

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Positive.
    pub errno: i32,
    /// The kernel's own text, if any, and that of the error number.
    pub text: String,
}

impl Failure {
    /// Returns a refusal with nothing but a number.
    pub fn errno(errno: i32) -> Failure {
        Failure {
            errno,
            text: strerror(errno),
        }
    }

    /// Returns a refusal in our own words.
    pub fn because(errno: i32, text: impl Into<String>) -> Failure {
        Failure {
            errno,
            text: text.into(),
        }
    }

    /// Returns the error of the operation that was refused.
    pub fn of(self, op: impl ToString) -> crate::KernelError {
        crate::KernelError {
            op: op.to_string(),
            errno: self.errno,
            reason: self.text,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(err: io::Error) -> Failure {
        match err.raw_os_error() {
            Some(errno) => Failure::errno(errno),
            None => Failure::because(libc::EIO, err.to_string()),
        }
    }
}

/// Returns the text of an error number, without Rust's "(os error N)".
pub fn strerror(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    match text.rfind(" (os error") {
        Some(at) => text[..at].to_string(),
        None => text,
    }
}
