//! Exit statuses that every command shares.

use std::process::ExitCode;

/// Something failed; standard error says what.
pub(crate) const FAILED: u8 = 1;

/// The command line is wrong; clap's own status.
pub(crate) const USAGE: u8 = 2;

/// The answer is no: refused, not there, not in order.
pub(crate) fn no() -> ExitCode {
    ExitCode::from(3)
}
