//! The daemon as a whole: real ones in the lab, on a real kernel, with a real etcd or a directory.
//! Every row of the table of faults it must survive is a test here, with its figure measured
//! (`--nocapture` shows them).

//!
//! Faults of an earlier review, and where each is tested now:
//!
//! | fault | test |
//! |---|---|
//! | the underlay's interface is renamed | `between_runs`; conformance `what_cannot_be_recreated_is_not_deleted` |
//! | an administrator's routes after a take-over; a node without peers | `between_runs` |
//! | ready without a device, or without an address | `host` |
//! | a failure that is over hides the next one | `between_runs` |
//! | which IPv6 address at the start; a second one before a restart | `iface` (unit tests), `between_runs` |
//! | IPv6 alone, without any IPv4 table | conformance `a_host_that_never_had_ipv4` |
//! | another VNI, port or backend than before | `former` |
//! | another program's next-hop object under our number | `between_runs` |
//! | another port, VNI or interface in an FDB entry; a bridge or VRF above the device; `subnet.env` deleted | `attributes`, `host` |
//! | thousands of routes on the host's interface; a fight over one route | `fights` |
//! | a device with our name as an alternative one | conformance `a_device_with_our_name_as_an_alternative_one_is_left_alone` |
//! | another address while the daemon was stopped | `between_runs` |
//! | a lease that covers the underlay | `host`, `connected` |
//! | the better default route has no carrier | `iface` (unit tests) |
//! | a user's own jump into our chain | the rules' unit tests, `an_administrators_own_jump_into_our_chain_stays` |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

#[path = "../../../store/tests/store/kube/api.rs"]
#[allow(dead_code, reason = "more of it is used by the store's own tests")]
mod api;
mod attributes;
mod between_runs;
mod confined;
mod connected;
mod crowd;
mod embed;
mod etcd_access;
mod etcd_cluster;
mod etcd_faults;
mod extension;
mod families;
mod fights;
mod flow;
mod foreign;
mod former;
mod guard;
mod health;
mod host;
mod hostile;
mod hostile_stores;
mod hung_directory;
mod ipsec;
mod lies;
mod live_change;
mod live_tunnels;
mod metrics;
mod mixed;
mod offload;
mod page;
mod probes;
#[path = "../../../flannelctl/tests/check/relay.rs"]
mod relay;
mod repair;
mod restart;
mod revoked;
mod scene;
#[path = "../seen/mod.rs"]
mod seen;
mod service;
mod traffic;
mod twice;
mod two_networks;
mod udp;
mod underlay;
mod upgrade;
mod usage;
mod wireguard;
mod wireguard_kernel;
