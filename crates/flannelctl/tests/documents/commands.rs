//! Every block of commands is run, here or by a test that its page names, or says why it is not.
//!
//! The line before a block of `sh` or `console` is one of
//!
//! - `<!-- run -->`: run here, on a node of a small cluster over etcd, and has to succeed;
//! - `<!-- run by CRATE: TEST -->`: that test does what the block says;
//! - `<!-- not run: REASON -->`;
//!
//! or the page has a line `<!-- whole page: MARK -->` with one of the latter two.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lab::{Lab, Node, StoreKind, wait_for};
use serde_json::json;

use crate::page::{Block, Page, pages, root};

const SOON: Duration = Duration::from_secs(60);

/// What is to become of a block.
#[derive(Debug, PartialEq)]
enum Fate {
    Here,
    By { krate: String, test: String },
    Not,
}

/// The blocks of a page that hold commands, with what their marks say.
fn commands(page: &Page) -> Vec<(Block, Result<Fate, String>)> {
    let whole_page = page.text.lines().find_map(|line| {
        let mark = line.trim().strip_prefix("<!-- whole page: ")?;
        mark.strip_suffix(" -->")
    });
    let blocks = page.blocks().into_iter();
    blocks
        .filter(|block| matches!(block.language.as_str(), "sh" | "console"))
        .map(|block| {
            let mark = block.mark.as_deref().or(whole_page);
            let fate = mark.map_or_else(|| Err("has no mark".to_owned()), fate);
            (block, fate)
        })
        .collect()
}

fn fate(mark: &str) -> Result<Fate, String> {
    if mark == "run" {
        return Ok(Fate::Here);
    }
    if let Some(by) = mark.strip_prefix("run by ") {
        let (krate, test) = by.split_once(": ").ok_or("expected `run by CRATE: TEST`")?;
        return Ok(Fate::By {
            krate: krate.to_owned(),
            test: test.to_owned(),
        });
    }
    match mark.strip_prefix("not run: ") {
        Some(reason) if !reason.is_empty() => Ok(Fate::Not),
        _ => Err(format!(
            "expected `run`, `run by CRATE: TEST` or `not run: REASON`, got {mark:?}"
        )),
    }
}

/// The names of the functions in a crate's sources and tests.
fn functions(dir: &Path, text: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, text);
        } else if path.extension().is_some_and(|e| e == "rs") {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_block_of_commands_is_run_or_says_why_not() {
    let mut sources: BTreeMap<String, String> = BTreeMap::new();
    let mut faults = Vec::new();
    for page in pages() {
        for (block, fate) in commands(&page) {
            let at = format!("{}:{}", page.name(), block.line);
            match fate {
                Err(fault) => faults.push(format!("{at}: {fault}")),
                Ok(Fate::By { krate, test }) => {
                    let dir = root().join("crates").join(&krate);
                    let text = sources.entry(krate).or_insert_with(|| {
                        let mut text = String::new();
                        functions(&dir, &mut text);
                        text
                    });
                    if !text.contains(&format!("fn {test}(")) {
                        faults.push(format!("{at}: there is no test {test}"));
                    }
                }
                Ok(Fate::Here | Fate::Not) => {}
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The commands of a block, and for a transcript the output that it shows.
fn script(block: &Block) -> (String, Vec<&str>) {
    if block.language == "sh" {
        return (block.text.clone(), Vec::new());
    }
    let mut script = String::new();
    let mut shown = Vec::new();
    for line in block.text.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => script.extend([command, "\n"]),
            None => shown.push(line),
        }
    }
    (script, shown)
}

/// What begins a line of output and is the same on every machine.
fn label(line: &str) -> Option<&str> {
    let word = line.split_whitespace().next()?;
    word.chars().all(char::is_alphabetic).then_some(word)
}

fn run(lab: &Lab, page: &Page, block: &Block, dir: &Path) {
    let node = lab.node(1);
    let (script, shown) = script(block);
    let endpoint = lab.etcd().unwrap().endpoint();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_flannelctl"));
    let text = format!(
        "PATH={}:$PATH; cd {}\n{script}",
        program.parent().unwrap().display(),
        dir.display()
    );
    let output = node
        .output([
            "env".to_owned(),
            "ETCDCTL_API=3".to_owned(),
            format!("ETCDCTL_ENDPOINTS={endpoint}"),
            format!("FLANNELD_ETCD_ENDPOINTS={endpoint}"),
            "sh".to_owned(),
            "-euc".to_owned(),
            text,
        ])
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    let at = format!("{}:{}", page.name(), block.line);
    assert!(
        output.status.success(),
        "{at}: {}\n{script}{out}{err}",
        output.status
    );
    for line in shown {
        if let Some(label) = label(line) {
            assert!(
                out.lines()
                    .any(|real| real.split_whitespace().next() == Some(label)),
                "{at}: no line of the output begins with {label}\n{out}"
            );
        }
    }
}

fn installed(node: &Node, peers: usize) {
    let ctl = env!("CARGO_BIN_EXE_flannelctl");
    wait_for("the peers are installed", SOON, || {
        let output = node.output([ctl, "peers", "-o", "json"]).unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.matches("\"installed\"").count() == peers {
            Ok(())
        } else {
            Err(text)
        }
    })
    .unwrap();
}

/// A cluster for each page, since a block may change it; a page's blocks are run one after the other.
#[test]
fn the_blocks_that_are_marked_so_are_run() {
    let mut run_blocks = 0;
    for page in pages() {
        let blocks = commands(&page);
        let mut here = blocks
            .iter()
            .filter(|(_, fate)| matches!(fate, Ok(Fate::Here)))
            .peekable();
        if here.peek().is_none() {
            continue;
        }
        let lab = Lab::builder()
            .nodes(2)
            .store(StoreKind::Etcd { tls: false })
            .config("Network", json!("10.244.0.0/16"))
            .build()
            .unwrap();
        lab.start().unwrap();
        installed(lab.node(1), 1);
        let dir = tempfile::tempdir().unwrap();
        let network = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;
        fs::write(dir.path().join("network.json"), network).unwrap();
        for (block, _) in here {
            run(&lab, &page, block, dir.path());
            run_blocks += 1;
        }
    }
    assert!(run_blocks >= 8, "only {run_blocks} blocks were run");
}

#[test]
fn marks_are_understood() {
    assert_eq!(fate("run"), Ok(Fate::Here));
    assert_eq!(fate("not run: needs a cloud"), Ok(Fate::Not));
    let by = Fate::By {
        krate: "store".into(),
        test: "a_test".into(),
    };
    assert_eq!(fate("run by store: a_test"), Ok(by));
    for wrong in ["", "not run:", "not run", "run by store"] {
        assert!(fate(wrong).is_err(), "{wrong}");
    }
    assert_eq!(label("ready       yes"), Some("ready"));
    assert_eq!(label("172.30.12.0/24  x"), None);
}
