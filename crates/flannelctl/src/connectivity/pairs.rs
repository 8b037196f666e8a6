//! Which nodes ask which.

/// Returns all pairs of `nodes` if they are no more than `most`; else `most` of them, at random, such that as many nodes
/// as possible ask and are asked, each about as often as the others. A pair is who asks, and whom.
pub(super) fn choose(nodes: usize, most: usize, rng: &mut fastrand::Rng) -> Vec<(usize, usize)> {
    let all = nodes.saturating_mul(nodes.saturating_sub(1));
    if all <= most {
        let from = 0..nodes;
        return from
            .flat_map(|a| (0..nodes).filter(move |b| a != *b).map(move |b| (a, b)))
            .collect();
    }
    let mut order: Vec<usize> = (0..nodes).collect();
    rng.shuffle(&mut order);
    let mut pairs = Vec::with_capacity(most);
    // Rings: in the first one each asks its neighbour, in the second one the next but one, and so on.
    let mut steps: Vec<usize> = (1..nodes).collect();
    rng.shuffle(&mut steps);
    for step in steps {
        for at in 0..nodes {
            if pairs.len() == most {
                return pairs;
            }
            let to = order[(at + step) % nodes];
            pairs.push((order[at], to));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_pairs_or_as_many_as_asked_and_none_twice() {
        let mut rng = fastrand::Rng::with_seed(1);
        for nodes in 0..40 {
            for most in [0, 1, 7, 100, 10_000] {
                let pairs = choose(nodes, most, &mut rng);
                let all = nodes * nodes.saturating_sub(1);
                assert_eq!(pairs.len(), all.min(most), "{nodes} {most}");
                let unique: BTreeSet<_> = pairs.iter().collect();
                assert_eq!(unique.len(), pairs.len());
                assert!(
                    pairs
                        .iter()
                        .all(|(a, b)| a != b && *a < nodes && *b < nodes)
                );
                let asked: BTreeSet<_> = pairs.iter().map(|(_, b)| b).collect();
                assert_eq!(asked.len(), pairs.len().min(nodes), "{nodes} {most}");
            }
        }
    }
}
