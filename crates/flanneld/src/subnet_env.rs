//! Keeps `subnet.env` as it was announced: somebody may delete or change it.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::status::Status;
use crate::subnet_file::{self, SubnetFileError};

/// How often the file is looked at.
const EVERY: Duration = Duration::from_secs(2);

/// How often the log says that it was written again.
const LINE_EVERY: Duration = Duration::from_secs(60);

/// The file, and when it is looked at.
pub(crate) struct SubnetEnv {
    path: PathBuf,
    /// When it is looked at again.
    due: Instant,
    /// When the log may say again that it was written.
    line_due: Instant,
}

impl SubnetEnv {
    pub(crate) fn new(path: PathBuf) -> SubnetEnv {
        SubnetEnv {
            path,
            due: Instant::now(),
            line_due: Instant::now(),
        }
    }

    /// When it is to be looked at.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// Writes the file, whose MTU is `mtu`.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&self, text: &str, mtu: u32) -> Result<(), SubnetFileError> {
        if subnet_file::write(&self.path, text)? {
            info!("wrote {} (MTU {mtu})", self.path.display());
        }
        Ok(())
    }

    /// Writes the file again if somebody deleted or changed it.
    pub(crate) fn restore(&mut self, text: &str, status: &Status) {
        let now = Instant::now();
        self.due = now + EVERY;
        let problem = match subnet_file::write(&self.path, text) {
            Ok(wrote) => {
                if wrote && now >= self.line_due {
                    self.line_due = now + LINE_EVERY;
                    warn!(
                        "wrote {} again: somebody had deleted or changed it",
                        self.path.display()
                    );
                }
                None
            }
            Err(error) => Some(error.to_string()),
        };
        self.report(problem, status);
    }

    /// Reports what keeps the file from being written, if anything: once.
    pub(crate) fn report(&self, problem: Option<String>, status: &Status) {
        if status.set_file_problem(problem.clone())
            && let Some(problem) = problem
        {
            warn!("{problem}; trying again every {} s", EVERY.as_secs());
        }
    }
}
