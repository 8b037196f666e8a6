//! What a daemon said and what a kernel holds, waited for.

use lab::{Daemon, Node, wait_for};

use crate::scene::SOON;

/// Waits until a line of the daemon's log holds all of `texts`; returns it.
pub fn says(daemon: &Daemon, texts: &[&str]) -> String {
    let look = || {
        let log = daemon.log();
        let line = log
            .lines()
            .find(|line| texts.iter().all(|text| line.contains(text)));
        line.map(String::from).ok_or(log.clone())
    };
    wait_for(&format!("{} says {texts:?}", daemon.name()), SOON, look).unwrap()
}

/// Waits until `node` holds a line with all of `texts`.
pub fn shows(node: &Node, texts: &[&str]) {
    let look = || {
        let picture = node.picture().unwrap();
        match picture.has(texts) {
            true => Ok(()),
            false => Err(format!("{}\n{picture}", node.flanneld().log_tail(5))),
        }
    };
    wait_for(&format!("{} shows {texts:?}", node.name()), SOON, look).unwrap();
}
