//! The result as JUnit's XML, which build servers read.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Check, Outcome};

/// Writes the file `--junit`. After everything else: a file that cannot be written must not cost the result.
///
/// # Errors
/// It cannot be written.
pub(super) fn write(file: &Path, suites: &[(String, &[Check])]) -> Result<()> {
    std::fs::write(file, text(suites))
        .with_context(|| format!("--junit {}: cannot be written", file.display()))
}

/// Returns the file's text: of each node or pair its name and its checks.
pub(super) fn text(suites: &[(String, &[Check])]) -> String {
    let all = || suites.iter().flat_map(|(_, checks)| *checks);
    let count = |outcomes: &[Outcome]| all().filter(|c| outcomes.contains(&c.result)).count();
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        text,
        "<testsuite name=\"flannelctl connectivity\" tests=\"{}\" failures=\"{}\" skipped=\"{}\">",
        all().count(),
        count(&[Outcome::Fail, Outcome::Loss]),
        count(&[Outcome::Skip])
    );
    for (name, checks) in suites {
        let class = escaped(name);
        for check in *checks {
            let seconds = check.rtt_micros.unwrap_or_default() as f64 / 1e6;
            let name = escaped(&check.name);
            let reason = escaped(check.text.as_deref().unwrap_or_default());
            let inner = match check.result {
                Outcome::Good => String::new(),
                Outcome::Fail | Outcome::Loss => format!("<failure message=\"{reason}\"/>"),
                Outcome::Skip => format!("<skipped message=\"{reason}\"/>"),
            };
            let _ = writeln!(
                text,
                "  <testcase classname=\"{class}\" name=\"{name}\" time=\"{seconds}\">{inner}</testcase>"
            );
        }
    }
    text.push_str("</testsuite>\n");
    text
}

/// Replaces what has a meaning in XML.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML has no way to write these.
            '\u{fffe}' | '\u{ffff}' => out.push(' '),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_breaks_out_of_an_attribute() {
        assert_eq!(escaped("a\"<b>&\n"), "a&quot;&lt;b&gt;&amp; ");
        assert_eq!(escaped("a\u{ffff}\u{1b}b"), "a  b");
    }
}
