//! The clock: certificates, leases in a directory and logs go by it.

#![allow(unsafe_code, reason = "adjtimex, which no library calls")]

use super::report::Report;

const ABOUT: &str = "clock";
/// What the kernel calls an unsynchronised clock (`timex.h`).
const STA_UNSYNC: i32 = 0x40;

/// Asks the kernel whether something keeps its clock right.
pub(crate) fn check(report: &mut Report) {
    // SAFETY: all zeros is a value of this plain C structure, and asks for nothing to be set.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `state` is valid for the reads and writes of one structure.
    let told = unsafe { libc::adjtimex(&raw mut state) };
    let cure = "start chrony, systemd-timesyncd or another NTP client on every node";
    match told {
        -1 => report.warn(
            ABOUT,
            "the kernel does not say whether its clock is right",
            cure,
        ),
        _ if state.status & STA_UNSYNC != 0 => report.warn(
            ABOUT,
            "nothing keeps this host's clock right: certificates and leases go by it",
            cure,
        ),
        _ => report.ok(
            ABOUT,
            format!("kept right, to within {} ms", state.maxerror / 1000),
        ),
    }
}
