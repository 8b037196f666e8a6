//! TUN devices, whose other end is a program.

use std::fmt;
use std::net::IpAddr;

use super::{Beneath, Tunnel};

/// A TUN device that outlives its program and has a queue for each of the program's threads. What carries
/// its packets is a [`PacketLoop`](crate::object::PacketLoop).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tun;

impl Tunnel for Tun {
    const NAME: &'static str = "tun";

    fn is_met_by(&self, _: &Tun) -> bool {
        true
    }

    fn in_place(&self, _: &Tun) -> bool {
        true
    }

    fn excludes(&self, _other: &Tun) -> bool {
        false
    }

    fn beneath(&self) -> Option<Beneath> {
        None
    }

    fn local(&self) -> Option<IpAddr> {
        None
    }

    /// The program's packets are its own.
    fn overhead(&self) -> u32 {
        0
    }

    fn port(&self) -> Option<u16> {
        None
    }

    fn put(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}
