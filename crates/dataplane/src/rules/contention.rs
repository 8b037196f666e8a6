//! How fast to go on when repairs do not last.

use std::time::Duration;

use tokio::time::Instant;

/// Somebody who changes our rules again within this time after a repair contends with us.
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
        let again = self.last_write.is_some_and(|at| now - at < CONTENTION);
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
