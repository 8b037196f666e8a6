//! What a backend must know of this node before its lease is taken.

use backend::{Identity, Need};
use model::{IfName, Mac};

/// Answers what a backend asks; `mac_of` reads the MAC of a device.
pub fn answer(need: &Need, mac_of: impl Fn(&IfName) -> Option<Mac>) -> Identity {
    match need {
        Need::Nothing => Identity::Nothing,
        Need::Macs(devices) => {
            let found = |family| devices.get(family).and_then(&mac_of);
            Identity::Macs(model::Dual::from_fn(found))
        }
    }
}
