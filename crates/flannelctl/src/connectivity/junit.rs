//! The result as JUnit's XML, which build servers read.

use std::fmt::Write;

use super::{Check, Outcome};

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
    }
}
