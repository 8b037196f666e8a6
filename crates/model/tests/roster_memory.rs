//! What the leases of a large network cost. Alone in its program: it counts every allocation.

#![allow(unsafe_code, reason = "counts allocations")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use model::roster::{Claims, Roster, RosterChange};
use model::{BackendType, Dual, Lease, LeaseAttrs, NetConfig};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

/// As glibc rounds: 8 bytes of its own, multiples of 16.
fn rounded(size: usize) -> usize {
    (size + 8).next_multiple_of(16).max(32)
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(rounded(layout.size()), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.fetch_sub(rounded(layout.size()), Ordering::Relaxed);
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn lease(n: u32) -> Lease {
    let ip = std::net::Ipv4Addr::from_bits(0xac10_0000 + n);
    let mac = format!(
        "ce:9c:a9:{:02x}:{:02x}:{:02x}",
        n >> 16,
        n >> 8 & 255,
        n & 255
    );
    let json = format!(
        r#"{{"PublicIP":"{ip}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    );
    let net =
        ipnet::Ipv4Net::new(std::net::Ipv4Addr::from_bits(0x0a00_0000 + (n << 8)), 24).unwrap();
    let key = model::SubnetKey::new(Dual {
        v4: Some(net.into()),
        v6: None,
    })
    .unwrap();
    Lease {
        key,
        attrs: LeaseAttrs::from_json(json.as_bytes()).unwrap(),
        seniority: u64::from(n),
    }
}

/// Stands for the MAC.
fn claims(attrs: &LeaseAttrs) -> Claims {
    attrs.data.map(|_, data| {
        data.get()
            .bytes()
            .fold(7u64, |n, b| n.wrapping_mul(31).wrapping_add(u64::from(b)))
    })
}

#[test]
fn fifteen_thousand_leases_fit_in_five_mebibytes() {
    let config = NetConfig::from_json(r#"{"Network":"10.0.0.0/8"}"#).unwrap();
    let mut roster = Roster::new(&config, BackendType::Vxlan, claims);
    let before = HELD.load(Ordering::Relaxed);
    for n in 1..=15_000 {
        let changes = roster.put(lease(n));
        assert!(
            matches!(changes[..], [RosterChange::Accept(_)]),
            "{changes:?}"
        );
    }
    let held = HELD.load(Ordering::Relaxed) - before;
    assert!(
        held <= 5 << 20,
        "{held} bytes held, {} a lease",
        held / 15_000
    );

    for n in 1..=15_000 {
        assert_eq!(roster.remove(&lease(n).key).len(), 1);
    }
    assert_eq!(roster.accepted_len(), 0);
}
