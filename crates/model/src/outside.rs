//! Text that somebody else wrote, in a message of ours.

use std::fmt::{self, Write};

/// How many characters of such a text a message shows.
const LONGEST: usize = 100;

/// Text from outside: a lease, an annotation, a server's error, a file's name. Shows at most 100
/// characters of it, and those that could forge a line, move the cursor or turn the direction of
/// writing as escapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outside<'a>(pub &'a str);

impl fmt::Display for Outside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.0.chars();
        for c in chars.by_ref().take(LONGEST) {
            if is_unsafe(c) {
                write!(f, "{}", c.escape_unicode())?;
            } else {
                f.write_char(c)?;
            }
        }
        let left = chars.count();
        if left > 0 {
            write!(f, "... ({left} characters more)")?;
        }
        Ok(())
    }
}

/// Whether a character changes more of a line than its own place: control characters, line and
/// paragraph separators, marks that turn the direction of writing, and invisible ones.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_forge_a_line_is_escaped() {
        for (text, shown) in [
            ("vxlan", "vxlan"),
            ("größer ✓", "größer ✓"),
            ("x\n2026 INFO forged", "x\\u{a}2026 INFO forged"),
            ("\u{1b}[31m", "\\u{1b}[31m"),
            (
                "a\u{202e}b\u{2028}c\u{200b}",
                "a\\u{202e}b\\u{2028}c\\u{200b}",
            ),
            ("", ""),
        ] {
            assert_eq!(Outside(text).to_string(), shown);
        }
    }

    #[test]
    fn only_the_beginning_is_shown() {
        let long = "ü".repeat(1_000_000);
        let shown = Outside(&long).to_string();
        assert_eq!(
            shown,
            format!("{}... (999900 characters more)", "ü".repeat(100))
        );
    }
}
