//! `flannelctl config set`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use flanneld::config_change::{Effect, effect};
use model::NetConfig;
use serde::Serialize;
use serde_json::{Value, json};
use store::{Administer, AnyStore, ListedLease, StoredConfig};

use super::args::Set;
use super::{judge::judge, rollout, source, tell_reasons, tell_warnings};
use crate::output::{line, problem};
use crate::runtime::wait_for;
use crate::status;

/// How many leases are named to a person; JSON holds all.
const NAMED: usize = 20;

/// How long somebody else may be quicker, again and again.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest pause between two attempts, in milliseconds; it is random, so that two of them do not keep step.
const PAUSE: u64 = 40;

pub(super) fn run(args: &Set) -> Result<ExitCode> {
    let text = source::read(&args.source)?;
    let store = args.store.open()?;
    let judged = match judge(&text) {
        Ok(judged) => judged,
        Err(reasons) => return Ok(refuse(args, &store, reasons)),
    };
    // One runtime for both: the connection of the first step is of no use in another.
    wait_for(async {
        let done = write(args, &store, &text, &judged.config).await?;
        let code = report(args, &store, &done, &judged.warnings);
        let in_force = matches!(done.outcome, Outcome::Written | Outcome::Same);
        if !args.wait || !in_force {
            return Ok(code);
        }
        let limit = Duration::from_secs(args.timeout);
        rollout::follow(&store, &judged.config.backend.kind, limit).await
    })
}

/// Returns what the change does to nodes that run, one line each.
fn effects(before: Option<&StoredConfig>, after: &NetConfig) -> Vec<String> {
    let before = before.and_then(|stored| {
        let text = String::from_utf8_lossy(&stored.json);
        NetConfig::from_json(&text).ok()
    });
    match before.map(|before| effect(&before, after, None)) {
        None | Some(Effect::Nothing) => Vec::new(),
        Some(Effect::Live(steps)) => steps,
        Some(Effect::Restart(why)) => vec![why],
    }
}

/// What became of it.
struct Done {
    outcome: Outcome,
    /// What the change does to nodes that run.
    effects: Vec<String>,
    misfits: Vec<ListedLease>,
}

#[derive(PartialEq)]
enum Outcome {
    Written,
    WouldBeWritten,
    /// What is stored says the same.
    Same,
    /// Another one is there, and is to stay (`--if-absent`).
    OtherStays,
    /// There are leases that do not fit.
    Misfits,
}

async fn write(args: &Set, store: &AnyStore, text: &str, config: &NetConfig) -> Result<Done> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let stored = store.stored_config().await?;
        let mut done = Done {
            outcome: Outcome::Same,
            effects: effects(stored.as_ref(), config),
            misfits: Vec::new(),
        };
        match &stored {
            Some(stored) if same(stored, text) => return Ok(done),
            Some(_) if args.if_absent => {
                done.outcome = Outcome::OtherStays;
                return Ok(done);
            }
            _ => {}
        }
        let leases = store.leases().await?;
        done.misfits = leases
            .into_iter()
            .filter(|lease| !config.fits(&lease.key))
            .collect();
        if !done.misfits.is_empty() && !args.force {
            done.outcome = Outcome::Misfits;
            return Ok(done);
        }
        if args.dry_run {
            done.outcome = Outcome::WouldBeWritten;
            return Ok(done);
        }
        let mut json = text.to_owned();
        if let AnyStore::Directory(_) = store {
            json.push('\n');
        }
        if store.swap_config(json.as_bytes(), stored.as_ref()).await? {
            done.outcome = Outcome::Written;
            return Ok(done);
        }
        // Somebody wrote another one meanwhile, which may be the same.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(1..=PAUSE))).await;
    }
    bail!(
        "{}: others kept writing it for {} s; nothing was written: find out who does, then repeat this",
        store.config_place(),
        PATIENCE.as_secs()
    );
}

/// Whether both say the same, however they are spelled.
fn same(stored: &StoredConfig, text: &str) -> bool {
    let value = |json: &[u8]| serde_json::from_slice::<Value>(json).ok();
    let (old, new) = (value(&stored.json), value(text.as_bytes()));
    stored.json.trim_ascii() == text.as_bytes() || (old.is_some() && old == new)
}

/// A configuration that no flanneld could use.
fn refuse(args: &Set, store: &AnyStore, reasons: Vec<String>) -> ExitCode {
    if args.json {
        let answer = Answer {
            changed: false,
            place: store.config_place(),
            warnings: &[],
            misfits: Vec::new(),
            effects: &[],
            refused: reasons,
        };
        answer.print();
    } else {
        tell_reasons("refused", &reasons);
    }
    status::no()
}

/// What `--json` prints: every key, whatever the outcome.
#[derive(Serialize)]
struct Answer<'a> {
    changed: bool,
    place: String,
    warnings: &'a [String],
    misfits: Vec<Value>,
    effects: &'a [String],
    refused: Vec<String>,
}

impl Answer<'_> {
    fn print(&self) {
        line(&json!(self).to_string());
    }
}

fn report(args: &Set, store: &AnyStore, done: &Done, warnings: &[String]) -> ExitCode {
    let place = store.config_place();
    let changed = matches!(done.outcome, Outcome::Written | Outcome::WouldBeWritten);
    let refused = done.outcome == Outcome::Misfits;
    if args.json {
        let refused: Vec<String> = refused.then(|| summary(done)).into_iter().collect();
        let answer = Answer {
            changed,
            place,
            warnings,
            misfits: done.misfits.iter().map(described).collect(),
            effects: &done.effects,
            refused,
        };
        answer.print();
    } else {
        tell_warnings(warnings);
        tell_misfits(done);
        match done.outcome {
            Outcome::Written => line("written"),
            Outcome::WouldBeWritten => line("would be written"),
            Outcome::Same | Outcome::OtherStays => line("unchanged"),
            Outcome::Misfits => {}
        }
        if done.outcome == Outcome::OtherStays {
            problem(&format!(
                "{place} holds another configuration, which --if-absent leaves as it is"
            ));
        }
        if changed {
            done.effects.iter().for_each(|effect| problem(effect));
        }
    }
    if refused {
        status::no()
    } else {
        ExitCode::SUCCESS
    }
}

fn summary(done: &Done) -> String {
    let count = done.misfits.len();
    let (leases, do_not) = if count == 1 {
        ("lease", "does not")
    } else {
        ("leases", "do not")
    };
    format!("{count} {leases} {do_not} fit this configuration")
}

fn tell_misfits(done: &Done) {
    if done.misfits.is_empty() {
        return;
    }
    let refused = done.outcome == Outcome::Misfits;
    let how = if refused { "refused" } else { "warning" };
    problem(&format!("{how}: {}:", summary(done)));
    for lease in done.misfits.iter().take(NAMED) {
        let owner = owner(lease).unwrap_or_else(|| "a node that its value does not tell".into());
        let reserved = if lease.reserved { " (reservation)" } else { "" };
        problem(&format!("  {} of {owner}{reserved}", lease.key));
    }
    if let Some(more) = done
        .misfits
        .len()
        .checked_sub(NAMED)
        .filter(|more| *more > 0)
    {
        problem(&format!("  and {more} more"));
    }
    problem(
        "  these nodes take other subnets at their next start, and their containers need other addresses",
    );
    if refused {
        problem("nothing was written; --force writes it nevertheless");
    }
}

fn owner(lease: &ListedLease) -> Option<String> {
    let attrs = lease.attrs.as_ref().ok()?;
    let ips: Vec<String> = attrs
        .public_ip
        .iter()
        .map(|(_, ip)| ip.to_string())
        .collect();
    Some(ips.join(", "))
}

fn described(lease: &ListedLease) -> Value {
    let ip = |family| {
        lease
            .attrs
            .as_ref()
            .ok()
            .and_then(|a| a.public_ip.get(family).copied())
    };
    json!({
        "subnet": lease.key.to_string(),
        "publicIP": ip(model::Family::V4),
        "publicIPv6": ip(model::Family::V6),
        "reservation": lease.reserved,
    })
}
