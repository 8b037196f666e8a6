//! `flannelctl config`: the network configuration, read, checked and written, so that nobody needs
//! `etcdctl` for it.

mod args;
pub(crate) mod judge;
mod rollout;
mod set;
mod source;

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;
use store::Administer;

pub(crate) use args::ConfigCommand;
use args::{Get, Validate};
use judge::judge;

use crate::output::{line, problem};
use crate::runtime::wait_for;
use crate::status;

pub(crate) fn run(command: &ConfigCommand) -> Result<ExitCode> {
    match command {
        ConfigCommand::Get(args) => get(args),
        ConfigCommand::Set(args) => set::run(args),
        ConfigCommand::Validate(args) => validate(args),
    }
}

fn get(args: &Get) -> Result<ExitCode> {
    let store = args.store.open()?;
    let Some(stored) = wait_for(store.stored_config())? else {
        let place = store.config_place();
        problem(&format!(
            "{place}: there is no network configuration; `flannelctl config set` writes one"
        ));
        return Ok(status::no());
    };
    // The daemon reads it so, too.
    let text = String::from_utf8_lossy(&stored.json);
    if !args.effective {
        line(text.strip_suffix('\n').unwrap_or(&text));
        return Ok(ExitCode::SUCCESS);
    }
    match judge(&text) {
        Ok(judged) => {
            line(&format!("{:#}", judge::effective(&judged.config, &text)));
            tell_warnings(&judged.warnings);
            Ok(ExitCode::SUCCESS)
        }
        Err(reasons) => {
            tell_reasons(&store.config_place(), &reasons);
            Ok(status::no())
        }
    }
}

fn validate(args: &Validate) -> Result<ExitCode> {
    let text = source::read(&args.source)?;
    let (warnings, reasons) = match judge(&text) {
        Ok(judged) => (judged.warnings, Vec::new()),
        Err(reasons) => (Vec::new(), reasons),
    };
    let valid = reasons.is_empty();
    if args.json {
        let result = json!({"valid": valid, "errors": reasons, "warnings": warnings});
        line(&result.to_string());
    } else {
        tell_warnings(&warnings);
        tell_reasons("refused", &reasons);
        if valid {
            line("valid");
        }
    }
    Ok(if valid {
        ExitCode::SUCCESS
    } else {
        status::no()
    })
}

/// One line for each thing that is wrong.
fn tell_reasons(what: &str, reasons: &[String]) {
    for reason in reasons {
        problem(&format!("{what}: {reason}"));
    }
}

fn tell_warnings(warnings: &[String]) {
    for warning in warnings {
        problem(&format!("warning: {warning}"));
    }
}
