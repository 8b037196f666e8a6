//! Tests of `table`.

use std::collections::BTreeMap;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::object::Slots;

struct Num;
impl Kind for Num {
    type Key = u8;
    type Value = u8;
    const NAME: &'static str = "number";
    fn device(_: &u8, _: &u8) -> Option<crate::IfName> {
        None
    }
    fn put(f: &mut std::fmt::Formatter<'_>, key: &u8, value: &u8) -> std::fmt::Result {
        write!(f, "put {key} {value}")
    }
    fn del(f: &mut std::fmt::Formatter<'_>, key: &u8, _: &u8) -> std::fmt::Result {
        write!(f, "del {key}")
    }
    fn in_place(old: &u8, new: &u8) -> bool {
        old % 2 == new % 2
    }
}

fn puts(t: &mut Table<Num>) -> Vec<u8> {
    let mut keys = Vec::new();
    t.puts(usize::MAX, |_, _| true, |key, _| keys.push(key));
    keys
}

fn dels(t: &mut Table<Num>) -> Vec<u8> {
    let mut keys = Vec::new();
    t.dels(usize::MAX, |_, _| true, |key, _| keys.push(key));
    keys
}

fn unwant(t: &mut Table<Num>, key: u8) {
    if t.desired(&key).is_some() {
        let slot = t.find(&key).unwrap();
        t.release(slot);
    }
}

fn refusal(errno: i32) -> Retry {
    Retry {
        errno,
        reason: "no".into(),
        since: Instant::now(),
        tries: 1,
    }
}

#[test]
fn a_change_is_what_separates_desired_from_observed() {
    let mut t = Table::<Num>::default();
    t.want(1, 10, 0);
    assert_eq!(t.change_of(&1), Some(Change::Put(10)));
    t.observe(1, 10);
    assert_eq!(t.change_of(&1), None);
    t.want(1, 12, 0);
    assert_eq!(t.change_of(&1), Some(Change::Put(12)));
    t.want(1, 11, 0);
    assert_eq!(t.change_of(&1), Some(Change::Recreate { old: 10, new: 11 }));
    t.want(1, 10, 0);
    assert!(t.in_sync(), "back to what the kernel holds");
    unwant(&mut t, 1);
    assert_eq!(t.change_of(&1), Some(Change::Del(10)));
    t.gone(&1);
    assert!(t.in_sync() && t.desired(&1).is_none());
}

#[test]
fn an_audit_finds_what_is_missing_and_what_is_foreign() {
    let mut t = Table::<Num>::default();
    for key in 0..3 {
        t.want(key, key, 0);
        t.observe(key, key);
    }
    t.begin_audit();
    t.observe(0, 0);
    t.observe(1, 7);
    t.observe(9, 9);
    assert_eq!(t.end_audit(), 1);
    assert_eq!(puts(&mut t), [1, 2]);
    assert_eq!(dels(&mut t), [9]);
}

#[test]
fn a_stale_notice_cancels_nothing() {
    let mut t = Table::<Num>::default();
    t.want(1, 10, 0);
    t.observe(1, 10);
    t.want(1, 12, 0);
    assert!(t.notify(1, Some(12)), "from before we wrote 10");
    assert_eq!(t.change_of(&1), Some(Change::Put(12)));
    t.observe(1, 12);
    unwant(&mut t, 1);
    assert!(t.notify(1, None), "from before we wrote 12");
    assert_eq!(t.change_of(&1), Some(Change::Del(12)));
    t.gone(&1);
    assert!(t.notify(1, Some(3)) && t.change_of(&1) == Some(Change::Del(3)));
}

#[derive(Clone, Debug)]
enum Step {
    Want(u8, u8),
    Unwant(u8),
    KernelSet(u8, u8),
    KernelDel(u8),
    Audit,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..6u8, 0..4u8).prop_map(|(k, v)| Step::Want(k, v)),
        (0..6u8).prop_map(Step::Unwant),
        (0..6u8, 0..4u8).prop_map(|(k, v)| Step::KernelSet(k, v)),
        (0..6u8).prop_map(Step::KernelDel),
        Just(Step::Audit),
    ]
}

#[derive(Clone, Debug)]
enum Late {
    Want(u8, u8),
    Unwant(u8),
    /// Somebody else writes or deletes; the notification is on its way.
    KernelSet(u8, u8),
    KernelDel(u8),
    /// So many notifications arrive.
    Notify(usize),
    /// What is needed is done.
    Work,
    /// A full look, without waiting for the notifications that are on their way.
    Audit,
}

fn late() -> impl Strategy<Value = Late> {
    prop_oneof![
        (0..3u8, 0..3u8).prop_map(|(k, v)| Late::Want(k, v)),
        (0..3u8).prop_map(Late::Unwant),
        (0..3u8, 0..3u8).prop_map(|(k, v)| Late::KernelSet(k, v)),
        (0..3u8).prop_map(Late::KernelDel),
        (1..4usize).prop_map(Late::Notify),
        Just(Late::Work),
        Just(Late::Audit),
    ]
}

fn work(t: &mut Table<Num>, kernel: &mut BTreeMap<u8, u8>) {
    for k in dels(t).into_iter().chain(puts(t)) {
        match t.change_of(&k) {
            Some(Change::Put(v) | Change::Recreate { new: v, .. }) => {
                kernel.insert(k, v);
                t.observe(k, v);
            }
            Some(Change::Del(_)) => {
                kernel.remove(&k);
                t.gone(&k);
            }
            None => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// However late notifications come, between whichever changes of what is desired: once all have
    /// come and what is needed then is done, kernel and desired are equal.
    #[test]
    fn converges_with_late_notifications(steps in proptest::collection::vec(late(), 0..30)) {
        let mut t = Table::<Num>::default();
        let (mut desired, mut kernel) = (BTreeMap::new(), BTreeMap::new());
        let mut coming = VecDeque::new();
        for step in steps.into_iter().chain([Late::Notify(usize::MAX), Late::Work]) {
            match step {
                Late::Want(k, v) => { t.want(k, v, 0); desired.insert(k, v); }
                Late::Unwant(k) => { unwant(&mut t, k); desired.remove(&k); }
                Late::KernelSet(k, v) => { kernel.insert(k, v); coming.push_back((k, Some(v))); }
                Late::KernelDel(k) => {
                    if kernel.remove(&k).is_some() {
                        coming.push_back((k, None));
                    }
                }
                Late::Notify(most) => {
                    for (k, v) in coming.drain(..most.min(coming.len())) {
                        t.notify(k, v);
                    }
                }
                Late::Work => work(&mut t, &mut kernel),
                Late::Audit => {
                    t.begin_audit();
                    for (k, v) in &kernel { t.observe(*k, *v); }
                    t.end_audit();
                }
            }
        }
        prop_assert_eq!(&kernel, &desired);
        prop_assert!(t.in_sync());
    }
}

proptest! {
    /// Whatever happens in whatever order, applying the changes makes kernel and desired equal.
    #[test]
    fn converges(steps in proptest::collection::vec(step(), 0..60)) {
        let mut t = Table::<Num>::default();
        let (mut desired, mut kernel) = (BTreeMap::new(), BTreeMap::new());
        for step in steps {
            match step {
                Step::Want(k, v) => { t.want(k, v, 0); desired.insert(k, v); }
                Step::Unwant(k) => { unwant(&mut t, k); desired.remove(&k); }
                Step::KernelSet(k, v) => { kernel.insert(k, v); t.observe(k, v); }
                Step::KernelDel(k) => { kernel.remove(&k); t.gone(&k); }
                Step::Audit => {
                    t.begin_audit();
                    for (k, v) in &kernel { t.observe(*k, *v); }
                    t.end_audit();
                }
            }
        }
        let dels: Vec<u8> = dels(&mut t);
        let puts: Vec<u8> = puts(&mut t);
        for k in dels.into_iter().chain(puts) {
            match t.change_of(&k) {
                Some(Change::Put(v)) => {
                    prop_assert!(kernel.get(&k).is_none_or(|old| Num::in_place(old, &v)));
                    kernel.insert(k, v);
                    t.observe(k, v);
                }
                Some(Change::Del(v)) => { prop_assert_eq!(kernel.remove(&k), Some(v)); t.gone(&k); }
                Some(Change::Recreate { old, new }) => {
                    prop_assert_eq!(kernel.get(&k), Some(&old));
                    kernel.insert(k, new);
                    t.observe(k, new);
                }
                None => prop_assert!(false, "{} filed without a change", k),
            }
        }
        prop_assert!(t.in_sync());
        prop_assert_eq!(t.desired_len(), desired.len());
        prop_assert_eq!(kernel, desired);
    }
}

#[test]
fn a_refusal_keeps_its_reason_and_counts() {
    let mut t = Table::<Num>::default();
    t.want(1, 10, 0);
    t.refuse(&1, refusal(1));
    assert!(puts(&mut t).is_empty() && !t.in_sync() && t.refused == 1);
    t.retry_refused();
    assert_eq!(puts(&mut t), [1]);
    t.refuse(&1, refusal(2));
    let slot = t.find(&1).unwrap();
    assert_eq!(t.refusals[&slot].tries, 2);
    assert_eq!(t.refusals[&slot].errno, 2);
    t.observe(1, 10);
    assert!(t.in_sync() && t.refusals.is_empty() && t.refused == 0);
}

#[test]
fn of_two_owners_the_lower_has_the_key_and_the_other_inherits_it() {
    for order in [[1, 2], [2, 1]] {
        let mut t = Table::<Num>::default();
        let claims = order.map(|owner| t.want(7, owner as u8 * 10, owner));
        assert_eq!(t.desired(&7), Some(&10));
        assert_eq!(t.contested().len(), 1);
        assert_eq!(
            (claims[1].lost, claims[1].won_from),
            match order[0] {
                1 => (true, None),
                _ => (false, Some(2)),
            }
        );
        assert_eq!(t.release(claims[0].slot), Some(2));
        assert_eq!((t.desired(&7), t.contested().len()), (Some(&20), 0));
        assert_eq!(t.release(claims[0].slot), None);
        assert_eq!(t.desired(&7), None);
        assert!(puts(&mut t).is_empty() && t.entries.iter().count() == 0);
    }
}

#[test]
fn a_look_that_never_ends_well_hides_nothing() {
    let mut t = Table::<Num>::default();
    t.want(1, 10, 0);
    t.observe(1, 10);
    for _ in 0..=u16::MAX {
        t.begin_audit();
    }
    assert_eq!(t.end_audit(), 1);
}

#[test]
fn what_was_begun_is_deleted_when_it_is_not_desired_any_more() {
    for fails in [false, true] {
        let mut t = Table::<Num>::default();
        t.want(1, 10, 0);
        assert_eq!(puts(&mut t), [1]);
        t.set_under_way(&1);
        if fails {
            t.refuse(&1, refusal(5));
        }
        assert!(puts(&mut t).is_empty() && dels(&mut t).is_empty());
        unwant(&mut t, 1);
        assert_eq!((dels(&mut t), t.stray_len()), (vec![1], 1));
        t.gone(&1);
        assert_eq!(t.stray_len(), 0);
    }
}
