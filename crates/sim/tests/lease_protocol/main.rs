//! The lease protocol, checked exhaustively within bounds: every order of what nodes, etcd and the network do.
//!
//! The machine is [`store::own_lease::OwnLease`] itself. In every state that can be reached:
//!
//! 1. No subnet is granted to two nodes with an address each, unless etcd lost a node's key: it expired, was restored
//!    over or was deleted.
//! 2. A reservation exists, and does not expire.
//! 3. If no more faults happen, every node soon has a lease of its own that etcd shows as desired, and of nodes with
//!    one address exactly one has.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod protocol;
mod settle;

use std::time::Instant;

use protocol::{Faults, Protocol};
use stateright::{Checker, Model};

/// Checks everything that can be reached; prints how many states that were.
fn check(name: &str, protocol: Protocol) {
    let began = Instant::now();
    let model = protocol.clone();
    let checker = protocol.checker().threads(2).spawn_bfs().join();
    println!(
        "{name}: {} states, {} different, depth {}, {:?}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed()
    );
    let found: Vec<String> = checker
        .discoveries()
        .into_iter()
        .map(|(property, path)| {
            let state = path.last_state().clone();
            let why = settle::settles(&model, &state);
            let steps: Vec<String> = path
                .into_actions()
                .iter()
                .map(|action| format!("{action:?}"))
                .collect();
            format!("{property}, but {why:?} after\n  {}", steps.join("\n  "))
        })
        .collect();
    assert!(found.is_empty(), "{name}: {}", found.join("\n"));
}

const NONE: Faults = Faults {
    losses: 0,
    stops: 0,
    restores: 0,
    deletions: 0,
    waits: 0,
};

#[test]
fn two_nodes_with_lost_answers() {
    let faults = Faults { losses: 2, ..NONE };
    check("two nodes, lost answers", Protocol::apart(2, 2, faults));
}

#[test]
fn two_nodes_that_are_killed() {
    let faults = Faults { stops: 1, ..NONE };
    check("two nodes, a kill", Protocol::apart(2, 2, faults));
}

#[test]
fn two_nodes_and_a_restore() {
    let faults = Faults {
        restores: 1,
        ..NONE
    };
    check("two nodes, a restore", Protocol::apart(2, 2, faults));
}

#[test]
fn two_nodes_and_a_deleted_key() {
    let faults = Faults {
        deletions: 1,
        losses: 1,
        ..NONE
    };
    check("two nodes, a deletion", Protocol::apart(2, 2, faults));
}

#[test]
fn three_nodes() {
    check("three nodes", Protocol::apart(3, 3, NONE));
}

#[test]
fn a_reservation() {
    let faults = Faults { losses: 1, ..NONE };
    check("a reservation", Protocol::apart(2, 2, faults).reserved());
}

#[test]
fn two_nodes_with_one_address() {
    let faults = Faults { waits: 4, ..NONE };
    check("twins", Protocol::twins(faults));
}

#[test]
#[ignore = "minutes: make model-check"]
fn more_two_nodes_that_are_killed() {
    let faults = Faults {
        stops: 1,
        losses: 1,
        waits: 1,
        ..NONE
    };
    check("two nodes, kill, loss, time", Protocol::apart(2, 2, faults));
}

#[test]
#[ignore = "minutes: make model-check"]
fn more_two_nodes_and_a_restore() {
    let faults = Faults {
        restores: 1,
        waits: 1,
        ..NONE
    };
    check("two nodes, restore, time", Protocol::apart(2, 2, faults));
}

#[test]
#[ignore = "minutes: make model-check"]
fn more_a_reservation() {
    let faults = Faults {
        losses: 1,
        stops: 1,
        waits: 1,
        ..NONE
    };
    check(
        "a reservation, kill, loss, time",
        Protocol::apart(2, 2, faults).reserved(),
    );
}

#[test]
#[ignore = "minutes: make model-check"]
fn more_three_nodes() {
    let faults = Faults { losses: 1, ..NONE };
    check("three nodes, a loss", Protocol::apart(3, 3, faults));
}

#[test]
#[ignore = "minutes: make model-check"]
fn more_two_nodes_with_one_address() {
    let faults = Faults {
        waits: 8,
        stops: 1,
        losses: 1,
        ..NONE
    };
    check("twins, kill, loss", Protocol::twins(faults));
}
