//! What a new device of ours is told not to believe. Anybody who can send UDP to the tunnel's port can
//! put a frame on a VXLAN device, a router advertisement or an ICMP redirect included (CVE-2020-10749).
//! The kernel believes both by default where the host does not forward IPv6.
//!
//! None of this is certain to work (`/proc/sys` is read-only in a container and under systemd's
//! `ProtectKernelTunables`), so failures are not reported: [`crate::guard`] drops the packets anyway.

use std::fs;
use std::net::IpAddr;

use model::IfName;
use model::object::LinkKind;

use super::encode;
use super::socket::Requests;
use super::uapi::*;
use super::wire::Batch;

/// Per-device switches that are turned off, below `/proc/sys/net`.
const SWITCHES: [(&str, &str); 3] = [
    ("ipv6", "accept_ra"),
    ("ipv6", "accept_redirects"),
    ("ipv4", "accept_redirects"),
];

/// Makes the new device `index` ignore router advertisements and redirects, as far as the caller is
/// allowed to. A device that carries IPv4 only gets no IPv6 link-local address either. The device
/// must still be down: both take effect when it comes up.
pub fn distrust(requests: &mut Requests, index: u32, name: &IfName, kind: &LinkKind) {
    if let Some(IpAddr::V4(_)) = kind.local() {
        let body = encode::link_body(index, None);
        let attrs = |batch: &mut Batch| {
            let families = batch.nest(IFLA_AF_SPEC);
            let ipv6 = batch.nest(u16::from(AF_INET6));
            batch.attr(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
            batch.end(ipv6);
            batch.end(families);
        };
        // Refused where the kernel has no IPv6: then there is no such address.
        let _ = requests.call(RTM_NEWLINK, 0, &body, attrs, |_| {});
    }
    for (family, switch) in SWITCHES {
        let _ = fs::write(format!("/proc/sys/net/{family}/conf/{name}/{switch}"), "0");
    }
}
