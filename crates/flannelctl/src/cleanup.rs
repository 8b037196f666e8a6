//! `flannelctl cleanup`: shows, and removes, what a flannel left on this host: ours or another, and
//! nothing else. Who owns what is told in `docs/adr/0001-ownership-of-kernel-objects.md`.

mod args;
pub(crate) mod daemons;
mod files;
mod plan;

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

pub(crate) use args::Cleanup;
use daemons::Running;
use plan::{Item, Plan};

use crate::output::{line, problem};
use crate::runtime::wait_for;
use crate::status;

pub(crate) fn run(args: &Cleanup) -> Result<ExitCode> {
    let daemons = daemons::running()?;
    let mut plan = wait_for(Plan::make(args))?;
    let remove = args.yes && daemons.is_empty();
    let mut failed = Vec::new();
    if remove {
        failed = wait_for(async { anyhow::Ok(plan.carry_out(args).await) })?;
        let after = wait_for(Plan::make(args))?;
        let still = after
            .items
            .iter()
            .map(|item| format!("still there: {}", item.command()));
        failed.extend(still);
        if after.items.is_empty() {
            // What could not be removed is gone nevertheless: somebody else, such as a second cleanup, was quicker.
            failed.clear();
        }
        // The files that told of them are gone.
        plan.problems = after.problems;
    }
    let seen = Seen {
        plan: &plan,
        daemons: &daemons,
        failed: &failed,
        removed: remove,
    };
    match args.json {
        true => line(&seen.json().to_string()),
        false => seen.tell(args),
    }
    Ok(seen.status())
}

/// What was found and done.
struct Seen<'a> {
    plan: &'a Plan,
    daemons: &'a [Running],
    failed: &'a [String],
    /// It was removed, or tried to.
    removed: bool,
}

impl Seen<'_> {
    fn status(&self) -> ExitCode {
        let troubled = [self.failed, &self.plan.problems]
            .iter()
            .any(|all| !all.is_empty());
        match (self.plan.items.is_empty(), self.removed) {
            _ if troubled || !self.daemons.is_empty() => ExitCode::from(status::FAILED),
            (true, _) | (false, true) => ExitCode::SUCCESS,
            (false, false) => status::no(),
        }
    }

    fn tell(&self, args: &Cleanup) {
        for item in &self.plan.items {
            let command = item.command();
            match item.note() {
                Some(note) => line(&format!("{command}    # {note}")),
                None => line(&command),
            }
            if args.verbose {
                item.details()
                    .iter()
                    .for_each(|detail| line(&format!("    {detail}")));
            }
        }
        for (what, why) in &self.plan.left {
            problem(&format!("left alone: {what}: {why}"));
        }
        self.plan
            .problems
            .iter()
            .chain(self.failed)
            .for_each(|text| problem(text));
        for daemon in self.daemons {
            let Running { pid, program } = daemon;
            let (what, stop) = if daemon.is_named() {
                ("", "systemctl stop flanneld")
            } else {
                (", which has a flannel in it,", "and whatever starts it")
            };
            problem(&format!(
                "{program}{what} runs here, process {pid}: stop it first ({stop}); nothing was changed"
            ));
        }
        match (self.plan.items.len(), self.removed) {
            (0, _) => problem("nothing of flannel's is here"),
            (_, true) if self.failed.is_empty() => problem("all of this is removed"),
            (_, true) => problem("not all of this could be removed"),
            (_, false) if self.daemons.is_empty() => {
                problem("nothing was changed; --yes removes all of this")
            }
            _ => {}
        }
    }

    fn json(&self) -> Value {
        let items = self.plan.items.iter().map(described);
        let left = self
            .plan
            .left
            .iter()
            .map(|(what, why)| json!({"what": what, "why": why}));
        let daemons = self
            .daemons
            .iter()
            .map(|d| json!({"pid": d.pid, "program": d.program}));
        json!({
            "removed": self.removed,
            "items": items.collect::<Value>(),
            "left": left.collect::<Value>(),
            "daemons": daemons.collect::<Value>(),
            "errors": self.plan.problems.iter().chain(self.failed).collect::<Vec<_>>(),
        })
    }
}

fn described(item: &Item) -> Value {
    json!({"kind": item.kind(), "command": item.command(), "details": item.details()})
}
