//! Logs on stderr: a human form, or one JSON object a line.

mod limit;
mod lines;

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use limit::Limit;
use lines::{Form, Lines};

/// Our own crates; others speak only of warnings.
const OURS: [&str; 6] = [
    "flanneld",
    "store",
    "dataplane",
    "proxy",
    "backend",
    "model",
];

/// Starts logging. `verbosity` is `-v`: 0 tells what changed, 1 every operation, 5 everything.
pub fn start(verbosity: u8, json: bool) {
    let level = match verbosity {
        0 => LevelFilter::INFO,
        1..=4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let targets = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_targets(OURS.map(|target| (target, level)))
        // It reports each handshake that a stopped peer does not answer, as a warning, every five seconds.
        .with_target("boringtun", LevelFilter::OFF);
    let form = if json {
        Form::Json
    } else if std::io::stderr().is_terminal() {
        Form::Coloured
    } else {
        Form::Text
    };
    let registry = tracing_subscriber::registry()
        .with(targets)
        .with(Limit::default());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(Lines(form))
        .with_ansi(form == Form::Coloured)
        .with_target(verbosity > 0);
    let started = if json {
        registry.with(lines.json().flatten_event(true)).try_init()
    } else {
        registry.with(lines).try_init()
    };
    // Only a second start in one process can fail, and then logs go where they went before.
    drop(started);
}
