//! Packets that must all arrive, and entries that must go.

use std::collections::BTreeSet;
use std::sync::RwLockReadGuard;
use std::time::Duration;

use lab::{Node, Pinger, wait_for};

use crate::scene::{SOON, measuring};

/// The interval of the pings that must not be lost.
const TRAFFIC: Duration = Duration::from_millis(10);

/// Traffic both ways between the pods of two nodes, in every family.
pub struct Traffic {
    pingers: Vec<(String, Pinger)>,
    /// A crowd would use up the kernel's neighbour table, which all namespaces share.
    _turn: RwLockReadGuard<'static, ()>,
}

impl Traffic {
    pub fn between(a: &Node, b: &Node) -> Traffic {
        let _turn = measuring();
        let (a, b) = (a.pods()[0].clone(), b.pods()[0].clone());
        let mut pingers = Vec::new();
        for (from, to) in [(&a, &b), (&b, &a)] {
            for ip in to.ips() {
                let name = format!("{} to {ip}", from.name());
                pingers.push((name, Pinger::start(from, ip, TRAFFIC).unwrap()));
            }
        }
        Traffic { pingers, _turn }
    }

    /// Returns how many pings were sent each way.
    pub fn sent(&self) -> usize {
        self.pingers
            .iter()
            .map(|(_, pinger)| pinger.sent())
            .min()
            .unwrap_or(0)
    }

    /// Ends it; nearly all of it must have arrived. For emulated machines, which lose a packet now and then.
    pub fn nearly_all_arrived(self, label: &str) {
        for (name, pinger) in self.pingers {
            let report = pinger.stop();
            assert!(
                report.sent > 0 && report.lost < 20,
                "{label}, {name}: {report:?}"
            );
        }
    }

    /// Ends it; none of it may have been lost.
    pub fn all_arrived(self, label: &str) {
        let mut sent = 0;
        for (name, pinger) in self.pingers {
            let report = pinger.stop();
            assert_eq!(report.lost, 0, "{label}, {name}: {report:?}");
            sent += report.sent;
        }
        assert!(sent > 0);
        eprintln!("{label}: {sent} pings, none lost");
    }
}

/// Waits until the kernel of `node` holds none of the words `old`, and each of `new`.
pub fn forgets(node: &Node, old: &[String], new: &[String]) {
    let look = || -> Result<(), String> {
        let picture = node.picture().map_err(|e| e.to_string())?;
        let words: BTreeSet<&str> = picture.lines().flat_map(|l| l.split(' ')).collect();
        if let Some(old) = old.iter().find(|old| words.contains(old.as_str())) {
            return Err(format!("{old} is still in\n{picture}"));
        }
        match new.iter().find(|new| !words.contains(new.as_str())) {
            Some(new) => Err(format!("{new} is not in\n{picture}")),
            None => Ok(()),
        }
    };
    wait_for("nothing old, everything new", SOON, look).unwrap();
}
