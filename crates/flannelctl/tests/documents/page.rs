//! Pages in Markdown, as far as the tests need to understand it.

use std::fs;
use std::path::{Path, PathBuf};

/// A file in Markdown.
pub(crate) struct Page {
    /// Relative to the repository.
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// A fenced block.
pub(crate) struct Block {
    /// The number of the line with the opening fence.
    pub(crate) line: usize,
    /// `sh`, `json` and so on; empty if there is none.
    pub(crate) language: String,
    /// The HTML comment on the line before, without its delimiters.
    pub(crate) mark: Option<String>,
    pub(crate) text: String,
}

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

/// Every page that people read, sorted by path.
pub(crate) fn pages() -> Vec<Page> {
    let mut found = Vec::new();
    collect(&root(), Path::new(""), &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 40, "only {} pages", found.len());
    found
}

pub(crate) fn page(path: &str) -> Page {
    Page {
        path: path.into(),
        text: fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}")),
    }
}

fn collect(root: &Path, dir: &Path, found: &mut Vec<Page>) {
    for entry in fs::read_dir(root.join(dir)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = dir.join(&name);
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            collect(root, &path, found);
        } else if path.extension().is_some_and(|e| e == "md") {
            found.push(page(path.to_str().unwrap()));
        }
    }
}

impl Page {
    pub(crate) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The lines that are not in fenced blocks, with their numbers.
    pub(crate) fn prose(&self) -> Vec<(usize, &str)> {
        let mut fenced = false;
        let mut lines = Vec::new();
        for (number, line) in self.text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            } else if !fenced {
                lines.push((number + 1, line));
            }
        }
        lines
    }

    pub(crate) fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut open: Option<Block> = None;
        let mut before = "";
        for (number, line) in self.text.lines().enumerate() {
            let fence = line.trim_start().strip_prefix("```");
            match (&mut open, fence) {
                (None, Some(language)) => {
                    let comment = before.trim().strip_prefix("<!--");
                    let comment = comment.and_then(|rest| rest.strip_suffix("-->"));
                    open = Some(Block {
                        line: number + 1,
                        language: language.trim().to_owned(),
                        mark: comment.map(|mark| mark.trim().to_owned()),
                        text: String::new(),
                    });
                }
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (Some(block), None) => block.text.extend([line, "\n"]),
                (None, None) => {}
            }
            before = line;
        }
        assert!(open.is_none(), "{}: a block is not closed", self.name());
        blocks
    }

    /// The lines below a heading, up to the next one of the same level or of a higher one.
    pub(crate) fn section(&self, heading: &str) -> String {
        let level = heading.split(' ').next().unwrap().len();
        let mut lines = self.text.lines().skip_while(|line| *line != heading);
        assert!(lines.next().is_some(), "{} has no {heading}", self.name());
        let ends = |line: &str| {
            let depth = line.len() - line.trim_start_matches('#').len();
            (1..=level).contains(&depth) && line[depth..].starts_with(' ')
        };
        let section: Vec<&str> = lines.take_while(|line| !ends(line)).collect();
        section.join("\n")
    }

    /// The names by which links find the headings of this page, as GitHub and mdBook make them.
    pub(crate) fn anchors(&self) -> Vec<String> {
        let mut anchors: Vec<String> = Vec::new();
        for (_, line) in self.prose() {
            let Some((marks, title)) = line.split_once(' ') else {
                continue;
            };
            if marks.is_empty() || marks.len() > 6 || marks.chars().any(|c| c != '#') {
                continue;
            }
            let name: String = title
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect();
            let earlier = anchors
                .iter()
                .filter(|a| **a == name || a.starts_with(&format!("{name}-")))
                .count();
            anchors.push(if earlier == 0 || !anchors.contains(&name) {
                name
            } else {
                format!("{name}-{earlier}")
            });
        }
        anchors
    }
}

/// The cells of a table's rows in `text`, without heads and rules.
pub(crate) fn rows(text: &str) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for line in text.lines() {
        let Some(inner) = line.trim().strip_prefix('|') else {
            continue;
        };
        let inner = inner.strip_suffix('|').unwrap_or(inner);
        // `\|` is a bar in a cell.
        let inner = inner.replace("\\|", "\u{1}");
        let cells: Vec<String> = inner
            .split('|')
            .map(|cell| cell.trim().replace('\u{1}', "|"))
            .collect();
        if cells
            .iter()
            .all(|cell| !cell.is_empty() && cell.chars().all(|c| matches!(c, '-' | ':')))
        {
            rows.pop();
        } else {
            rows.push(cells);
        }
    }
    rows
}

/// What stands between backticks in `text`.
pub(crate) fn code(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}
