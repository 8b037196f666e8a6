//! Tests of `table`.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

struct Num;
impl Kind for Num {
    type Key = u8;
    type Value = u8;
    fn in_place(old: &u8, new: &u8) -> bool {
        old % 2 == new % 2
    }
}

#[test]
fn a_change_is_what_separates_desired_from_observed() {
    let mut t = Table::<Num>::default();
    t.want(1, 10);
    assert_eq!(t.change(&1), Some(Change::Put(10)));
    t.put_done(1, 10);
    assert_eq!(t.change(&1), None);
    t.want(1, 12);
    assert_eq!(t.change(&1), Some(Change::Put(12)));
    t.want(1, 11);
    assert_eq!(t.change(&1), Some(Change::Anew { old: 10, new: 11 }));
    t.want(1, 10);
    assert!(t.in_sync(), "back to what the kernel holds");
    t.unwant(1);
    assert_eq!(t.change(&1), Some(Change::Del(10)));
    t.del_done(1);
    assert!(t.in_sync() && t.desired(&1).is_none());
}

#[test]
fn an_audit_finds_what_is_missing_and_what_is_foreign() {
    let mut t = Table::<Num>::default();
    for key in 0..3 {
        t.want(key, key);
        t.put_done(key, key);
    }
    t.begin_audit();
    t.saw(0, 0);
    t.saw(1, 7);
    t.saw(9, 9);
    assert_eq!(t.end_audit(), 1);
    assert_eq!(t.puts().copied().collect::<Vec<_>>(), [1, 2]);
    assert_eq!(t.dels().copied().collect::<Vec<_>>(), [9]);
}

#[test]
fn a_stale_notice_cancels_nothing() {
    let mut t = Table::<Num>::default();
    t.want(1, 10);
    t.put_done(1, 10);
    t.want(1, 12);
    assert!(t.heard(1, Some(12)), "from before we wrote 10");
    assert_eq!(t.change(&1), Some(Change::Put(12)));
    t.put_done(1, 12);
    t.unwant(1);
    assert!(t.heard(1, None), "from before we wrote 12");
    assert_eq!(t.change(&1), Some(Change::Del(12)));
    t.del_done(1);
    assert!(t.heard(1, Some(3)) && t.change(&1) == Some(Change::Del(3)));
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

proptest! {
    /// Whatever happens in whatever order, applying the changes makes kernel and desired equal.
    #[test]
    fn converges(steps in proptest::collection::vec(step(), 0..60)) {
        let mut t = Table::<Num>::default();
        let (mut desired, mut kernel) = (BTreeMap::new(), BTreeMap::new());
        for step in steps {
            match step {
                Step::Want(k, v) => { t.want(k, v); desired.insert(k, v); }
                Step::Unwant(k) => { t.unwant(k); desired.remove(&k); }
                Step::KernelSet(k, v) => { kernel.insert(k, v); t.saw(k, v); }
                Step::KernelDel(k) => { kernel.remove(&k); t.gone(k); }
                Step::Audit => {
                    t.begin_audit();
                    for (k, v) in &kernel { t.saw(*k, *v); }
                    t.end_audit();
                }
            }
        }
        let dels: Vec<u8> = t.dels().copied().collect();
        let puts: Vec<u8> = t.puts().copied().collect();
        for k in dels.into_iter().chain(puts) {
            match t.change(&k) {
                Some(Change::Put(v)) => {
                    prop_assert!(kernel.get(&k).is_none_or(|old| Num::in_place(old, &v)));
                    kernel.insert(k, v);
                    t.put_done(k, v);
                }
                Some(Change::Del(v)) => { prop_assert_eq!(kernel.remove(&k), Some(v)); t.del_done(k); }
                Some(Change::Anew { old, new }) => {
                    prop_assert_eq!(kernel.get(&k), Some(&old));
                    kernel.insert(k, new);
                    t.put_done(k, new);
                }
                None => prop_assert!(false, "{} filed without a change", k),
            }
        }
        prop_assert!(t.in_sync());
        prop_assert_eq!(t.desired_len(), desired.len());
        prop_assert_eq!(kernel, desired);
    }
}
