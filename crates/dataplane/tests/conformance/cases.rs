//! The suite: every case runs against both kernels, with next-hop objects and without.

use dataplane::Scope;
use model::Object;

use crate::objects::*;
use crate::script::*;
use crate::worlds::{Fake, Real, in_namespace, on_runtime};

/// Scope and script of a case; the argument says whether there are next-hop objects.
type Case = fn(bool) -> (Scope, Vec<Step>);

macro_rules! cases {
    ($($group:ident: $($name:ident),*;)*) => {
        $(mod $group;
        $(mod $name {
            #[test]
            fn fake() {
                super::on_fake(super::$group::$name);
            }
            #[test]
            fn real() {
                super::on_real(super::$group::$name);
            }
        })*)*
    };
}

cases!(
    doings: everything_is_made_and_seen, doing_it_twice_is_silent, deleting_what_is_gone_succeeds, a_device_is_changed_in_place, what_cannot_be_recreated_is_not_deleted, a_refusal_names_its_reason, another_route_stands_in_the_way, another_kind_of_device_under_our_name;
    damage: outside_deletions_are_told, outside_changes_are_told, a_device_that_goes_down_takes_much_along, a_device_that_is_deleted_takes_all_along, the_interface_flaps, a_foreign_route_takes_our_place, everything_on_our_device_is_ours;
    foreign: what_is_foreign_wakes_nobody, two_networks_do_not_see_each_other, upstreams_routes_are_seen_when_taken_over, what_an_earlier_configuration_left_is_ours, the_hosts_changes_are_told, the_kernels_own_routes_are_never_replaced;
);

fn on_fake(case: Case) {
    for next_hops in [true, false] {
        on_runtime(|| async move {
            let world = Fake::new(next_hops);
            let (scope, steps) = case(next_hops);
            Player::new(&world, scope).await.play(&steps).await;
        });
    }
}

fn on_real(case: Case) {
    for next_hops in [true, false] {
        in_namespace(move || async move {
            let world = Real::new(next_hops);
            let (scope, steps) = case(next_hops);
            Player::new(&world, scope).await.play(&steps).await;
        });
    }
}

fn without(objects: &[Object], gone: &[Object]) -> Vec<Object> {
    objects
        .iter()
        .filter(|object| !gone.contains(object))
        .cloned()
        .collect()
}

/// One device of ours.
fn ours() -> Scope {
    scope(&[OURS])
}
