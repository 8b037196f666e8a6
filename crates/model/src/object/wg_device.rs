//! What a WireGuard device of the kernel is given after it was created.

use std::fmt;

use super::Kind;
use crate::{IfName, WgSecret};

/// The settings of a WireGuard device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WgDevice {
    /// This node's own key.
    pub private: WgSecret,
    /// The UDP port for the peers' packets.
    pub port: u16,
}

/// Settings of WireGuard devices, by device. They go with the device.
pub struct WgDevices;

impl Kind for WgDevices {
    type Key = IfName;
    type Value = WgDevice;
    const NAME: &'static str = "WireGuard device";

    fn device(name: &IfName, _: &WgDevice) -> Option<IfName> {
        Some(*name)
    }

    fn put(f: &mut fmt::Formatter<'_>, name: &IfName, device: &WgDevice) -> fmt::Result {
        write!(
            f,
            "wg set {name} private-key (file) listen-port {}",
            device.port
        )
    }

    fn del(f: &mut fmt::Formatter<'_>, name: &IfName, _: &WgDevice) -> fmt::Result {
        write!(f, "wg set {name} private-key /dev/null")
    }
}
