//! The last step of a log line: whatever is in it, it stays one line and of bounded length.

use std::io::{self, Write};

use model::outside::is_unsafe;
use tracing_subscriber::fmt::MakeWriter;

use super::limit::take_left_out;

/// How many characters a line has at most.
const LONGEST: usize = 2000;

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// For people.
    Text,
    /// The same with the terminal's colours, whose escape sequences must stay.
    Coloured,
    /// A JSON object each.
    Json,
}

/// Writes lines to stderr.
pub(super) struct Lines(pub(super) Form);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(self.0)
    }
}

/// One line: `tracing` writes each event with one call.
pub(super) struct Line(Form);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let line = line(self.0, text.trim_end_matches('\n'), take_left_out());
        io::stderr().lock().write_all(line.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

fn line(form: Form, text: &str, left_out: u32) -> String {
    if form == Form::Json {
        return json(text, left_out);
    }
    let mut line = String::with_capacity(text.len().min(LONGEST) + 1);
    let mut chars = text.chars();
    for c in chars.by_ref().take(LONGEST) {
        let colour = form == Form::Coloured && c == '\u{1b}';
        if is_unsafe(c) && !colour {
            line.extend(c.escape_unicode());
        } else {
            line.push(c);
        }
    }
    let more = chars.count();
    if more > 0 {
        line += &format!("... ({more} characters more)");
    }
    if left_out > 0 {
        line += &format!(" ({left_out} lines like this were left out)");
    }
    line.push('\n');
    line
}

/// Line breaks and control characters are escaped in JSON already.
fn json(text: &str, left_out: u32) -> String {
    let mut text = text.to_owned();
    if text.len() > LONGEST || left_out > 0 {
        let parsed = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text);
        if let Ok(mut object) = parsed {
            for value in object.values_mut() {
                if let serde_json::Value::String(value) = value {
                    *value = value.chars().take(LONGEST).collect();
                }
            }
            if left_out > 0 {
                object.insert("left_out".into(), left_out.into());
            }
            text = serde_json::Value::Object(object).to_string();
        }
    }
    let mut line = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        if is_unsafe(c) {
            line += &format!("\\u{:04x}", u32::from(c));
        } else {
            line.push(c);
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line() {
        let forged = "a\n2026 INFO forged\u{202e}";
        assert_eq!(
            line(Form::Text, forged, 0),
            "a\\u{a}2026 INFO forged\\u{202e}\n"
        );
        assert_eq!(line(Form::Text, "\u{1b}[31m", 0), "\\u{1b}[31m\n");
        assert_eq!(line(Form::Coloured, "\u{1b}[31m", 0), "\u{1b}[31m\n");
        assert_eq!(
            line(Form::Text, "a", 7),
            "a (7 lines like this were left out)\n"
        );
        let long = line(Form::Text, &"x".repeat(5000), 0);
        assert!(long.len() < 2100 && long.ends_with("(3000 characters more)\n"));
    }

    #[test]
    fn json_stays_json() {
        let text = serde_json::json!({"message": format!("\u{202e}{}", "x".repeat(5000))});
        let line = line(Form::Json, &text.to_string(), 3);
        assert!(line.len() < 2200 && !line.contains('\u{202e}'));
        let back: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(back["left_out"], 3);
        assert!(back["message"].as_str().unwrap().starts_with("\u{202e}x"));
    }
}
