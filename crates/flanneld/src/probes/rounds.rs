//! Whose turn it is, and how many turns nodes get that have never answered.

/// Turns of nodes that have never answered in a second, and as many as may follow each other: each costs a few probes
/// and a closer look, some fifty system calls. A node that answers takes nothing from them.
const A_SECOND: f64 = 1.0;
const BURST: f64 = 12.0;

/// Positions of nodes, one after the other and again from the start.
#[derive(Debug, Default)]
pub(super) struct Round {
    order: Vec<u32>,
    next: usize,
}

impl Round {
    pub(super) fn new(order: Vec<u32>) -> Round {
        Round { order, next: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Adds nodes to this round.
    pub(super) fn extend(&mut self, at: Option<u32>) {
        self.order.extend(at);
    }

    /// Returns whose turn it is. Each round has another order: no two nodes probe a third at the same time for long.
    pub(super) fn next(&mut self, random: &mut fastrand::Rng) -> Option<usize> {
        if self.next >= self.order.len() {
            random.shuffle(&mut self.order);
            self.next = 0;
        }
        let at = self.order.get(self.next)?;
        self.next += 1;
        Some(*at as usize)
    }
}

/// What is left to nodes that have never answered.
#[derive(Debug)]
pub(super) struct Allowance(f64);

impl Default for Allowance {
    fn default() -> Allowance {
        Allowance(BURST)
    }
}

impl Allowance {
    pub(super) fn refill(&mut self, seconds: f64) {
        self.0 = (self.0 + seconds * A_SECOND).min(BURST);
    }

    pub(super) fn has_one(&self) -> bool {
        self.0 >= 1.0
    }

    pub(super) fn take(&mut self) {
        self.0 -= 1.0;
    }

    pub(super) fn give_back(&mut self) {
        self.0 += 1.0;
    }
}
