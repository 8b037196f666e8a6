//! How fast to go on when repairs do not last.

use std::time::Duration;

use tokio::time::Instant;

/// Somebody who changes our rules again within this time after a repair, or after the pause that followed it,
/// contends with us.
const CONTENTION: Duration = Duration::from_secs(10);
/// So many repairs in a row are made at once; then they are put off, longer each time.
const AT_ONCE: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// When the next look may be taken: at once, unless looks fail or somebody keeps undoing what we do.
pub struct Contention {
    /// The next look is not taken before.
    pub not_before: Instant,
    last_write: Option<Instant>,
    streak: u32,
}

impl Default for Contention {
    fn default() -> Self {
        Contention {
            not_before: Instant::now(),
            last_write: None,
            streak: 0,
        }
    }
}

impl Contention {
    /// Takes in how a look ended.
    pub fn note(&mut self, failed: bool, wrote: bool) {
        let now = Instant::now();
        let pause_ended = self.not_before.min(now);
        let again = self
            .last_write
            .is_some_and(|at| now - at.max(pause_ended) < CONTENTION);
        if failed {
            self.streak = self.streak.max(AT_ONCE) + 1;
        } else if wrote {
            self.streak = if again { self.streak + 1 } else { 0 };
            self.last_write = Some(now);
        } else if self.streak > AT_ONCE && !again {
            self.streak = 0;
        }
        let doublings = self.streak.saturating_sub(AT_ONCE).min(16);
        self.not_before = match doublings {
            0 => now,
            n => now + (FIRST_PAUSE * (1 << n)).min(LONGEST_PAUSE),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many repairs somebody causes who undoes each at once.
    async fn repairs(contention: &mut Contention, span: Duration) -> u32 {
        let end = Instant::now() + span;
        let mut repairs = 0;
        while Instant::now() < end {
            tokio::time::sleep_until(contention.not_before).await;
            tokio::time::advance(Duration::from_millis(1)).await;
            contention.note(false, true);
            repairs += 1;
        }
        repairs
    }

    #[tokio::test(start_paused = true)]
    async fn a_fight_that_goes_on_is_one_also_after_the_longest_pauses() {
        let mut contention = Contention::default();
        let minute = Duration::from_secs(60);
        let first = repairs(&mut contention, minute).await;
        assert!(first > AT_ONCE && first < 20, "{first}");
        for _ in 0..10 {
            let later = repairs(&mut contention, minute).await;
            assert!(later <= 2, "{later}");
        }
        tokio::time::advance(LONGEST_PAUSE + 2 * CONTENTION).await;
        contention.note(false, true);
        assert!(contention.not_before <= Instant::now(), "it is over");
    }
}
