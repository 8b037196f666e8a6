//! What is written for a person: to standard output what was asked for, to standard error the rest.

#![allow(
    clippy::print_stdout,
    reason = "the one place of this program that prints"
)]

use std::io::{self, IsTerminal, Write};

/// A line of what was asked for.
pub(crate) fn line(text: &str) {
    // A closed pipe, as after `| head`, is nobody's fault.
    let _ = writeln!(io::stdout().lock(), "{text}");
}

/// On a terminal, a line that the next one overwrites.
pub(crate) fn unfinished(ink: Ink, text: &str) {
    if ink.0 {
        let mut out = io::stdout().lock();
        let _ = write!(out, "{text}\x1b[K\r").and_then(|()| out.flush());
    }
}

/// What went wrong.
pub(crate) fn problem(text: &str) {
    let _ = writeln!(io::stderr().lock(), "flannelctl: {text}");
}

/// Has what flannel's libraries warn of told like problems.
pub(crate) fn tell_warnings_of_libraries() {
    let told = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(io::stderr)
        .with_target(false)
        .without_time()
        .with_ansi(false)
        .try_init();
    // Fails only where somebody tells them already.
    drop(told);
}

/// What is being done.
pub(crate) fn progress(text: &str) {
    let _ = writeln!(io::stderr().lock(), "  {text}");
}

/// Ink for a terminal; nothing where there is none, or where `NO_COLOR` is set.
#[derive(Clone, Copy)]
pub(crate) struct Ink(bool);

impl Ink {
    /// Looks at standard output.
    pub(crate) fn of_stdout() -> Ink {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Ink(io::stdout().is_terminal() && !dumb && std::env::var_os("NO_COLOR").is_none())
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.wrap("31;1", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        match self.0 {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.into(),
        }
    }
}
