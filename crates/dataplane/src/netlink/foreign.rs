//! The deletion of a route in a form that we never write (several gateways, an encapsulation, …) and
//! that stands on a device of ours. The model does not hold all of it, so the kernel is asked for it,
//! and the answer is sent back as the thing to delete: no other route can be meant.

use model::object::RouteKey;
use model::{Family, IfName};

use super::link;
use super::observe::{Asked, dump_some_routes};
use super::socket::Requests;
use super::uapi::*;
use super::wire::{Attrs, Batch};
use crate::failure::Failure;

/// Deletes the route `key`, written by `protocol`, out of `dev`.
///
/// # Errors
/// The kernel's refusal; `ESRCH` if there is none.
pub fn delete(
    requests: &mut Requests,
    key: &RouteKey,
    protocol: u8,
    dev: &IfName,
) -> Result<(), Failure> {
    let index = link::index_of(requests, dev)?;
    let asked = Asked {
        index,
        protocol,
        rtn: RTN_UNICAST,
    };
    let mut found: Option<(bool, Vec<u8>)> = None;
    dump_some_routes(requests, Family::of_net(&key.dst), asked, |raw, message| {
        if raw.key() == *key && found.is_none() {
            found = Some((raw.next_hop.is_some(), message.body.to_vec()));
        }
    })?;
    let Some((by_number, shown)) = found else {
        return Err(Failure::errno(libc::ESRCH));
    };
    let (fixed, attrs) = shown.split_at_checked(12).unwrap_or_default();
    let mut body = [0; 12];
    // The rest is state that the kernel shows and does not take.
    body[..8].copy_from_slice(fixed.get(..8).unwrap_or(&[0; 8]));
    let attrs = |batch: &mut Batch| {
        for (kind, value) in Attrs(attrs).filter(|(kind, _)| names_it(*kind, by_number)) {
            batch.attr(kind, value);
        }
    };
    requests.call(RTM_DELROUTE, 0, &body, attrs, |_| {})
}

/// Whether the kernel wants this attribute in order to know which route is meant. Of a route through a
/// next-hop object the number is enough, and more is refused.
fn names_it(kind: u16, by_number: bool) -> bool {
    match kind {
        RTA_DST | RTA_PRIORITY | RTA_PREFSRC | RTA_NH_ID => true,
        RTA_OIF | RTA_GATEWAY | RTA_VIA | RTA_MULTIPATH => !by_number,
        _ => false,
    }
}
