//! What can go wrong while a lab is built or used.

use std::io;
use std::time::Duration;

/// Why the lab could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call or a file failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the file or object concerned.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A program ran and failed.
    #[error("{place}: `{command}` failed ({status}){}", after_colon(.output))]
    Command {
        /// The namespace it ran in.
        place: String,
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// What it wrote to standard error, or else to standard output.
        output: String,
    },
    /// A condition did not come true in time.
    #[error("{what}: not so after {after:?}; last seen: {last}")]
    Timeout {
        /// The condition.
        what: String,
        /// How long it was waited for.
        after: Duration,
        /// What was seen at the last look.
        last: String,
    },
    /// A process that should be running has ended.
    #[error("{name} ended ({status}); its log ends with:\n{log}")]
    Ended {
        /// Which process.
        name: String,
        /// How it ended.
        status: String,
        /// The last lines of its log.
        log: String,
    },
    /// The machine lacks something: a program, a right, a kernel feature. Says what to do.
    #[error("{0}")]
    Needs(String),
    /// Something was read that does not make sense.
    #[error("{0}")]
    Bad(String),
}

fn after_colon(text: &str) -> String {
    match text.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

/// Says what was being done when a system call failed.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Io {
            what: what(),
            source,
        })
    }
}

impl<T> Doing<T> for nix::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|errno| Error::Io {
            what: what(),
            source: errno.into(),
        })
    }
}
