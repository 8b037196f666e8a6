//! Which free subnet a node tries to take.

use model::{NetConfig, SubnetKey, pool};

use crate::retry::{Assigned, StoreStatus};

/// After this many lost races the choice is no longer widened.
const WIDEST: u32 = 10;

/// Chooses subnets for one node.
#[derive(Debug)]
pub(crate) struct SubnetAllocator {
    config: NetConfig,
    previous: Option<SubnetKey>,
    status: StoreStatus,
}

impl SubnetAllocator {
    /// `previous`: the subnet that an old `subnet.env` names. `status` reports if another node has it.
    pub(crate) fn new(
        config: NetConfig,
        previous: Option<SubnetKey>,
        status: StoreStatus,
    ) -> SubnetAllocator {
        SubnetAllocator {
            config,
            previous,
            status,
        }
    }

    /// Chooses a free subnet for a node that has none: the previous one if it is free, else at random among
    /// the first ones. Each race that was lost doubles their number: where hundreds of nodes start at once,
    /// most of a narrow choice is taken.
    pub(crate) fn pick(&self, taken: &[SubnetKey], lost: u32) -> Result<SubnetKey, String> {
        if let Some(previous) = &self.previous
            && taken.iter().any(|other| other.overlaps(previous))
        {
            self.status.assign(Assigned::AnotherNodes(*previous));
        }
        let choices = pool::CHOICES << lost.min(WIDEST);
        let at_random = |n| fastrand::usize(..n);
        let previous = self.previous.as_ref();
        pool::choose_among(choices, &self.config, taken, previous, at_random)
            .map_err(|full| full.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Daemons that start at the same moment, in lock step: each reads all keys, then tries one subnet a
    /// round, and reads again after every third lost race. Returns the number of transactions.
    fn start_at_once(nodes: usize) -> usize {
        let config = NetConfig::from_json(r#"{"Network":"10.0.0.0/8","SubnetLen":24}"#).unwrap();
        let allocator = SubnetAllocator::new(config, None, StoreStatus::default());
        let mut stored: BTreeSet<SubnetKey> = BTreeSet::new();
        let mut views = vec![(Vec::new(), 0); nodes];
        let mut transactions = 0;
        while !views.is_empty() {
            views.retain_mut(|(view, lost): &mut (Vec<SubnetKey>, u32)| {
                let key = allocator.pick(view, *lost).unwrap();
                transactions += 1;
                if stored.insert(key) {
                    return false;
                }
                *lost += 1;
                view.push(key);
                if lost.is_multiple_of(3) {
                    *view = stored.iter().copied().collect();
                }
                true
            });
        }
        transactions
    }

    #[test]
    fn eight_hundred_daemons_at_once_need_few_transactions() {
        let transactions = start_at_once(800);
        assert!(transactions <= 20_000, "{transactions}");
        assert!(start_at_once(50) <= 150);
    }

    #[test]
    fn a_previous_subnet_that_another_node_has_is_reported() {
        let config = NetConfig::from_json(r#"{"Network":"10.0.0.0/8","SubnetLen":24}"#).unwrap();
        let [previous, wider, other] =
            ["10.1.2.0-24", "10.1.0.0-16", "10.9.9.0-24"].map(|key| key.parse().unwrap());
        for (taken, excluded) in [(previous, true), (wider, true), (other, false)] {
            let status = StoreStatus::default();
            let assigned = status.assigned();
            let allocator = SubnetAllocator::new(config.clone(), Some(previous), status);
            let picked = allocator.pick(&[taken], 0).unwrap();
            assert_eq!(picked == previous, !excluded);
            assert_eq!(assigned.borrow().excludes(&previous), excluded);
        }
    }
}
