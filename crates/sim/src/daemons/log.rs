//! What the daemons log, with the simulated time.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// Lines, in order.
#[derive(Clone)]
pub struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    began: Instant,
}

impl Log {
    /// Returns an empty log that begins now.
    pub fn new() -> Log {
        Log {
            text: Arc::default(),
            began: Instant::now(),
        }
    }

    /// Has everything logged on this thread written here, until the guard is dropped.
    pub fn collect(&self) -> tracing::subscriber::DefaultGuard {
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(LevelFilter::INFO)
            .with_ansi(false)
            .with_target(false)
            .with_writer(self.clone())
            .with_timer(self.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    /// Writes a line.
    pub fn say(&self, what: impl fmt::Display) {
        let mut text = self.lock();
        // Writing to memory does not fail.
        let _ = writeln!(
            text,
            "{:>10.3} ---- {what}",
            self.began.elapsed().as_secs_f64()
        );
    }

    /// Returns all lines.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock()).into_owned()
    }

    /// Returns how many lines there are.
    pub fn lines(&self) -> usize {
        self.lock().iter().filter(|byte| **byte == b'\n').count()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Log {
    fn default() -> Log {
        Log::new()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

impl FormatTime for Log {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{:>10.3}", self.began.elapsed().as_secs_f64())
    }
}
