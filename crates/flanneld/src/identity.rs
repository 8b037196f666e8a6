//! What a backend must know of this node before its lease is taken.

use backend::{Identity, Need};
use model::{IfName, Mac, WgKey};
use tracing::info;

use crate::wg_key_file;

/// The answers that were found, so that a command is run once a start.
#[derive(Default)]
pub struct Answers {
    last: Option<(Need, Identity)>,
}

impl Answers {
    /// Answers what a backend asks; `mac_of` reads the MAC of a device.
    ///
    /// # Errors
    /// What is wrong with this node's key, or how the command ended, and what helps.
    pub async fn find(
        &mut self,
        need: &Need,
        mac_of: impl Fn(&IfName) -> Option<Mac>,
    ) -> Result<Identity, String> {
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
            Need::Command {
                name,
                line,
                env,
                limit,
            } => {
                if let Some((asked, answer)) = &self.last
                    && asked == need
                {
                    return Ok(answer.clone());
                }
                let printed = dataplane::run_command(line, &env.variables(), "", *limit).await;
                let printed = printed.map_err(|why| format!("Backend.{name} `{line}`: {why}"))?;
                info!("Backend.{name} printed {} bytes", printed.len());
                let answer = Identity::Data(printed.into());
                self.last = Some((need.clone(), answer.clone()));
                Ok(answer)
            }
        }
    }
}
