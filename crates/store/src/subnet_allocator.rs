//! Which free subnet a node tries to take.

use model::{NetConfig, SubnetKey, pool};

/// After this many lost races the choice is no longer widened.
const WIDEST: u32 = 10;

/// Chooses a free subnet: `previous` if it is free, else at random among the first ones. Each race that was
/// lost doubles their number: where hundreds of nodes start at once, most of a narrow choice is taken.
pub(crate) fn pick(
    config: &NetConfig,
    taken: &[SubnetKey],
    previous: Option<&SubnetKey>,
    lost: u32,
) -> Result<SubnetKey, String> {
    let choices = pool::CHOICES << lost.min(WIDEST);
    let at_random = |n| fastrand::usize(..n);
    pool::choose_among(choices, config, taken, previous, at_random).map_err(|full| full.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Daemons that start at the same moment, in lock step: each reads all keys, then tries one subnet a
    /// round, and reads again after every third lost race. Returns the number of transactions.
    fn start_at_once(nodes: usize) -> usize {
        let config = NetConfig::from_json(r#"{"Network":"10.0.0.0/8","SubnetLen":24}"#).unwrap();
        let mut stored: BTreeSet<SubnetKey> = BTreeSet::new();
        let mut views = vec![(Vec::new(), 0); nodes];
        let mut transactions = 0;
        while !views.is_empty() {
            views.retain_mut(|(view, lost): &mut (Vec<SubnetKey>, u32)| {
                let key = pick(&config, view, None, *lost).unwrap();
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
}
