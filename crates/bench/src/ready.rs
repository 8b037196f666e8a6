//! From exec to `subnet.env`: how long a node's containers wait for their network.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::os::fd::AsFd;

use crate::stage::{PATIENCE, Stage};
use crate::target::Target;

/// Starts a daemon on a clean node; returns how long it took until `subnet.env` had its name. The
/// daemon stays.
///
/// # Errors
/// It did not come in time.
pub fn start(stage: &Stage, target: &Target) -> anyhow::Result<Duration> {
    let watch = || -> nix::Result<Inotify> {
        std::fs::create_dir_all("/run/flannel")
            .map_err(|e| nix::Error::from_raw(e.raw_os_error().unwrap_or_default()))?;
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(
            "/run/flannel",
            AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE,
        )?;
        Ok(inotify)
    };
    let inotify = stage.node().run(watch)?.context("/run/flannel")?;
    let began = stage.start(&target.flanneld_args())?;
    while began.elapsed() < PATIENCE {
        let left = PollTimeout::try_from(PATIENCE.saturating_sub(began.elapsed()))
            .unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], left)?;
        let now = Instant::now();
        let events = inotify.read_events().unwrap_or_default();
        if events
            .iter()
            .any(|event| event.name.as_deref() == Some("subnet.env".as_ref()))
        {
            return Ok(now - began);
        }
    }
    bail!(
        "no subnet.env after {PATIENCE:?}; flanneld says:\n{}",
        stage.node().flanneld().log_tail(20)
    )
}
