//! Log lines about what somebody else may cause in a loop: the first ones, then one now and then.

use std::time::Duration;

use tokio::time::Instant;

use crate::allowance::Allowance;

/// How often one more line is written.
const EVERY: Duration = Duration::from_secs(30);

/// Decides which lines of one kind are written.
#[derive(Debug)]
pub(crate) struct FewLines {
    lines: Allowance,
    left_out: u32,
}

impl FewLines {
    /// Lets `burst` lines through at once.
    pub(crate) fn new(burst: u32) -> FewLines {
        FewLines {
            lines: Allowance::new(burst, EVERY),
            left_out: 0,
        }
    }

    /// Returns what to write behind the text of a line; `None` if the line is to be left out.
    pub(crate) fn next(&mut self) -> Option<String> {
        let now = Instant::now();
        if now < self.lines.next() {
            self.left_out += 1;
            return None;
        }
        self.lines.take(now);
        Some(match std::mem::take(&mut self.left_out) {
            0 => String::new(),
            n => {
                format!(" (and {n} times since the last such line: somebody else keeps causing it)")
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_gets_few_lines_and_they_count_the_others() {
        let mut lines = FewLines::new(3);
        let mut written = Vec::new();
        for _ in 0..90 {
            written.extend(lines.next());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(written.len(), 5, "{written:?}");
        assert!(written[3].contains("and 27 times"), "{written:?}");
    }
}
