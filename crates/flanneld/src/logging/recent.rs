//! The log's last lines, kept for the status socket.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::report::{EventReport, EventsReport};

/// Lines that are kept.
const LINES: usize = 64;

/// Bytes of a line that are kept.
const LONGEST: usize = 500;

/// The last lines, without those of `-v`.
#[derive(Clone, Default)]
pub(super) struct Recent(Arc<Mutex<VecDeque<EventReport>>>);

impl Recent {
    /// Returns the lines, the oldest first.
    pub(super) fn report(&self) -> EventsReport {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        EventsReport {
            events: lines.iter().cloned().collect(),
        }
    }
}

impl<S: Subscriber> Layer<S> for Recent {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        if level > Level::INFO {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let at = SystemTime::now().duration_since(UNIX_EPOCH);
        let line = EventReport {
            unix_seconds: at.map_or(0, |at| at.as_secs()),
            level: level.as_str().to_ascii_lowercase(),
            text: text.0,
        };
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

/// A line's message, and its fields behind it, up to so many bytes.
#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Ends with an error once it is long enough.
        let _ = if field.name() == "message" {
            let fields = std::mem::take(&mut self.0);
            write!(self, "{value:?}{fields}")
        } else {
            write!(self, " {}={value:?}", field.name())
        };
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LONGEST.saturating_sub(self.0.len());
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        let whole = |at: &usize| text.is_char_boundary(*at);
        let end = (0..=room).rev().find(whole).unwrap_or_default();
        self.0.push_str(&text[..end]);
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_no_more() {
        let recent = Recent::default();
        let subscriber = tracing_subscriber::registry().with(recent.clone());
        tracing::subscriber::with_default(subscriber, || {
            for i in 0..100 {
                tracing::info!(put = i, "repaired");
                tracing::debug!("not kept");
            }
            tracing::warn!("{}", "ü".repeat(1000));
        });
        let events = recent.report().events;
        assert_eq!(events.len(), LINES);
        assert_eq!(events[0].text, "repaired put=37");
        assert_eq!(events[0].level, "info");
        let last = &events[LINES - 1];
        assert!(last.level == "warn" && last.text.len() <= LONGEST);
        assert!(last.text.chars().all(|c| c == 'ü') && last.text.len() > 490);
    }
}
