//! Logs on stderr: a human form, or one JSON object a line.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Our own crates; others speak only of warnings.
const OURS: [&str; 5] = ["flanneld", "store", "dataplane", "backend", "model"];

/// Starts logging. `verbosity` is `-v`: 0 tells what changed, 1 every operation, 5 everything.
pub fn start(verbosity: u8, json: bool) {
    let level = match verbosity {
        0 => LevelFilter::INFO,
        1..=4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let targets = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_targets(OURS.map(|target| (target, level)));
    let registry = tracing_subscriber::registry().with(targets);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(verbosity > 0);
    let started = match json {
        true => registry.with(lines.json().flatten_event(true)).try_init(),
        false => registry
            .with(lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())))
            .try_init(),
    };
    // Only a second start in one process can fail, and then logs go where they went before.
    drop(started);
}
