//! Follows a change of the backend by the leases: every node says there what it serves.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use model::{BackendType, SubnetKey};
use store::{Administer, AnyStore, ListedLease};
use tokio::time::{Instant, sleep};

use crate::output::{line, problem};
use crate::status;

/// How often the leases are read.
const EVERY: Duration = Duration::from_secs(1);

/// How many nodes a line names.
const NAMED: usize = 5;

/// How far the nodes are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Progress {
    /// Serve the new backend alone.
    changed: usize,
    /// Serve the new one and others.
    changing: usize,
    /// Do not serve the new one first.
    waiting: Vec<SubnetKey>,
}

impl Progress {
    fn of(leases: &[ListedLease], kind: &BackendType) -> Progress {
        let mut progress = Progress::default();
        // Nobody may be behind a reservation.
        for lease in leases.iter().filter(|lease| !lease.reserved) {
            let Ok(attrs) = &lease.attrs else { continue };
            if !kind.is_named(attrs.backend_type.as_ref()) {
                progress.waiting.push(lease.key);
            } else if attrs.also.is_empty() {
                progress.changed += 1;
            } else {
                progress.changing += 1;
            }
        }
        progress
    }

    fn is_over(&self) -> bool {
        self.changing == 0 && self.waiting.is_empty()
    }

    fn text(&self, kind: &BackendType) -> String {
        let all = self.changed + self.changing + self.waiting.len();
        let named: Vec<String> = self
            .waiting
            .iter()
            .take(NAMED)
            .map(ToString::to_string)
            .collect();
        let more = self.waiting.len().saturating_sub(NAMED);
        let mut text = format!(
            "{} of {all} nodes serve {kind}, {} of them others beside it",
            self.changed + self.changing,
            self.changing
        );
        if !named.is_empty() {
            text += &format!("; not yet: {}", named.join(", "));
        }
        if more > 0 {
            text += &format!(" and {more} more");
        }
        text
    }
}

/// Prints how far the nodes are until all serve `kind` alone, or for so long.
pub(super) async fn follow(
    store: &AnyStore,
    kind: &BackendType,
    limit: Duration,
) -> Result<ExitCode> {
    let end = Instant::now() + limit;
    let mut printed = String::new();
    loop {
        let progress = Progress::of(&store.leases().await?, kind);
        let text = progress.text(kind);
        if text != printed {
            line(&text);
            printed = text;
        }
        if progress.is_over() {
            return Ok(ExitCode::SUCCESS);
        }
        if Instant::now() >= end {
            problem(
                "not all nodes have changed: see `flannelctl status` there; nodes of upstream's flannel need a restart, and a lease without a node ends by itself",
            );
            return Ok(status::no());
        }
        sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use model::LeaseAttrs;

    use super::*;

    #[test]
    fn every_lease_counts_but_reservations() {
        let lease = |number: u8, value: &str, reserved| ListedLease {
            key: format!("10.1.{number}.0-24").parse().unwrap(),
            attrs: LeaseAttrs::from_json(value.as_bytes()).map_err(|e| e.to_string()),
            reserved,
        };
        let old = r#"{"PublicIP":"10.0.0.1","BackendType":"vxlan"}"#;
        let both =
            r#"{"PublicIP":"10.0.0.1","BackendType":"host-gw","Also":[{"BackendType":"vxlan"}]}"#;
        let new = r#"{"PublicIP":"10.0.0.1","BackendType":"host-gw"}"#;
        let leases = [
            lease(1, old, false),
            lease(2, both, false),
            lease(3, new, false),
            lease(4, old, true),
            lease(5, "{", false),
        ];
        let progress = Progress::of(&leases, &BackendType::HostGw);
        assert_eq!(
            progress.text(&BackendType::HostGw),
            "2 of 3 nodes serve host-gw, 1 of them others beside it; not yet: 10.1.1.0-24"
        );
        assert!(!progress.is_over());
        assert!(Progress::of(&leases[2..], &BackendType::HostGw).is_over());
    }
}
