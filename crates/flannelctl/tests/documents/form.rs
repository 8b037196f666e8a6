//! What a page must look like so that it can be read in a terminal and in a diff.

use crate::page::pages;

const WIDTH: usize = 120;

#[test]
fn lines_are_short_and_code_is_fenced() {
    let mut faults = Vec::new();
    for page in pages() {
        // Everything in it is one line for each change.
        if page.path.ends_with("CHANGELOG.md") {
            continue;
        }
        for (number, line) in page.text.lines().enumerate() {
            let at = format!("{}:{}", page.name(), number + 1);
            if line.chars().count() > WIDTH && !line.trim_start().starts_with('|') {
                faults.push(format!("{at}: longer than {WIDTH} characters"));
            }
            if line.ends_with(' ') {
                faults.push(format!("{at}: blanks at the end"));
            }
        }
        let mut before = "";
        for (number, line) in page.prose() {
            let at = format!("{}:{number}", page.name());
            if before.is_empty() && line.starts_with("    ") {
                faults.push(format!(
                    "{at}: code is indented; put it between ``` with its language"
                ));
            }
            before = line;
        }
        for block in page.blocks() {
            if block.language.is_empty() {
                faults.push(format!("{}:{}: no language", page.name(), block.line));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
