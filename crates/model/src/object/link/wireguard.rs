//! WireGuard devices of the kernel.

use std::fmt;
use std::net::IpAddr;

use super::{Beneath, Tunnel};

/// A WireGuard device. Its key and port are a [`WgDevice`](crate::object::WgDevice), which can be changed at any
/// time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wireguard;

impl Tunnel for Wireguard {
    const NAME: &'static str = "wireguard";

    fn is_met_by(&self, _: &Wireguard) -> bool {
        true
    }

    fn in_place(&self, _: &Wireguard) -> bool {
        true
    }

    fn excludes(&self, _: &Wireguard) -> bool {
        false
    }

    fn beneath(&self) -> Option<Beneath> {
        None
    }

    fn local(&self) -> Option<IpAddr> {
        None
    }

    /// IPv6 40, UDP 8, WireGuard 32 bytes.
    fn overhead(&self) -> u32 {
        80
    }

    fn port(&self) -> Option<u16> {
        None
    }

    fn put(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}
