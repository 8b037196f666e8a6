//! Paths that take less than the tunnel's MTU. A packet that was encrypted cannot be quoted to its sender, and the
//! kernel cuts what does not fit into fragments, which many networks drop: so the next packets for the peer are
//! made smaller before they are encrypted, and those that cannot be are answered.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long a path is taken to be as narrow as it was found to be. A kernel finds out again after ten minutes.
const BELIEVED: Duration = Duration::from_secs(60);

/// The most paths that are remembered.
const MOST: usize = 4096;

/// The smallest IPv4 packet that a path is believed to demand: somebody might make up a smaller one.
pub(crate) const LEAST_V4: usize = 576;

/// What paths take, in bytes of unencrypted packets.
#[derive(Debug, Default)]
pub(crate) struct Narrow {
    paths: HashMap<SocketAddr, (usize, Instant)>,
}

impl Narrow {
    /// Remembers what the path to `peer` takes.
    pub(crate) fn learn(&mut self, peer: SocketAddr, most: usize) {
        if self.paths.len() < MOST || self.paths.contains_key(&peer) {
            self.paths.insert(peer, (most, Instant::now()));
        }
    }

    /// Returns what the path to a peer takes, if that is less than the tunnel's MTU. `peer` is only asked when
    /// there are such paths.
    pub(crate) fn of(&mut self, peer: impl FnOnce() -> Option<SocketAddr>) -> Option<usize> {
        if self.paths.is_empty() {
            return None;
        }
        let peer = peer()?;
        let (most, since) = *self.paths.get(&peer)?;
        if since.elapsed() < BELIEVED {
            Some(most)
        } else {
            self.paths.remove(&peer);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_remembered_for_a_while() {
        let peer: SocketAddr = ([192, 0, 2, 1], 51_820).into();
        let other: SocketAddr = ([192, 0, 2, 2], 51_820).into();
        let mut narrow = Narrow::default();
        assert_eq!(narrow.of(|| unreachable!("nobody is asked")), None);
        narrow.learn(peer, 1300);
        assert_eq!(narrow.of(|| Some(peer)), Some(1300));
        assert_eq!(narrow.of(|| Some(other)), None);
        if let Some(before) = Instant::now().checked_sub(BELIEVED) {
            narrow.paths.insert(peer, (1300, before));
            assert_eq!(narrow.of(|| Some(peer)), None);
            assert!(narrow.paths.is_empty());
        }
    }
}
