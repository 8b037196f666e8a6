//! Nodes that probe each other over a network made of rules.

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn v4(ip: IpAddr) -> Dual<IpAddr> {
    Dual {
        v4: Some(ip),
        v6: None,
    }
}

/// Node `n` of up to 65,000: its subnet and public address.
fn target(n: u32) -> Target {
    let key = format!("10.{}.{}.0-24", 64 + n / 256, n % 256);
    let public_ip = IpAddr::from([192, 168, (n / 256) as u8, (n % 256) as u8]);
    Target::new(key.parse().unwrap(), v4(public_ip))
}

/// What node `own` knows of `count` nodes.
fn view(own: u32, count: u32) -> View {
    let me = target(own);
    View {
        version: 1,
        underlay: me.public_ip(),
        overlay: v4(me.overlay(Family::V4).unwrap()),
        mtu: 1450,
        tunnel: "vxlan (UDP 8472)".to_owned(),
        targets: (0..count).filter(|n| *n != own).map(target).collect(),
    }
}

/// Two nodes and what lies between them.
struct Pair {
    nodes: [Mesh; 2],
    now: Duration,
}

/// What passes: from the first node to the second, by this way, of this length.
type Rule = fn(bool, Way, usize) -> bool;

impl Pair {
    fn new() -> Pair {
        let mut nodes = [Mesh::new(), Mesh::new()];
        nodes[0].update(view(0, 2));
        nodes[1].update(view(1, 2));
        Pair {
            nodes,
            now: Duration::from_secs(1),
        }
    }

    fn run(&mut self, seconds: u32, passes: Rule) {
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            for n in 0..2 {
                let sent = self.nodes[n].tick(self.now, |_, _| true);
                for one in sent {
                    self.nodes[n].sent(one.nonce, self.now);
                    if !passes(n == 0, one.way, one.bytes.len()) {
                        continue;
                    }
                    let arrival = self.now + Duration::from_micros(100);
                    let from = source(n as u32, one.way);
                    let there = &mut self.nodes[1 - n];
                    let Some((answer, _)) = there.receive(arrival, from, one.way, &one.bytes)
                    else {
                        continue;
                    };
                    if passes(n != 0, one.way, answer.len()) {
                        let back = self.now + Duration::from_micros(250);
                        let none = self.nodes[n].receive(back, one.to, one.way, &answer);
                        assert_eq!(none, None, "an answer is not answered");
                    }
                }
            }
        }
    }

    fn state(&self) -> (ProbeState, Option<Cause>) {
        let key = target(1).key();
        let state = self.nodes[0].one(&key, |seen| (seen.state, seen.cause));
        state.unwrap()
    }
}

fn source(n: u32, way: Way) -> IpAddr {
    match way {
        Way::Overlay => target(n).overlay(Family::V4).unwrap(),
        Way::Underlay => target(n).public_ip().v4.unwrap(),
    }
}

#[test]
fn a_healthy_pair_measures_both_ways_and_full_size() {
    let mut pair = Pair::new();
    pair.run(20, |_, _, _| true);
    assert_eq!(pair.state(), (ProbeState::Reachable, None));
    pair.nodes[0].each(|seen| {
        let links = seen.links.v4.as_ref().unwrap();
        assert_eq!(links.main.rtt(), Some(Duration::from_micros(250)));
        assert_eq!(links.underlay.and_then(|track| track.loss()), Some(0.0));
        assert!(links.full.is_good());
    });
    assert_eq!(pair.nodes[0].changes(), []);
    assert_eq!(pair.nodes[0].totals.lost, 0);
}

#[test]
fn a_small_mtu_on_the_way_is_named_and_forgotten_when_it_is_over() {
    let mut pair = Pair::new();
    pair.run(5, |_, _, _| true);
    pair.run(60, |_, _, len| len < 1400);
    assert_eq!(pair.state(), (ProbeState::Failing, Some(Cause::Mtu)));
    let changes = pair.nodes[0].changes();
    assert_eq!(changes.len(), 1, "{changes:?}");
    pair.run(60, |_, _, _| true);
    assert_eq!(pair.state(), (ProbeState::Reachable, None));
    assert_eq!(pair.nodes[0].changes()[0].state, ProbeState::Reachable);
}

#[test]
fn losses_of_every_size_are_no_fault_of_the_mtu() {
    let mut pair = Pair::new();
    pair.run(20, |_, _, _| true);
    // As where somebody uses up the node's answers: full ones never pass, small ones now and then.
    for _ in 0..30 {
        pair.run(1, |_, _, _| false);
        pair.run(2, |_, _, len| len < 1400);
        assert_ne!(pair.state().0, ProbeState::Failing);
    }
}

#[test]
fn a_silence_is_judged_once_from_the_evidence() {
    let mut pair = Pair::new();
    pair.run(5, |_, _, _| true);
    // The tunnel's packets do not reach the other node.
    pair.run(15, |first, way, _| !(first && way == Way::Overlay));
    assert_eq!(pair.state(), (ProbeState::Unknown, None));
    let cases = pair.nodes[0].cases(10);
    let [case] = cases[..] else {
        panic!("{cases:?}")
    };
    assert_eq!(case.public_ip, target(1).public_ip().v4);
    let evidence = Evidence {
        underlay: Underlay::Answered,
        underlay_ping: Some(true),
        overlay_ping: Some(false),
        ..Evidence::default()
    };
    let now = pair.now;
    pair.nodes[0].judge(&case, evidence, Some(9), None, now);
    let filtered = (ProbeState::Failing, Some(Cause::TunnelFiltered));
    assert_eq!(pair.state(), filtered);
    pair.run(10, |first, way, _| !(first && way == Way::Overlay));
    assert_eq!(pair.state(), filtered);
    assert_eq!(pair.nodes[0].changes().len(), 1);
    pair.run(10, |_, _, _| true);
    assert_eq!(pair.state(), (ProbeState::Reachable, None));
}

#[test]
fn an_outage_that_is_over_before_it_is_looked_at_is_no_fault() {
    let mut pair = Pair::new();
    pair.run(20, |_, _, _| true);
    pair.run(10, |_, _, _| false);
    let [case] = pair.nodes[0].cases(10)[..] else {
        panic!("no case")
    };
    let evidence = Evidence {
        underlay: Underlay::Answered,
        underlay_ping: Some(true),
        overlay_ping: Some(true),
        unchecked: true,
        answered: true,
        ..Evidence::default()
    };
    let now = pair.now;
    pair.nodes[0].judge(&case, evidence, None, None, now);
    assert_eq!(pair.state(), (ProbeState::Unknown, None));
    pair.run(1, |_, _, _| true);
    assert_eq!(pair.state(), (ProbeState::Reachable, None));
    assert_eq!(pair.nodes[0].changes(), []);
}

#[test]
fn a_node_whose_flanneld_stops_after_a_fault_has_not_recovered() {
    let mut pair = Pair::new();
    pair.run(5, |_, _, _| true);
    let states: Vec<ProbeState> = [Underlay::Unreachable, Underlay::Refused]
        .into_iter()
        .flat_map(|underlay| {
            pair.run(40, |_, _, _| false);
            let [case] = pair.nodes[0].cases(10)[..] else {
                panic!("no case")
            };
            let evidence = Evidence {
                underlay,
                underlay_ping: Some(underlay == Underlay::Refused),
                ..Evidence::default()
            };
            let now = pair.now;
            pair.nodes[0].judge(&case, evidence, None, None, now);
            pair.nodes[0].changes()
        })
        .map(|change| change.state)
        .collect();
    assert_eq!(states, [ProbeState::Failing, ProbeState::Silent]);
}

#[test]
fn many_silent_nodes_and_changes_every_second_keep_no_other_from_its_turn() {
    let mut mesh = Mesh::new();
    mesh.update(view(0, 1502));
    let mut now = Duration::from_secs(1);
    let answers = source(1, Way::Overlay);
    let run = |mesh: &mut Mesh, now: &mut Duration, seconds: u32| {
        let mut asked = 0;
        for _ in 0..seconds {
            *now += Duration::from_secs(1);
            for one in mesh.tick(*now, |_, _| true) {
                if one.to == answers {
                    asked += 1;
                    let wish = Wish::default();
                    let answer = packet::answer(one.nonce, wish, one.bytes.len(), true, 0);
                    mesh.receive(*now, one.to, one.way, &answer);
                }
            }
            for case in mesh.cases(100) {
                mesh.judge(&case, Evidence::default(), None, None, *now);
            }
        }
        asked
    };
    // Until all others are known to be silent.
    run(&mut mesh, &mut now, 1600);
    let mut asked = 0;
    for version in 2..22 {
        let mut changed = view(0, 1502);
        changed.version = version;
        mesh.update(changed);
        asked += run(&mut mesh, &mut now, 1);
    }
    assert!(asked >= 20, "{asked}");
}

#[test]
fn the_other_node_says_whether_a_request_arrived() {
    let mut pair = Pair::new();
    // The way back through the tunnel is cut, from the start.
    pair.run(15, |first, way, _| first || way == Way::Underlay);
    let [case] = pair.nodes[0].cases(10)[..] else {
        panic!("no case")
    };
    let (now, from) = (pair.now, source(0, Way::Underlay));
    let ask = packet::request(7, packet::HEADER, Wish::default());
    let answer = pair.nodes[1].receive(now, from, Way::Underlay, &ask);
    let (bytes, _) = answer.unwrap();
    let Some(Datagram::Answer { seen, .. }) = packet::parse(&bytes) else {
        panic!("{bytes:?}")
    };
    let evidence = Evidence {
        underlay: Underlay::Answered,
        ..Evidence::default()
    };
    pair.nodes[0].judge(&case, evidence, Some(seen), None, now);
    assert_eq!(pair.state().1, Some(Cause::NoRouteBack));
}

#[test]
fn whoever_does_not_know_the_number_or_sends_from_elsewhere_changes_nothing() {
    let mut mesh = Mesh::new();
    mesh.update(view(0, 3));
    let mut now = Duration::from_secs(1);
    let sent = mesh.tick(now, |_, _| true);
    let nonce = sent[0].nonce;
    let stranger = ip("192.0.2.1");
    let peers = [source(1, Way::Overlay), source(2, Way::Overlay)];
    let others = peers.into_iter().filter(|other| *other != sent[0].to);
    for from in others.chain([stranger]) {
        let forged = packet::answer(nonce, Wish::default(), packet::HEADER, true, 0);
        assert_eq!(mesh.receive(now, from, Way::Overlay, &forged), None);
    }
    let guessed = packet::answer(nonce ^ 1, Wish::default(), packet::HEADER, true, 0);
    assert_eq!(mesh.receive(now, sent[0].to, Way::Overlay, &guessed), None);
    assert_eq!((mesh.totals.answered, mesh.totals.lost), (0, 0));
    // Strangers get no answer, nodes get so many.
    let ask = packet::request(1, packet::HEADER, Wish::default());
    assert_eq!(mesh.receive(now, stranger, Way::Underlay, &ask), None);
    let from = source(1, Way::Underlay);
    let answered = (0..1000)
        .filter(|_| mesh.receive(now, from, Way::Underlay, &ask).is_some())
        .count();
    assert!((1..100).contains(&answered), "{answered}");
    let other = source(2, Way::Underlay);
    assert!(mesh.receive(now, other, Way::Underlay, &ask).is_some());
    // The number is good for one answer.
    now += Duration::from_micros(300);
    let right = packet::answer(nonce, Wish::default(), packet::HEADER, true, 0);
    for _ in 0..2 {
        mesh.receive(now, sent[0].to, Way::Overlay, &right);
    }
    assert_eq!(mesh.totals.answered, 1);
}

#[test]
fn a_change_of_the_nodes_keeps_what_is_known_of_the_others() {
    let mut pair = Pair::new();
    pair.run(5, |_, _, _| true);
    let mut more = view(0, 5);
    more.version = 2;
    pair.nodes[0].update(more);
    assert_eq!(pair.state(), (ProbeState::Reachable, None));
    let mut moved = view(0, 2);
    moved.targets[0] = Target::new(target(1).key(), v4(ip("192.168.9.9")));
    pair.nodes[0].update(moved);
    assert_eq!(pair.state(), (ProbeState::Unknown, None));
    let mut none = view(0, 1);
    none.targets.clear();
    pair.nodes[0].update(none);
    assert!(pair.nodes[0].tick(pair.now, |_, _| true).is_empty());
}

#[test]
fn every_node_gets_its_turn_within_the_budget() {
    for (count, seconds) in [(20, 20), (480, 75), (5000, 720)] {
        let mut mesh = Mesh::new();
        mesh.update(view(0, count));
        let (mut now, mut bytes) = (Duration::from_secs(1), 0);
        let mut asked = std::collections::BTreeSet::new();
        for _ in 0..seconds {
            now += Duration::from_secs(1);
            for one in mesh.tick(now, |_, _| true) {
                asked.insert(one.to);
                // Headers: IP and UDP, and the tunnel's.
                bytes += one.bytes.len() + 28 + 50;
                let wish = Wish::default();
                let answer = packet::answer(one.nonce, wish, one.bytes.len(), true, 0);
                mesh.receive(now, one.to, one.way, &answer);
            }
        }
        let reached = (1..count).filter(|n| asked.contains(&source(*n, Way::Overlay)));
        assert_eq!(reached.count() as u32, count - 1, "of {count}");
        assert!(bytes / seconds < 1200, "{} B/s of {count}", bytes / seconds);
        assert_eq!(mesh.totals.lost, 0);
    }
}

#[test]
fn nodes_that_answer_no_probes_are_left_alone_until_they_ask() {
    let mut mesh = Mesh::new();
    mesh.update(view(0, 2));
    let mut now = Duration::from_secs(1);
    let mut silent = |mesh: &mut Mesh, seconds: u32| {
        let mut sent = 0;
        for _ in 0..seconds {
            now += Duration::from_secs(1);
            sent += mesh.tick(now, |_, _| true).len();
            for case in mesh.cases(9) {
                mesh.judge(&case, Evidence::default(), None, None, now);
            }
        }
        (sent, now)
    };
    let (first, _) = silent(&mut mesh, 20);
    assert!(first >= 3);
    let key = target(1).key();
    let state = mesh.one(&key, |seen| (seen.state, seen.cause)).unwrap();
    assert_eq!(state, (ProbeState::Silent, Some(Cause::NeverHeard)));
    let (few, at) = silent(&mut mesh, 300);
    assert!(few < 8, "{few}");
    assert_eq!(mesh.changes(), []);
    let ask = packet::request(1, packet::HEADER, Wish::default());
    mesh.receive(at, source(1, Way::Underlay), Way::Underlay, &ask);
    let (again, _) = silent(&mut mesh, 2);
    assert!(again > 0);
}

#[test]
fn a_thousand_nodes_that_never_answered_cost_little() {
    let mut mesh = Mesh::new();
    mesh.update(view(0, 1001));
    let dead = Evidence {
        underlay: Underlay::Unreachable,
        underlay_ping: Some(false),
        ..Evidence::default()
    };
    let (mut sent, mut cases) = (0, 0);
    for second in 1..=60 {
        let now = Duration::from_secs(second);
        sent += mesh.tick(now, |_, _| true).len();
        for case in mesh.cases(32) {
            assert!(!case.heard);
            cases += 1;
            mesh.judge(&case, dead, None, None, now);
        }
    }
    // Each costs up to three probes by either way and a closer look.
    assert!((40..=72).contains(&cases), "{cases}");
    assert!(sent <= 500, "{sent}");
    // One that answers is found, and is probed as often as others that do.
    let mut now = Duration::from_secs(60);
    let mut asked = 0;
    for _ in 0..1200 {
        now += Duration::from_secs(1);
        for one in mesh.tick(now, |_, _| true) {
            if one.to == source(1, Way::Overlay) {
                asked += 1;
                let answer = packet::answer(one.nonce, Wish::default(), one.bytes.len(), true, 0);
                mesh.receive(now, one.to, one.way, &answer);
            }
        }
        for case in mesh.cases(32) {
            mesh.judge(&case, dead, None, None, now);
        }
    }
    assert!(asked > 100, "{asked}");
}

#[test]
fn a_fault_that_lasts_is_looked_at_ever_more_rarely() {
    let mut pair = Pair::new();
    pair.run(5, |_, _, _| true);
    let down = Evidence {
        underlay: Underlay::Unreachable,
        underlay_ping: Some(false),
        ..Evidence::default()
    };
    let looks = |pair: &mut Pair, seconds: u32, passes: Rule| {
        let mut looks = 0;
        for _ in 0..seconds {
            pair.run(1, passes);
            for case in pair.nodes[0].cases(1) {
                assert!(case.heard);
                looks += 1;
                let now = pair.now;
                pair.nodes[0].judge(&case, down, None, None, now);
            }
        }
        looks
    };
    let first = looks(&mut pair, 120, |_, _, _| false);
    assert!((2..=3).contains(&first), "{first}");
    let later = looks(&mut pair, 3600, |_, _, _| false);
    assert!((5..=9).contains(&later), "{later}");
    assert_eq!(pair.nodes[0].changes().len(), 1);
    // The host is up again, its tunnel is not.
    let soon = looks(&mut pair, 10, |_, way, _| way == Way::Underlay);
    assert!(soon >= 1);
}

/// Answers probes as the node that was asked would.
fn answer(mesh: &mut Mesh, one: &Outgoing, now: Duration) {
    let answer = packet::answer(one.nonce, Wish::default(), one.bytes.len(), true, 0);
    mesh.receive(now, one.to, one.way, &answer);
}

const REFUSED: Evidence = Evidence {
    underlay: Underlay::Refused,
    underlay_ping: Some(true),
    overlay_ping: None,
    is_filtered: false,
    pings_rejected: false,
    unchecked: false,
    answered: false,
    arrived: false,
    has_overlay: true,
    overlay_before: false,
    before: false,
};

#[test]
fn a_node_that_asks_does_not_wait_behind_a_thousand_that_never_answered() {
    let mut mesh = Mesh::new();
    mesh.update(view(0, 1001));
    let mut now = Duration::ZERO;
    let mut run = |mesh: &mut Mesh, seconds: u32, answers: Option<u32>| {
        let answers = answers.map(|n| source(n, Way::Overlay));
        for _ in 0..seconds {
            now += Duration::from_secs(1);
            for one in mesh.tick(now, |_, _| true) {
                if Some(one.to) == answers {
                    answer(mesh, &one, now);
                }
            }
            for case in mesh.cases(32) {
                mesh.judge(&case, Evidence::default(), None, None, now);
            }
        }
        now
    };
    let at = run(&mut mesh, 60, None);
    // Its turn has not come yet.
    let is_new = |n: &u32| {
        let probed = mesh.one(&target(*n).key(), |seen| {
            seen.links.v4.as_ref().unwrap().main.is_probed()
        });
        probed == Some(false)
    };
    let new = (1..1001).find(is_new).unwrap();
    let ask = packet::request(1, packet::HEADER, Wish::default());
    mesh.receive(at, source(new, Way::Overlay), Way::Overlay, &ask);
    run(&mut mesh, 2, Some(new));
    let state = mesh.one(&target(new).key(), |seen| seen.state);
    assert_eq!(state, Some(ProbeState::Reachable));
}

#[test]
fn a_node_that_has_answered_once_is_asked_again_in_every_round() {
    let mut mesh = Mesh::new();
    mesh.update(view(0, 2));
    let mut now = Duration::ZERO;
    let mut run = |seconds: u32, answers: bool| {
        for _ in 0..seconds {
            now += Duration::from_secs(1);
            for one in mesh.tick(now, |_, _| true) {
                if answers {
                    answer(&mut mesh, &one, now);
                }
            }
            for case in mesh.cases(9) {
                mesh.judge(&case, REFUSED, None, None, now);
            }
        }
        mesh.one(&target(1).key(), |seen| seen.state).unwrap()
    };
    assert_eq!(run(5, true), ProbeState::Reachable);
    // Its flanneld is stopped, or a firewall drops probes on both ends: neither asks the other.
    assert_eq!(run(120, false), ProbeState::Silent);
    assert_eq!(run(5, true), ProbeState::Reachable);
}

#[test]
fn nodes_that_answer_in_one_family_are_probed_as_often_as_others() {
    let count = 481;
    let both = |n: u32| {
        let Dual { v4, .. } = target(n).public_ip();
        let key = format!("10.{}.{}.0-24&fd00:{n:x}::-64", 64 + n / 256, n % 256);
        let v6 = Some(ip(&format!("fd78::{n:x}")));
        Target::new(key.parse().unwrap(), Dual { v4, v6 })
    };
    let me = both(0);
    let mut mesh = Mesh::new();
    mesh.update(View {
        version: 1,
        underlay: me.public_ip(),
        overlay: Dual::from_fn(|family| me.overlay(family)),
        mtu: 1450,
        tunnel: "vxlan (UDP 8472)".to_owned(),
        targets: (1..count).map(both).collect(),
    });
    let mut now = Duration::ZERO;
    let mut run = |seconds: u32| {
        let mut asked = std::collections::BTreeSet::new();
        for _ in 0..seconds {
            now += Duration::from_secs(1);
            for one in mesh.tick(now, |_, _| true) {
                asked.insert(one.to);
                if one.family == Family::V4 {
                    answer(&mut mesh, &one, now);
                }
            }
            for case in mesh.cases(32) {
                mesh.judge(&case, REFUSED, None, None, now);
            }
        }
        asked
    };
    run(1200);
    let asked = run(130);
    let probed = (1..count).filter(|n| {
        let all = Family::ALL.map(|family| both(*n).overlay(family).unwrap());
        all.iter().any(|ip| asked.contains(ip))
    });
    assert_eq!(probed.count() as u32, count - 1);
}

#[test]
fn what_is_under_way_to_a_node_says_nothing_of_the_one_that_takes_its_place() {
    let mut mesh = Mesh::new();
    mesh.update(view(0, 2));
    let mut now = Duration::ZERO;
    let past = loop {
        now += Duration::from_secs(1);
        let sent = mesh.tick(now, |_, _| true);
        if let Some(past) = sent.into_iter().find(|one| one.way == Way::Underlay) {
            break past;
        }
    };
    let mut replaced = view(0, 2);
    replaced.version = 2;
    replaced.targets = vec![Target::new(target(1).key(), v4(ip("192.168.9.9")))];
    mesh.update(replaced);
    answer(&mut mesh, &past, now);
    assert_eq!(mesh.totals.answered, 0);
    let lost = mesh.totals.lost;
    mesh.tick(now + PATIENCE, |_, _| false);
    assert_eq!(mesh.totals.lost, lost);
}

#[test]
fn a_firewall_is_remembered_for_a_few_looks_and_not_for_ever() {
    let filter = Filter {
        by: target(1).public_ip().v4.unwrap(),
        is_own: false,
    };
    let nothing = Evidence {
        underlay: Underlay::Silent,
        underlay_ping: Some(false),
        ..Evidence::default()
    };
    let gone = Evidence {
        underlay: Underlay::Unreachable,
        ..nothing
    };
    let find = |looks: &[(Evidence, Option<Filter>)]| -> Vec<Option<Cause>> {
        let mut pair = Pair::new();
        pair.run(5, |_, _, _| true);
        let look = |(evidence, filter): &(Evidence, Option<Filter>)| {
            let case = loop {
                pair.run(1, |_, _, _| false);
                if let Some(case) = pair.nodes[0].cases(1).pop() {
                    break case;
                }
                assert!(pair.now < Duration::from_secs(400), "no case");
            };
            let now = pair.now;
            pair.nodes[0].judge(&case, *evidence, None, *filter, now);
            pair.state().1
        };
        looks.iter().map(look).collect()
    };
    let (filtered, down) = (Some(Cause::Filtered), Some(Cause::UnderlayDown));
    let rejects = (nothing, Some(filter));
    let says_nothing = (nothing, None);
    assert_eq!(
        find(&[rejects, says_nothing, says_nothing, rejects, says_nothing]),
        [filtered; 5]
    );
    assert_eq!(
        find(&[rejects, says_nothing, says_nothing, says_nothing]),
        [filtered, filtered, filtered, down]
    );
    assert_eq!(find(&[rejects, (gone, None)]), [filtered, down]);
}
