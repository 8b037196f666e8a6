//! Logs on stderr: a human form, or one JSON object a line.

mod limit;
mod lines;
mod recent;

use std::cell::Cell;
use std::io::IsTerminal;
use std::rc::Rc;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

use limit::Limit;
use lines::{Form, Lines};
use recent::Recent;

use crate::report::EventsReport;

/// Our own crates; others speak only of warnings.
const OURS: [&str; 6] = [
    "flanneld",
    "store",
    "dataplane",
    "proxy",
    "backend",
    "model",
];

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// What changed.
    Info,
    /// Every operation.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    /// All levels, from the quietest.
    pub const ALL: [Level; 3] = [Level::Info, Level::Debug, Level::Trace];

    /// Returns the level that `-v` means.
    pub fn of_verbosity(verbosity: u8) -> Level {
        match verbosity {
            0 => Level::Info,
            1..=4 => Level::Debug,
            _ => Level::Trace,
        }
    }

    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        }
    }

    fn targets(self) -> Targets {
        let filter = match self {
            Level::Info => LevelFilter::INFO,
            Level::Debug => LevelFilter::DEBUG,
            Level::Trace => LevelFilter::TRACE,
        };
        Targets::new()
            .with_default(LevelFilter::WARN)
            .with_targets(OURS.map(|target| (target, filter)))
            // It reports each handshake that a stopped peer does not answer, as a warning, every five seconds.
            .with_target("boringtun", LevelFilter::OFF)
    }
}

/// Changes what is logged while the daemon runs.
#[derive(Clone)]
pub struct LogControl {
    level: Rc<Cell<Level>>,
    filter: reload::Handle<Targets, Registry>,
    recent: Recent,
}

impl LogControl {
    /// Returns the present level.
    pub fn level(&self) -> Level {
        self.level.get()
    }

    /// Returns the last lines.
    pub fn events(&self) -> EventsReport {
        self.recent.report()
    }

    /// Changes the level, until the next start.
    pub fn set(&self, level: Level) {
        if self.filter.reload(level.targets()).is_ok() {
            self.level.set(level);
        }
    }
}

/// Starts logging. `verbosity` is `-v`: 0 logs what changed, 1 every operation, 5 everything.
pub fn start(verbosity: u8, json: bool) -> LogControl {
    let level = Level::of_verbosity(verbosity);
    let (targets, filter) = reload::Layer::new(level.targets());
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
    let recent = Recent::default();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(Lines(form))
        .with_ansi(form == Form::Coloured)
        .with_target(verbosity > 0);
    let started = if json {
        let lines = lines.json().flatten_event(true);
        registry.with(lines).with(recent.clone()).try_init()
    } else {
        registry.with(lines).with(recent.clone()).try_init()
    };
    // Only a second start in one process can fail, and then logs go where they went before.
    drop(started);
    LogControl {
        level: Rc::new(Cell::new(level)),
        filter,
        recent,
    }
}
