//! The results: a table to read, JSON to work with, and the two for the documentation.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde::Serialize;

use crate::figure::{Figure, HEADINGS, Verdict};
use crate::plot;

/// Where and when it was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Day of the run, `2026-11-21`.
    pub date: String,
    /// The commit that was measured; `+` when there were changes on top.
    pub commit: String,
    /// Kernel release.
    pub kernel: String,
    /// Processor model and how many of them.
    pub cpu: String,
    /// etcd's version.
    pub etcd: String,
}

/// All results of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where and when.
    pub machine: Machine,
    /// Size of the flanneld program in bytes.
    pub binary_bytes: u64,
    /// How often each figure was measured.
    pub runs: usize,
    /// What came out.
    pub figures: Vec<Figure>,
}

impl Machine {
    /// This one, now. What cannot be found out is left empty.
    pub fn this() -> Machine {
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo
            .lines()
            .find_map(|l| l.strip_prefix("model name")?.split_once(": "))
            .map_or("", |(_, m)| m);
        let dirty = if first_line(&["git", "status", "--porcelain", "-uno"]).is_empty() {
            ""
        } else {
            "+"
        };
        Machine {
            date: first_line(&["date", "-u", "+%F"]),
            commit: first_line(&["git", "rev-parse", "--short", "HEAD"]) + dirty,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .into(),
            cpu: format!("{cpus} × {}", model.trim()),
            etcd: first_line(&["etcd", "--version"]),
        }
    }
}

fn first_line(argv: &[&str]) -> String {
    let output = Command::new(argv[0]).args(&argv[1..]).output();
    let text = output
        .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        .unwrap_or_default();
    text.lines().next().unwrap_or_default().into()
}

impl Report {
    /// Nothing that must be reached was missed.
    pub fn good(&self) -> bool {
        self.figures
            .iter()
            .all(|figure| figure.verdict != Verdict::Missed)
    }

    /// The table for a terminal.
    pub fn table(&self) -> String {
        let mut rows = vec![HEADINGS.map(String::from)];
        rows.extend(self.figures.iter().map(Figure::columns));
        let width = |column: usize| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
        let line = |row: &[String; 9]| {
            let cells = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(i, (cell, width))| {
                    let pad = " ".repeat(width - cell.chars().count());
                    // Words to the left, numbers to the right.
                    if matches!(i, 0 | 1 | 8) {
                        format!("{cell}{pad}")
                    } else {
                        format!("{pad}{cell}")
                    }
                });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        rows.iter().map(|row| line(row) + "\n").collect()
    }

    /// Writes `results.json` and `cold-start.svg` into `dir`.
    ///
    /// # Errors
    /// With the file's name.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let save = |name: &str, text: String| {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| path.display().to_string())
        };
        save("results.json", serde_json::to_string_pretty(self)? + "\n")?;
        match plot::cold_start(&self.figures) {
            Some(svg) => save("cold-start.svg", svg),
            None => Ok(()),
        }
    }

    /// Puts the table and the machine into the page at `path`, between its two marks.
    ///
    /// # Errors
    /// The page cannot be read or written, or has no marks.
    pub fn write_into_page(&self, path: &Path) -> anyhow::Result<()> {
        const BEGIN: &str = "<!-- figures: written by flannel-bench --save -->\n";
        const END: &str = "<!-- end of figures -->\n";
        let shown = || path.display().to_string();
        let page = fs::read_to_string(path).with_context(shown)?;
        let marks = page
            .split_once(BEGIN)
            .and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
        let (head, tail) =
            marks.with_context(|| format!("{}: no marks for the figures", path.display()))?;
        fs::write(path, [head, BEGIN, &self.markdown(), END, tail].concat()).with_context(shown)
    }

    fn markdown(&self) -> String {
        let machine = &self.machine;
        let mut out = format!(
            "\n{}, commit `{}`; {}, kernel {}; {}; flanneld is {:.1} MB.\n\n",
            machine.date,
            machine.commit,
            machine.cpu,
            machine.kernel,
            machine.etcd,
            self.binary_bytes as f64 / 1e6
        );
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        out += &line(&HEADINGS.map(String::from));
        out += "|---|---|--:|--:|--:|--:|--:|--:|---|\n";
        self.figures
            .iter()
            .for_each(|figure| out += &line(&figure.columns()));
        out + "\n"
    }
}
