//! Every link inside the repository leads somewhere, and every page can be found.

use std::path::{Component, Path, PathBuf};

use crate::page::{Page, page, pages, root};

/// The targets of the links in a line, without code.
fn targets(line: &str) -> Vec<String> {
    let plain: String = line.split('`').step_by(2).collect::<Vec<_>>().join("``");
    let after = |opening: &str, closing: char| -> Vec<String> {
        let parts = plain.split(opening).skip(1);
        parts
            .filter_map(|part| part.split(closing).next())
            .map(str::to_owned)
            .collect()
    };
    [
        after("](", ')'),
        after("src=\"", '"'),
        after("href=\"", '"'),
    ]
    .concat()
}

/// A path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => assert!(out.pop(), "{} leaves the repository", path.display()),
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

#[test]
fn links_lead_to_files_and_headings_that_exist() {
    let pages = pages();
    let mut faults = Vec::new();
    let mut seen = 0;
    for from in &pages {
        for (number, line) in from.prose() {
            for target in targets(line) {
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                seen += 1;
                let (file, anchor) = target
                    .split_once('#')
                    .map_or((target.as_str(), None), |(file, anchor)| {
                        (file, Some(anchor))
                    });
                let path = if file.is_empty() {
                    from.path.clone()
                } else {
                    plain(&from.path.parent().unwrap().join(file))
                };
                let exists = root().join(&path).exists();
                let found = match (anchor, pages.iter().find(|page| page.path == path)) {
                    (Some(anchor), Some(page)) => {
                        page.anchors().iter().any(|known| known == anchor)
                    }
                    _ => exists,
                };
                if !found {
                    faults.push(format!("{}:{number}: {target}", from.name()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(seen > 100, "only {seen} links");
}

fn listed(summary: &Page) -> Vec<PathBuf> {
    let dir = summary.path.parent().unwrap();
    let lines = summary.text.lines();
    let targets = lines.flat_map(targets);
    targets.map(|target| plain(&dir.join(target))).collect()
}

#[test]
fn every_page_is_in_the_table_of_contents_once() {
    let listed = listed(&page("docs/SUMMARY.md"));
    for page in pages() {
        if !page.path.starts_with("docs") || page.path.ends_with("SUMMARY.md") {
            continue;
        }
        let times = listed.iter().filter(|path| **path == page.path).count();
        assert_eq!(times, 1, "{} in docs/SUMMARY.md", page.name());
    }
}

#[test]
fn links_of_a_page_are_found() {
    let line = "see [a](b.md#c) and `[x](y)`, ![p](q.svg) or <img src=\"r.svg\">";
    assert_eq!(targets(line), ["b.md#c", "q.svg", "r.svg"]);
    let page = Page {
        path: "x.md".into(),
        text: "# A `b` c?\n\n```sh\n# no heading\n```\n## Same\n## Same\n".into(),
    };
    assert_eq!(page.anchors(), ["a-b-c", "same", "same-1"]);
}
