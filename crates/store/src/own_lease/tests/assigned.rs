//! A node whose subnet is assigned: its lease is always written as desired, and lost only with its subnet.

use std::time::Duration;

use model::LeaseAttrs;

use super::super::*;
use super::sim::{attrs, key};

fn at(seconds: u64) -> Time {
    Duration::from_secs(seconds)
}

fn entry(attrs: Option<LeaseAttrs>, mark: u32) -> Entry<u32> {
    Entry {
        key: key(3),
        attrs,
        signature: None,
        life: Life::Reserved,
        seniority: 1,
        fits: true,
        mark,
    }
}

fn start() -> OwnLease<u32> {
    let policy = Policy {
        contended: false,
        ..Policy::default()
    };
    OwnLease::assigned(entry(None, 1), attrs(1, 1), WriterId(1), policy, at(0))
}

fn writes(actions: &[Action<u32>]) -> bool {
    let over_and_unsigned = |value: &Value| value.attrs == attrs(1, 1) && value.signature.is_none();
    actions.iter().any(
        |action| matches!(action, Action::Do(Request::Write { value, .. }) if over_and_unsigned(value)),
    )
}

fn written(mark: u32) -> Event<u32> {
    Event::Answer(Answer::Written {
        entry: entry(Some(attrs(1, 1)), mark),
        rival: None,
    })
}

fn says(actions: &[Action<u32>]) -> bool {
    actions
        .iter()
        .any(|a| matches!(a, Action::Say(Notice::Overwritten(..))))
}

#[test]
fn a_foreign_write_is_corrected_at_a_known_time_however_often_it_comes() {
    let mut lease = start();
    assert!(writes(&lease.on(Event::Want(attrs(1, 1)), at(0))));
    lease.on(written(2), at(0));
    let mut now = at(1);
    for round in 0..20 {
        // Of another node, and of ours with other data: neither takes the subnet away.
        let foreign = attrs(1 + round % 2, 9);
        let look = Look::There(entry(Some(foreign), 10 + u32::from(round) * 2));
        let mut actions = lease.on(Event::Observed(look), now);
        assert!(says(&actions), "{actions:?}");
        if !writes(&actions) {
            let Some(Action::WakeAt(at)) = actions.last() else {
                panic!("it is not corrected: {actions:?}");
            };
            assert!(*at <= now + Duration::from_secs(10));
            now = *at;
            actions = lease.on(Event::Tick, now);
        }
        assert!(writes(&actions), "{actions:?}");
        lease.on(written(11 + u32::from(round) * 2), now);
        now += Duration::from_millis(100);
    }
}

#[test]
fn a_lost_answer_is_resolved_by_looking() {
    for arrived in [false, true] {
        let mut lease = start();
        assert!(writes(&lease.on(Event::Want(attrs(1, 1)), at(0))));
        assert_eq!(lease.on(Event::Answer(Answer::Failed), at(0)), []);
        let looks = lease.on(Event::Retry, at(1));
        assert_eq!(looks, [Action::Do(Request::Look { key: key(3) })]);
        let shown = if arrived {
            entry(Some(attrs(1, 1)), 2)
        } else {
            entry(None, 1)
        };
        let answer = Answer::Looked {
            look: Look::There(shown),
            rival: None,
        };
        let actions = lease.on(Event::Answer(answer), at(1));
        assert_eq!(writes(&actions), !arrived, "{actions:?}");
        assert!(!says(&actions));
    }
}

#[test]
fn what_was_gone_is_written_again_and_is_nobodys_foreign_write() {
    let mut lease = start();
    lease.on(Event::Want(attrs(1, 1)), at(0));
    lease.on(written(2), at(0));
    for cause in [Cause::Deleted, Cause::Lost] {
        assert_eq!(lease.on(Event::Observed(Look::Gone(cause)), at(1)), []);
        assert_eq!(
            lease.on(Event::Tick, at(100)),
            [],
            "there is nothing to write to"
        );
        let actions = lease.on(Event::Observed(Look::There(entry(None, 5))), at(200));
        assert!(writes(&actions) && !says(&actions), "{actions:?}");
        lease.on(written(6), at(200));
    }
    let why = || "another podCIDR".to_owned();
    let lost = Revocation::Reassigned(key(3), why());
    assert_eq!(
        lease.on(Event::Reassigned(why()), at(201)),
        [Action::Revoked(lost)]
    );
    assert!(lease.is_over());
}
