//! Follows the files of this node's keys: somebody may replace one.

use std::rc::Rc;
use std::time::Duration;

use model::Host;
use tokio::time::Instant;
use tracing::{info, warn};

use super::data_path::DataPath;
use crate::generations::Generations;
use crate::identity;
use crate::options::Options;

/// How often the files are read.
const EVERY: Duration = Duration::from_secs(2);

/// When the files are read again, and what is wrong with them, as the log says.
pub(super) struct KeyWatch {
    options: Rc<Options>,
    due: Instant,
    problem: Option<String>,
}

impl KeyWatch {
    /// Returns a watch that reads the files at once.
    pub(super) fn new(options: Rc<Options>) -> KeyWatch {
        KeyWatch {
            options,
            due: Instant::now(),
            problem: None,
        }
    }

    /// Returns when the files are to be read, if a backend in use has keys.
    pub(super) fn due(&self, generations: &Generations) -> Option<Instant> {
        let mut all = generations.all().iter();
        let options = &self.options.keys;
        let has_keys = all.any(|generation| identity::is_in_files(&generation.identity, options));
        has_keys.then_some(self.due)
    }

    /// Reads the files. If a key changed, builds the backends with it and returns the host that they are to be applied
    /// for. A new key is in use before the others learn of it: they begin a session with it as soon as they know it.
    pub(super) fn look(&mut self, path: &mut DataPath) -> Option<Host> {
        self.due = Instant::now() + EVERY;
        let (mut changed, mut problem) = (false, None);
        let options = &self.options.keys;
        for generation in path.cluster.generations_mut().all_mut() {
            match identity::again(&generation.identity, options) {
                Ok(now) if now == generation.identity => {}
                Ok(now) => {
                    generation.identity = now;
                    changed = true;
                }
                Err(error) => problem = Some(error),
            }
        }
        if problem != self.problem {
            match &problem {
                Some(problem) => warn!("{problem}; the keys that were read before stay in use"),
                None => info!("the key files are as they should be again"),
            }
            self.problem = problem;
        }
        if !changed {
            return None;
        }
        let host = path.cluster.host().clone();
        match path.rebuild_backends(&host) {
            Ok(()) => {
                info!("the keys in this node's files changed");
                Some(host)
            }
            Err(error) => {
                warn!("the new keys in this node's files are not used: {error}");
                None
            }
        }
    }
}
