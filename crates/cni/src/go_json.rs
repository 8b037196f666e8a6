//! JSON as Go's decoder takes it, turned into JSON that every decoder takes alike.
//!
//! Upstream's plugin and the delegates are written in Go. A configuration that works with them must work here: Go
//! replaces bytes that are not UTF-8 and half surrogate pairs by U+FFFD, and upstream hands whole numbers on as
//! integers however they were written (`1400.0`, `1e3`), which the delegates insist on.

use std::borrow::Cow;

const REPLACEMENT: &str = "\\ufffd";

/// Returns `bytes` as text with those replacements. What is not JSON stays wrong, for the decoder to report. Nothing is
/// descended into, so depth costs nothing.
pub fn normalize(bytes: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(bytes);
    match rewrite(&text) {
        Some(rewritten) => Cow::Owned(rewritten),
        None => text,
    }
}

/// Returns the rewritten text, or `None` where there is nothing to rewrite.
fn rewrite(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out: Option<String> = None;
    // Up to where `text` is in `out`.
    let mut copied = 0;
    let mut replace = |from: usize, to: usize, by: &str| {
        let out = out.get_or_insert_with(|| String::with_capacity(text.len()));
        out.push_str(text.get(copied..from).unwrap_or_default());
        out.push_str(by);
        copied = to;
    };
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at = string(bytes, at + 1, &mut replace),
            b'-' | b'0'..=b'9' => {
                let end = bytes[at..]
                    .iter()
                    .position(|b| !matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
                    .map_or(bytes.len(), |length| at + length);
                if let Some(integer) = text.get(at..end).and_then(integer) {
                    replace(at, end, &integer);
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    out.map(|mut out| {
        out.push_str(text.get(copied..).unwrap_or_default());
        out
    })
}

/// Passes over a string that begins at `at`, behind its quote, and returns where it ends.
fn string(bytes: &[u8], mut at: usize, replace: &mut impl FnMut(usize, usize, &str)) -> usize {
    const ESCAPE: usize = 6;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => match surrogate(bytes, at) {
                Some(0xd800..=0xdbff)
                    if matches!(surrogate(bytes, at + ESCAPE), Some(0xdc00..=0xdfff)) =>
                {
                    at += 2 * ESCAPE;
                }
                Some(_) => {
                    replace(at, at + ESCAPE, REPLACEMENT);
                    at += ESCAPE;
                }
                None => at += 2,
            },
            _ => at += 1,
        }
    }
    at
}

/// Returns the half of a surrogate pair that is escaped at `at`, if there is one.
fn surrogate(bytes: &[u8], at: usize) -> Option<u16> {
    let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    let value = u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    (0xd800..=0xdfff).contains(&value).then_some(value)
}

/// Returns a whole number that is written with a fraction or an exponent as an integer. Beyond 2^53 a float64 does not
/// say which integer was meant: such a number stays as it is.
fn integer(token: &str) -> Option<String> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if !token.contains(['.', 'e', 'E']) {
        return None;
    }
    // Only what JSON takes for a number: Rust's parser is more liberal.
    let value: f64 = serde_json::from_str(token).ok()?;
    (value.fract() == 0.0 && value.abs() <= EXACT).then(|| (value as i64).to_string())
}

#[cfg(test)]
mod tests {
    use super::normalize;

    #[test]
    fn what_go_replaces_is_replaced_and_nothing_else() {
        for (given, expected) in [
            (&br#"{"mtu":1400.0}"#[..], r#"{"mtu":1400}"#),
            (b"[1e3,1E+2,-2.50e1,-0.0,100e-2]", "[1000,100,-25,0,1]"),
            (
                b"[1.50,1e400,1e17,12345678901234567890.0]",
                "[1.50,1e400,1e17,12345678901234567890.0]",
            ),
            (
                b"[1400, 012.0, 1.e3, -, +1.0]",
                "[1400, 012.0, 1.e3, -, +1]",
            ),
            (br#"["1400.0","\"1.0",2.0]"#, r#"["1400.0","\"1.0",2]"#),
            (
                br#"["\ud800","\udc00x","\ud83d\ude00","\\ud800"]"#,
                r#"["\ufffd","\ufffdx","\ud83d\ude00","\\ud800"]"#,
            ),
            (br#"{"\ud800\u0041":"\u00e9"#, r#"{"\ufffd\u0041":"\u00e9"#),
            (b"{\"a\xff\":\"\xc3\"}", "{\"a\u{fffd}\":\"\u{fffd}\"}"),
            (br#""\u"#, r#""\u"#),
            (br#""\"#, r#""\"#),
            (b"", ""),
        ] {
            assert_eq!(normalize(given), expected);
        }
    }
}
