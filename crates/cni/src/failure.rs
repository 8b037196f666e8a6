//! What goes wrong, as the CNI error object that the runtime reads on stdout.

use std::fmt;

use serde::Serialize;

use crate::object::Object;

/// The specification's error codes, and one of our own above 99.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration's version, or one that lacks the command.
    IncompatibleVersion = 1,
    /// Nothing is known of this container: there was no ADD, or its DEL is done.
    UnknownContainer = 3,
    /// `CNI_COMMAND`, `CNI_CONTAINERID`, `CNI_NETNS`, `CNI_IFNAME` or `CNI_PATH`.
    InvalidEnvironment = 4,
    /// A file or program could not be read, written or run.
    Io = 5,
    /// Input that is not what it should be: not UTF-8, not JSON, not an address.
    Decode = 6,
    /// The network configuration says something that cannot be.
    InvalidConfig = 7,
    /// Nothing is wrong with the request: flanneld has not written its subnet file yet.
    TryAgainLater = 11,
    /// STATUS: an ADD would fail.
    NotAvailable = 50,
    /// The delegate ended without saying why.
    DelegateFailed = 100,
}

/// An error of ours.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{msg}")]
pub struct Failure {
    /// What kind of fault it is.
    pub code: Code,
    /// What is wrong, with the file, key or variable by name.
    pub msg: String,
    /// What to do about it; may be empty.
    pub details: String,
}

impl Failure {
    /// A failure without advice.
    pub fn new(code: Code, msg: impl Into<String>) -> Failure {
        Failure {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// The same with advice.
    pub fn advise(mut self, details: impl Into<String>) -> Failure {
        self.details = details.into();
        self
    }

    /// The same fault under another code.
    pub fn recode(mut self, code: Code) -> Failure {
        self.code = code;
        self
    }

    /// The error object for a runtime that speaks `version`.
    pub fn object(&self, version: &str) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Object<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        let object = Object {
            cni_version: version,
            code: self.code as u32,
            msg: &self.msg,
            details: &self.details,
        };
        // Strings and a number always become JSON; an empty answer would still be a failure.
        serde_json::to_vec(&object).unwrap_or_default()
    }
}

/// Why a command did not succeed.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// For a reason of ours.
    Ours(Failure),
    /// The delegate's own error object, to be passed on as it is.
    Delegates(Vec<u8>),
}

impl Refusal {
    /// Returns whether a delegate refused because it does not speak the configuration's version.
    pub fn is_of_version(&self) -> bool {
        match self {
            Refusal::Ours(_) => false,
            Refusal::Delegates(answer) => serde_json::from_slice::<Object>(answer)
                .and_then(|object| object.decode::<u32>("code"))
                .is_ok_and(|code| code == Some(Code::IncompatibleVersion as u32)),
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        Refusal::Ours(failure)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Ours(failure) => failure.fmt(f),
            Refusal::Delegates(object) => f.write_str(String::from_utf8_lossy(object).trim()),
        }
    }
}

/// One line on stderr, which runtimes keep with the container's events. Nobody may be reading: that
/// is not a reason to fail.
pub fn note(line: fmt::Arguments<'_>) {
    #[cfg(not(test))]
    use std::io::Write;
    // The output of a test is captured from this macro only; it panics where nobody reads.
    #[cfg(test)]
    eprintln!("flannel: {line}");
    #[cfg(not(test))]
    let _ = writeln!(std::io::stderr(), "flannel: {line}");
}
