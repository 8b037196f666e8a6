//! Files of environment variables as systemd's `EnvironmentFile=` reads them, so that a command finds
//! the store with the settings of this machine's daemon.

use std::collections::BTreeMap;

/// Reads `KEY=value` lines. Values may be quoted; `#` and `;` begin comments; a backslash at the end
/// of a line goes on in the next. Other lines are no variables, and left out, as systemd does.
pub(crate) fn parse(text: &str) -> BTreeMap<String, String> {
    let joined = text.replace("\\\n", "");
    let mut variables = BTreeMap::new();
    for line in joined.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        if let Some((key, value)) = line.split_once('=') {
            variables.insert(key.trim_end().to_owned(), unquoted(value.trim_start()));
        }
    }
    variables
}

fn unquoted(text: &str) -> String {
    let mut value = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => value.extend(chars.next()),
            (c, Some(open)) if c == open => quote = None,
            ('"' | '\'', None) => quote = Some(c),
            (c, _) => value.push(c),
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_systemd_reads() {
        let text = "# a comment\n; another\n\nFLANNELD_A=plain value \nFLANNELD_B=\"in \\\"quotes\\\"\"\n\
                    FLANNELD_C='as \\it is'\n  FLANNELD_D = http://a:1,\\\nhttp://b:2\nnonsense\nFLANNELD_E=\n\
                    FLANNELD_A=last\n";
        let read = parse(text);
        let value = |key: &str| read.get(key).map(String::as_str);
        assert_eq!(value("FLANNELD_A"), Some("last"));
        assert_eq!(value("FLANNELD_B"), Some("in \"quotes\""));
        assert_eq!(value("FLANNELD_C"), Some("as \\it is"));
        assert_eq!(value("FLANNELD_D"), Some("http://a:1,http://b:2"));
        assert_eq!(value("FLANNELD_E"), Some(""));
        assert_eq!(read.len(), 5);
    }

    #[test]
    fn fuzzed_files() {
        let seed = b"# comment\nA=1\nB=\"x y\"\nC='z\\\n'\n; D=4\nE = f\\ g\n";
        fuzz::run("environment file", &[seed], |input| {
            parse(&String::from_utf8_lossy(input)).len()
        });
    }
}
