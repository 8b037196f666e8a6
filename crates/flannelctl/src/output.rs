//! What is written for a person: to standard output what was asked for, to standard error the rest.

#![allow(
    clippy::print_stdout,
    reason = "the one place of this program that prints"
)]

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::OnceLock;

/// The first write to standard output that failed.
static FAILURE: OnceLock<io::Error> = OnceLock::new();

/// A line of what was asked for. [`finish`] reports a line that could not be written.
pub(crate) fn line(text: &str) {
    remember(writeln!(io::stdout().lock(), "{text}"));
}

/// Keeps the first failure of standard output for [`finish`].
fn remember(written: io::Result<()>) {
    if let Err(error) = written {
        // Only the first one matters: the others follow from it.
        let _ = FAILURE.set(error);
    }
}

/// Writes what is still buffered, and reports whether all of standard output was written.
///
/// # Errors
/// The first failed write. A reader that closed its end of a pipe, as `head` does, is no failure.
pub(crate) fn finish() -> io::Result<()> {
    remember(io::stdout().lock().flush());
    match FAILURE.get() {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(io::Error::new(error.kind(), error.to_string()))
        }
        _ => Ok(()),
    }
}

/// Prints what clap answers: help and version to standard output, errors to standard error. Returns
/// clap's exit status.
pub(crate) fn clap_answer(answer: &clap::Error) -> i32 {
    let written = answer.print();
    if !answer.use_stderr() {
        remember(written);
    }
    answer.exit_code()
}

/// On a terminal, a line that the next one overwrites.
#[cfg(feature = "lab")]
pub(crate) fn unfinished(ink: Ink, text: &str) {
    if ink.0 {
        let mut out = io::stdout().lock();
        remember(write!(out, "{text}\x1b[K\r").and_then(|()| out.flush()));
    }
}

/// What went wrong.
pub(crate) fn problem(text: &str) {
    problem_of("flannelctl", text);
}

/// What went wrong in the program that was called by this name.
pub(crate) fn problem_of(program: &str, text: &str) {
    let lines: Vec<String> = text.split('\n').map(visible).collect();
    let _ = writeln!(io::stderr().lock(), "{program}: {}", lines.join("\n"));
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

/// Returns `text` with escapes in place of the characters that could move the cursor, forge a line or turn the
/// direction of writing: parts of it come from other nodes.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if model::outside::is_unsafe(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Columns are aligned up to this width: one odd cell must not make every line as long as itself.
const WIDEST: usize = 200;

/// Returns the rows as lines, their columns aligned.
pub(crate) fn table(rows: &[impl AsRef<[String]>]) -> Vec<String> {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (column, cell) in row.as_ref().iter().enumerate() {
            let width = cell.chars().count().min(WIDEST);
            match widths.get_mut(column) {
                Some(most) => *most = width.max(*most),
                None => widths.push(width),
            }
        }
    }
    // Not by `format!`, which panics at a width of more than 65,535.
    let line = |row: &[String]| {
        let mut line = String::new();
        let mut missing = 0;
        for (cell, width) in row.iter().zip(&widths) {
            line.extend(std::iter::repeat_n(' ', missing));
            line.push_str(cell);
            missing = width.saturating_sub(cell.chars().count()) + 2;
        }
        line.truncate(line.trim_end().len());
        line
    };
    rows.iter().map(|row| line(row.as_ref())).collect()
}

/// Returns a time in milliseconds, for people.
pub(crate) fn milliseconds(micros: u64) -> String {
    let ms = micros as f64 / 1000.0;
    if ms < 10.0 {
        format!("{ms:.2} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

/// What is being done.
pub(crate) fn progress(text: &str) {
    let _ = writeln!(io::stderr().lock(), "  {}", visible(text));
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

    #[cfg(feature = "lab")]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_a_cell_may_be_of_any_length() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let long = "x".repeat(100_000);
        let lines = table(&[row(["A", "BB", "C"]), row(["aa", "", &long])]);
        assert_eq!(lines[0], "A   BB  C");
        assert_eq!(lines[1], format!("aa      {long}"));
        let lines = table(&[row(["A", "B", ""]), row([&long, "b", ""])]);
        assert_eq!(lines[0].len(), WIDEST + 3);
        assert_eq!(lines[1], format!("{long}  b"));
    }
}
