//! What was found: one line for each thing that was looked at, with its cure where it needs one.

use serde::Serialize;
use serde_json::json;

use crate::output::{Ink, line};

/// How it stands.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// It may do harm.
    Warn,
    /// It does harm.
    Fail,
    /// It cannot be looked at from here.
    Skip,
}

/// One thing that was looked at.
#[derive(Serialize)]
pub(crate) struct Finding {
    level: Level,
    /// What kind of thing: `kernel`, `store`, …
    about: &'static str,
    text: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cure: Option<String>,
}

/// Everything that was found, in order.
#[derive(Default)]
pub(crate) struct Report(Vec<Finding>);

impl Report {
    pub(crate) fn ok(&mut self, about: &'static str, text: impl Into<String>) {
        self.add(Level::Ok, about, text.into(), None);
    }

    pub(crate) fn warn(
        &mut self,
        about: &'static str,
        text: impl Into<String>,
        cure: impl Into<String>,
    ) {
        self.add(Level::Warn, about, text.into(), Some(cure.into()));
    }

    pub(crate) fn fail(
        &mut self,
        about: &'static str,
        text: impl Into<String>,
        cure: impl Into<String>,
    ) {
        self.add(Level::Fail, about, text.into(), Some(cure.into()));
    }

    /// Reports what cannot be looked at from here, with the way to look at it.
    pub(crate) fn skip(
        &mut self,
        about: &'static str,
        text: impl Into<String>,
        cure: impl Into<String>,
    ) {
        self.add(Level::Skip, about, text.into(), Some(cure.into()));
    }

    fn add(&mut self, level: Level, about: &'static str, text: String, cure: Option<String>) {
        self.0.push(Finding {
            level,
            about,
            text,
            cure,
        });
    }

    fn count(&self, level: Level) -> usize {
        self.0.iter().filter(|f| f.level == level).count()
    }

    /// Nothing does harm.
    pub(crate) fn is_good(&self) -> bool {
        self.count(Level::Fail) == 0
    }

    /// Returns what does harm.
    pub(crate) fn faults(&self) -> Vec<String> {
        let faults = self.0.iter().filter(|f| f.level == Level::Fail);
        faults
            .map(|fault| format!("{}: {}", fault.about, fault.text))
            .collect()
    }

    /// Writes it, for people or as JSON.
    pub(crate) fn print(&self, as_json: bool) {
        let levels = [Level::Ok, Level::Warn, Level::Fail, Level::Skip];
        let [ok, warn, fail, skip] = levels.map(|level| self.count(level));
        if as_json {
            let object =
                json!({"ok": ok, "warn": warn, "fail": fail, "skip": skip, "checks": self.0});
            return line(&format!("{object:#}"));
        }
        let ink = Ink::of_stdout();
        for finding in &self.0 {
            let mark = match finding.level {
                Level::Ok => ink.good("ok  "),
                Level::Warn => ink.bold("warn"),
                Level::Fail => ink.bad("FAIL"),
                Level::Skip => "skip".into(),
            };
            line(&format!("{mark}  {:<10} {}", finding.about, finding.text));
            if let Some(cure) = &finding.cure {
                line(&format!("{:18}-> {cure}", ""));
            }
        }
        let skipped = match skip {
            0 => String::new(),
            _ => format!(", {skip} skipped"),
        };
        line(&format!("{ok} ok, {warn} warn{skipped}, {fail} FAIL"));
    }
}
