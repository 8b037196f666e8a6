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

/// Found by the model check (`lease_protocol`): the node gave up a creation because another node had the key, which was
/// deleted before the first request arrived. The second key would live as long as the node renews its etcd lease.
#[test]
fn a_creation_that_arrives_late_leaves_no_second_key() {
    let (mut sim, mut nodes) = lone(None);
    let own = nodes[0].ready.unwrap();
    let hangs_on = sim.keys[&own].hangs_on;
    for late in [key(11), key(12)] {
        sim.put(late, Some(attrs(1, 1)), hangs_on);
        settle(&mut sim, &mut nodes, MOMENT);
        assert_eq!(sim.keys.keys().collect::<Vec<_>>(), [&own]);
    }
    assert_eq!(nodes[0].ready, Some(own));
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
fn two_nodes_that_swap_their_addresses_while_stopped_keep_their_subnets() {
    let mut sim = Sim::default();
    let mut nodes = vec![
        Node::start(&sim, 1, 1, 10, None),
        Node::start(&sim, 2, 2, 11, None),
    ];
    settle(&mut sim, &mut nodes, MOMENT);
    let had: Vec<_> = nodes.iter().map(|node| node.ready).collect();
    nodes[0] = Node::start(&sim, 2, 1, 20, had[0]);
    nodes[1] = Node::start(&sim, 1, 2, 21, had[1]);
    settle(&mut sim, &mut nodes, MOMENT);
    let have: Vec<_> = nodes.iter().map(|node| node.ready).collect();
    assert_eq!(have, had, "{nodes:#?}");
    assert_eq!(sim.keys[&had[0].unwrap()].attrs, Some(attrs(2, 1)));
    assert_eq!(sim.keys[&had[1].unwrap()].attrs, Some(attrs(1, 2)));
}

#[test]
fn a_subnet_reserved_for_a_node_that_has_another_is_taken_at_its_next_start() {
    let (mut sim, mut nodes) = lone(None);
    let own = nodes[0].ready;
    let other = if own == Some(key(9)) { key(8) } else { key(9) };
    let bare = model::LeaseAttrs::from_json(br#"{"PublicIP":"10.0.0.1"}"#).unwrap();
    sim.put(other, Some(bare), None);
    settle(&mut sim, &mut nodes, MOMENT);
    assert_eq!((nodes[0].ready, &nodes[0].ended), (own, &None));
    nodes[0] = Node::start(&sim, 1, 1, 20, own);
    settle(&mut sim, &mut nodes, MOMENT);
    assert_eq!(nodes[0].ready, Some(other));
    assert_eq!(sim.keys[&other].attrs, Some(attrs(1, 1)));
    assert_eq!(sim.keys[&other].hangs_on, None);
}

#[test]
fn a_lease_that_this_program_wrote_is_asked_about_for_a_moment_only() {
    for (made, window) in [(1, 500), (9, 3000)] {
        let who = Who {
            public_ip: attrs(1, 1).public_ip,
            made: vec![format!("02:00:00:00:00:{made:02X}")],
            ..Who::default()
        };
        let mut bare = Bare(OwnLease::new(who, WriterId(10), Policy::default()));
        bare.on(Event::Want(attrs(1, 1)), 0);
        bare.on(Event::ListingBegan, 0);
        bare.on(Event::Entry(Bare::entry(3, Some(attrs(1, 1)), 7)), 0);
        bare.answer(Answer::Read { all: true }, 0);
        let mut entry = Bare::entry(3, Some(attrs(1, 1)), 8);
        entry.signature = Some(Signature::Claimant(WriterId(10)));
        let actions = bare.answer(Answer::Written { entry, rival: None }, 0);
        let until = Duration::from_millis(window);
        assert_eq!(actions.last(), Some(&Action::WakeAt(until)), "{actions:?}");
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

/// Two nodes with one address and nothing in the store, step by step in turn.
#[test]
fn of_two_fresh_nodes_with_one_address_one_keeps_its_lease() {
    for (data, pick, frozen) in [(2, 3, false), (1, 3, false), (2, 0, false), (2, 3, true)] {
        let mut sim = Sim::default();
        let mut nodes = [
            Node::start(&sim, 1, 1, 10, None),
            Node::start(&sim, 1, data, 11, None),
        ];
        while nodes.iter().any(|node| node.machine.key().is_none()) {
            for (node, pick) in nodes.iter_mut().zip([0, pick]) {
                node.step(&mut sim, Fault::None, pick);
            }
            if nodes.iter().all(|node| node.todo.is_empty()) {
                sim.pass(Duration::from_millis(500));
                nodes.iter_mut().for_each(|node| node.hear(&sim));
            }
            if nodes.iter().any(|node| node.ended.is_some()) {
                break;
            }
        }
        // Whoever answers late still answers.
        let slow = if frozen { 1.. } else { 0.. };
        settle(&mut sim, &mut nodes[slow], MOMENT);
        settle(&mut sim, &mut nodes, MOMENT);
        let ended: Vec<_> = nodes.iter().filter_map(|n| n.ended.as_ref()).collect();
        assert_eq!(ended.len(), 1, "{nodes:#?}");
        assert!(
            ended[0].contains("10.0.0.1") && ended[0].contains("--public-ip"),
            "{ended:?}"
        );
        assert_eq!(sim.keys.len(), 1);
        let winner = nodes.iter().find_map(|node| node.ready).unwrap();
        assert!(sim.keys.contains_key(&winner));
        // And the other one stays out.
        for n in 0..20 {
            let mut again = [Node::start(&sim, 1, data, 100 + n, None)];
            settle(&mut sim, &mut again, Duration::from_millis(500));
            let survivor = nodes.iter_mut().position(|node| node.ended.is_none());
            let survivor = &mut nodes[survivor.unwrap()..][..1];
            for _ in 0..16 {
                settle(&mut sim, survivor, Duration::from_millis(500));
                settle(&mut sim, &mut again, Duration::from_millis(500));
            }
            assert!(again[0].ended.is_some(), "{again:#?}");
        }
        assert_eq!(sim.keys.keys().collect::<Vec<_>>(), [&winner]);
    }
}

/// A machine of its own, to which the store's answers are given by hand.
struct Bare(OwnLease<u32>);

impl Bare {
    fn entry(n: u8, attrs: Option<model::LeaseAttrs>, mark: u32) -> Entry<u32> {
        Entry {
            key: key(n),
            attrs,
            signature: None,
            life: Life::Until {
                ends: Duration::from_secs(1000),
                renew: Duration::from_secs(500),
            },
            seniority: mark.into(),
            fits: true,
            mark,
        }
    }

    /// A node that is about to create the lease 3.
    fn creating() -> Bare {
        let who = Who {
            public_ip: attrs(1, 1).public_ip,
            ..Who::default()
        };
        let mut machine = OwnLease::new(who, WriterId(10), Policy::default());
        machine.on(Event::Want(attrs(1, 1)), Duration::ZERO);
        machine.on(Event::ListingBegan, Duration::ZERO);
        machine.on(Event::Answer(Answer::Read { all: true }), Duration::ZERO);
        let mut bare = Bare(machine);
        let asked = bare.answer(Answer::Picked(Ok(key(3))), 0);
        assert!(Self::creates(&asked), "{asked:?}");
        bare
    }

    /// A node that holds the lease 3.
    fn holding() -> Bare {
        let mut bare = Bare::creating();
        let entry = Bare::entry(3, Some(attrs(1, 1)), 7);
        bare.answer(Answer::Written { entry, rival: None }, 0);
        assert_eq!(bare.0.key(), Some(key(3)));
        bare
    }

    fn on(&mut self, event: Event<u32>, seconds: u64) -> Vec<Action<u32>> {
        self.0.on(event, Duration::from_secs(seconds))
    }

    fn answer(&mut self, answer: Answer<u32>, seconds: u64) -> Vec<Action<u32>> {
        self.on(Event::Answer(answer), seconds)
    }

    fn creates(actions: &[Action<u32>]) -> bool {
        let creates = |action: &Action<u32>| matches!(action, Action::Do(Request::Write { key: k, over: None, .. }) if *k == key(3));
        actions.iter().any(creates)
    }

    fn looks(actions: &[Action<u32>]) -> bool {
        actions.contains(&Action::Do(Request::Look { key: key(3) }))
    }
}

#[test]
fn an_etcd_that_was_restored_when_a_renewal_failed_costs_no_subnet() {
    let mut bare = Bare::holding();
    assert_eq!(bare.on(Event::Tick, 500), [Action::Do(Request::Renew)]);
    assert!(Bare::looks(&bare.answer(Answer::LifeOver, 501)));
    // The store finds out while it looks, and cannot say more than that the key is gone.
    bare.on(Event::HistoryLost, 501);
    let (look, rival) = (Look::Gone(Cause::Deleted), None);
    let actions = bare.answer(Answer::Looked { look, rival }, 501);
    assert!(Bare::creates(&actions), "{actions:?}");
    // Nobody restored it: somebody deleted the key.
    let mut bare = Bare::holding();
    bare.on(Event::Tick, 500);
    bare.answer(Answer::LifeOver, 501);
    let look = Look::Gone(Cause::Deleted);
    let actions = bare.answer(Answer::Looked { look, rival }, 501);
    assert_eq!(actions, [Action::Revoked(Revocation::Deleted(key(3)))]);
}

#[test]
fn a_lease_under_another_key_is_never_taken_for_the_own_one() {
    // While a lost key is created again, one exists that overlaps: another node's, one that looks like
    // ours, one that cannot be read.
    for other in [Some(attrs(9, 9)), Some(attrs(1, 1)), None] {
        let mut bare = Bare::holding();
        let lost = bare.on(Event::Observed(Look::Gone(Cause::Lost)), 1);
        assert!(Bare::creates(&lost), "{lost:?}");
        let overlapping = Bare::entry(4, other, 9);
        let actions = bare.answer(Answer::Differs(Some(overlapping)), 1);
        let [Action::Revoked(Revocation::Taken(own, _))] = &actions[..] else {
            panic!("{actions:?}");
        };
        assert_eq!(*own, key(3));
    }
    // While the first one is created, whose answer was lost before.
    let mut bare = Bare::creating();
    bare.on(Event::Failed, 1);
    bare.on(Event::Retry, 1);
    let (look, rival) = (Look::Gone(Cause::Deleted), None);
    assert!(Bare::creates(
        &bare.answer(Answer::Looked { look, rival }, 1)
    ));
    let overlapping = Bare::entry(4, Some(attrs(1, 1)), 9);
    bare.answer(Answer::Differs(Some(overlapping)), 1);
    assert_eq!(bare.0.key(), None);
}

#[test]
fn a_value_whose_fate_is_known_is_foreign_when_it_comes_again() {
    let mut bare = Bare::holding();
    // An address that this node had for a moment, and whose write got lost.
    bare.on(Event::Publish(attrs(9, 1)), 1);
    bare.on(Event::Failed, 1);
    assert!(Bare::looks(&bare.on(Event::Retry, 1)));
    bare.on(Event::Publish(attrs(1, 1)), 1);
    let written = Look::There(Bare::entry(3, Some(attrs(9, 1)), 8));
    bare.answer(
        Answer::Looked {
            look: written,
            rival: None,
        },
        1,
    );
    let entry = Bare::entry(3, Some(attrs(1, 1)), 9);
    bare.answer(Answer::Written { entry, rival: None }, 1);
    // Much later another node has the address, and takes the key.
    let taken = Look::There(Bare::entry(3, Some(attrs(9, 1)), 20));
    let actions = bare.on(Event::Observed(taken), 100);
    assert!(
        matches!(&actions[..], [Action::Revoked(Revocation::Taken(..))]),
        "{actions:?}"
    );
}

#[test]
fn a_failed_request_is_followed_by_nothing_before_a_retry() {
    let mut bare = Bare::holding();
    bare.on(Event::Publish(attrs(1, 2)), 1);
    assert_eq!(bare.on(Event::Failed, 1), []);
    for _ in 0..3 {
        assert_eq!(bare.on(Event::Tick, 600), []);
    }
    assert!(Bare::looks(&bare.on(Event::Retry, 600)));
}

#[test]
fn a_creation_whose_answer_was_lost_with_the_store_s_history_leaves_no_second_key() {
    let mut bare = Bare::creating();
    bare.on(Event::Failed, 1);
    bare.on(Event::HistoryLost, 1);
    assert!(Bare::looks(&bare.on(Event::Retry, 1)));
    let look = Look::There(Bare::entry(3, Some(attrs(1, 1)), 2));
    bare.answer(Answer::Looked { look, rival: None }, 1);
    assert_eq!(bare.0.key(), Some(key(3)));
}
