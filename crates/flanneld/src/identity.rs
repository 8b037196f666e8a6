//! What a backend must know of this node before its lease is taken.

use backend::{Identity, Need};
use model::{IfName, Mac, WgKey};

use crate::wg_key_file;

/// Answers what a backend asks; `mac_of` reads the MAC of a device.
///
/// # Errors
/// What is wrong with this node's key, and what helps.
pub fn answer(need: &Need, mac_of: impl Fn(&IfName) -> Option<Mac>) -> Result<Identity, String> {
    match need {
        Need::Nothing => Ok(Identity::Nothing),
        Need::Macs(devices) => {
            let found = |family| devices.get(family).and_then(&mac_of);
            Ok(Identity::Macs(model::Dual::from_fn(found)))
        }
        Need::WgKey => {
            let private = wg_key_file::read_or_make(&wg_key_file::path())?;
            let public = WgKey(proxy::Secret(private.0).public_key());
            Ok(Identity::WgKey { private, public })
        }
    }
}
