//! Situations that cost nodes their subnets before the machine existed.

use std::time::Duration;

use super::super::*;
use super::sim::{Fault, Node, Sim, attrs, key, settle};

const MOMENT: Duration = Duration::from_secs(8);

fn lone(previous: Option<model::SubnetKey>) -> (Sim, Vec<Node>) {
    let mut sim = Sim::default();
    let mut nodes = vec![Node::start(&sim, 1, 1, 10, previous)];
    settle(&mut sim, &mut nodes, MOMENT);
    assert!(nodes[0].ready.is_some());
    (sim, nodes)
}

/// Runs until the node's next request is a write, which meets `fault`.
fn fail_next_write(sim: &mut Sim, node: &mut Node, fault: Fault) {
    for _ in 0..100 {
        node.hear(sim);
        if matches!(node.todo.front(), Some(Action::Do(Request::Write { .. }))) {
            node.step(sim, fault, 3);
            return;
        }
        if !node.step(sim, Fault::None, 3) {
            sim.pass(Duration::from_millis(500));
        }
    }
    panic!("it never writes");
}

#[test]
fn a_fault_while_a_lease_is_adopted_does_not_cost_the_subnet() {
    for (fault, hangs_on) in [Fault::Before, Fault::After]
        .into_iter()
        .flat_map(|fault| [(fault, None), (fault, Some(7))])
    {
        for previous in [None, Some(key(5))] {
            let mut sim = Sim::default();
            sim.lives.insert(7, Duration::from_secs(600));
            sim.put(key(5), Some(attrs(1, 1)), hangs_on);
            let mut nodes = vec![Node::start(&sim, 1, 1, 10, previous)];
            fail_next_write(&mut sim, &mut nodes[0], fault);
            settle(&mut sim, &mut nodes, MOMENT);
            assert_eq!(nodes[0].ready, Some(key(5)));
            assert_eq!(sim.keys.len(), 1);
            assert_eq!(sim.keys[&key(5)].hangs_on.is_none(), hangs_on.is_none());
        }
    }
}

#[test]
fn a_lost_answer_to_a_creation_leaves_no_second_key() {
    for fault in [Fault::Before, Fault::After] {
        let mut sim = Sim::default();
        let mut nodes = vec![Node::start(&sim, 1, 1, 10, None)];
        fail_next_write(&mut sim, &mut nodes[0], fault);
        settle(&mut sim, &mut nodes, MOMENT);
        assert!(nodes[0].ready.is_some());
        assert_eq!(sim.keys.len(), 1);
    }
}

#[test]
fn every_foreign_write_is_corrected() {
    let (mut sim, mut nodes) = lone(None);
    let own = nodes[0].ready.unwrap();
    let life = sim.keys[&own].hangs_on;
    for n in 0..10 {
        sim.put(own, Some(attrs(1, 100 + n)), life);
        settle(&mut sim, &mut nodes, Duration::from_secs(1));
    }
    settle(&mut sim, &mut nodes, Duration::from_secs(11));
    assert_eq!(sim.keys[&own].attrs, Some(attrs(1, 1)));
    // One that cannot be read, too.
    sim.put(own, None, life);
    settle(&mut sim, &mut nodes, Duration::from_secs(11));
    assert_eq!(sim.keys[&own].attrs, Some(attrs(1, 1)));
    assert_eq!(nodes[0].ended, None);
}

#[test]
fn a_lost_answer_to_a_new_address_is_no_foreign_write() {
    for fault in [Fault::Before, Fault::After] {
        let (mut sim, mut nodes) = lone(None);
        nodes[0].tell(&sim, Event::Publish(attrs(9, 1)));
        fail_next_write(&mut sim, &mut nodes[0], fault);
        // Changed once more before anybody could look.
        nodes[0].tell(&sim, Event::Publish(attrs(8, 1)));
        settle(&mut sim, &mut nodes, MOMENT);
        assert_eq!(nodes[0].ended, None);
        assert_eq!(sim.keys[&nodes[0].ready.unwrap()].attrs, Some(attrs(8, 1)));
        assert!(
            !nodes[0]
                .said
                .iter()
                .any(|n| matches!(n, Notice::Overwritten(..)))
        );
    }
}

#[test]
fn of_two_nodes_with_one_address_the_newcomer_stays_away_for_ten_minutes() {
    for (name, previous) in [("fresh", None), ("was here before", Some(()))] {
        let (mut sim, mut nodes) = lone(None);
        let own = nodes[0].ready.unwrap();
        let mut ready = 0;
        for n in 0..60 {
            let previous = previous.map(|()| own);
            nodes.push(Node::start(&sim, 1, 2, 100 + n, previous));
            settle(&mut sim, &mut nodes, Duration::from_secs(5));
            let newcomer = nodes.pop().unwrap();
            assert!(newcomer.ended.is_some(), "{name}: {newcomer:?}");
            ready += usize::from(
                newcomer
                    .said
                    .iter()
                    .any(|n| matches!(n, Notice::Adopted { .. })),
            );
            settle(&mut sim, &mut nodes, Duration::from_secs(5));
        }
        assert!(ready <= 1, "{name}: claimed success {ready} times");
        assert_eq!((nodes[0].ready, &nodes[0].ended), (Some(own), &None));
        assert_eq!(sim.keys.len(), 1);
        assert_eq!(sim.keys[&own].attrs, Some(attrs(1, 1)));
        settle(&mut sim, &mut nodes, Duration::from_secs(17));
        assert_eq!(sim.keys[&own].signature, None, "as other programs write it");
        let before = sim.revision;
        settle(&mut sim, &mut nodes, Duration::from_secs(60));
        assert_eq!(sim.revision, before, "and there is peace");
    }
}

#[test]
fn of_two_holders_the_older_one_stays() {
    let (mut sim, mut nodes) = lone(None);
    let own = nodes[0].ready.unwrap();
    // The first one is frozen while the other one asks, and settles.
    let mut frozen = nodes.pop().unwrap();
    nodes.push(Node::start(&sim, 1, 2, 20, None));
    settle(&mut sim, &mut nodes, Duration::from_secs(20));
    assert_eq!(nodes[0].ready, Some(own));
    frozen.hear(&sim);
    nodes.push(frozen);
    settle(&mut sim, &mut nodes, Duration::from_secs(20));
    assert!(nodes[0].ended.is_some(), "the younger one");
    assert_eq!(nodes[1].ended, None);
    assert_eq!(sim.keys[&own].attrs, Some(attrs(1, 1)));
}

#[test]
fn an_address_changed_while_stopped_keeps_the_subnet() {
    let (mut sim, nodes) = lone(None);
    let own = nodes[0].ready.unwrap();
    for previous in [None, Some(own)] {
        let mut nodes = vec![Node::start(&sim, 99, 1, 20, previous)];
        settle(&mut sim, &mut nodes, MOMENT);
        assert_eq!(nodes[0].ready, Some(own));
        assert_eq!(sim.keys[&own].attrs, Some(attrs(99, 1)));
        assert_eq!(sim.keys.len(), 1);
    }
}

#[test]
fn a_lease_that_is_proven_to_be_our_own_is_adopted_without_a_question() {
    // By the previous subnet, or by the MAC of a device that still exists.
    for (data, previous, at_once) in [(1, None, true), (2, Some(()), true), (2, None, false)] {
        let (mut sim, mut nodes) = lone(None);
        let own = nodes[0].ready.unwrap();
        let began = sim.now;
        nodes[0] = Node::start(&sim, 1, data, 20, previous.map(|()| own));
        while nodes[0].ready.is_none() {
            settle(&mut sim, &mut nodes, Duration::from_millis(500));
            assert!(sim.now < began + MOMENT);
        }
        assert_eq!(nodes[0].ready, Some(own));
        let waited = sim.now - began;
        let window = Policy::default().answer_window;
        assert_eq!(waited < window, at_once, "{data} {previous:?}: {waited:?}");
    }
}

#[test]
fn a_clone_with_the_same_mac_takes_another_subnet() {
    let (mut sim, mut nodes) = lone(None);
    let own = nodes[0].ready.unwrap();
    nodes.push(Node::start(&sim, 2, 1, 20, None));
    settle(&mut sim, &mut nodes, MOMENT);
    assert_eq!((nodes[0].ready, &nodes[0].ended), (Some(own), &None));
    assert!(nodes[1].ready.is_some_and(|key| key != own), "{nodes:?}");
    assert_eq!(sim.keys[&own].attrs, Some(attrs(1, 1)));
}

#[test]
fn a_deleted_lease_is_revoked_an_expired_or_lost_one_is_not() {
    let (mut sim, mut nodes) = lone(None);
    let own = nodes[0].ready.unwrap();
    let backup = Sim::default();
    for bump in [0, 1, 1000] {
        sim.restore(&backup, bump);
        settle(&mut sim, &mut nodes, MOMENT);
        assert_eq!((nodes[0].ready, &nodes[0].ended), (Some(own), &None));
        assert_eq!(sim.keys[&own].attrs, Some(attrs(1, 1)));
    }
    // Asleep for longer than the lease lives.
    sim.pass(Duration::from_secs(1000));
    assert!(sim.keys.is_empty());
    settle(&mut sim, &mut nodes, MOMENT);
    assert_eq!(nodes[0].ready, Some(own));
    assert!(sim.keys.contains_key(&own));
    sim.keys.remove(&own);
    settle(&mut sim, &mut nodes, MOMENT);
    assert!(nodes[0].ended.is_some());
    assert!(sim.keys.is_empty());
}

#[test]
fn a_subnet_that_another_node_took_is_given_up() {
    let (mut sim, mut nodes) = lone(None);
    let own = nodes[0].ready.unwrap();
    sim.put(own, Some(attrs(77, 77)), Some(7));
    settle(&mut sim, &mut nodes, MOMENT);
    assert!(nodes[0].ended.as_ref().unwrap().contains("10.0.0.77"));
    assert_eq!(sim.keys[&own].attrs, Some(attrs(77, 77)));
}

#[test]
fn a_reservation_made_under_a_running_daemon_stays_one() {
    let (mut sim, mut nodes) = lone(None);
    let own = nodes[0].ready.unwrap();
    sim.put(own, Some(attrs(1, 1)), None);
    settle(&mut sim, &mut nodes, Duration::from_secs(200));
    assert_eq!(sim.keys[&own].hangs_on, None);
    nodes[0].tell(&sim, Event::Publish(attrs(1, 9)));
    settle(&mut sim, &mut nodes, MOMENT);
    assert_eq!(sim.keys[&own].hangs_on, None);
    assert_eq!(sim.keys[&own].attrs, Some(attrs(1, 9)));
}

#[test]
fn a_revoked_etcd_lease_under_a_key_is_replaced() {
    let (mut sim, mut nodes) = lone(None);
    let own = nodes[0].ready.unwrap();
    // A person's put hangs the key on another lease.
    sim.lives.insert(7, sim.now + Duration::from_secs(30));
    sim.put(own, Some(attrs(1, 1)), Some(7));
    settle(&mut sim, &mut nodes, Duration::from_secs(300));
    assert_eq!(nodes[0].ready, Some(own));
    assert!(sim.keys.contains_key(&own));
}
