//! `flannelctl`: what a person does to flannel by hand: the network configuration
//! (`flannelctl config`), a whole cluster on one machine to try things in (`flannelctl lab`), and a
//! demonstration of it.

mod bundle;
mod check;
mod cleanup;
mod cli;
mod completion;
mod config;
mod connectivity;
#[cfg(feature = "lab")]
mod demo;
mod drop_in;
mod env_file;
mod explain;
mod install;
mod key;
mod kube_args;
#[cfg(feature = "lab")]
mod lab_commands;
#[cfg(feature = "manual")]
mod manual;
mod output;
mod reports;
#[cfg(feature = "lab")]
mod running;
mod runtime;
mod status;
mod status_socket;
mod store_args;
#[cfg(feature = "top")]
mod top;
mod upgrade_check;
mod words;
mod yaml;

use std::process::ExitCode;

use clap::Parser;

#[cfg(feature = "lab")]
use cli::lab_args::LabCommand;
use cli::{Cli, Command};

fn main() -> ExitCode {
    output::tell_warnings_of_libraries();
    if let Some(status) = drop_in::run(std::env::args_os()) {
        return status;
    }
    let status = match Cli::try_parse_from(words::of_command_line()) {
        Ok(cli) => run(cli.command),
        // Status 2 for a command line that clap cannot read, 0 for --help and --version.
        Err(answer) => ExitCode::from(u8::try_from(output::clap_answer(&answer)).unwrap_or(1)),
    };
    match output::finish() {
        Ok(()) => status,
        Err(error) => {
            output::problem(&format!("standard output: {error}"));
            ExitCode::from(status::FAILED)
        }
    }
}

fn run(command: Command) -> ExitCode {
    let done = match command {
        #[cfg(feature = "lab")]
        Command::Lab { command } => match command {
            LabCommand::Up(shape) => lab_commands::up(&shape),
            LabCommand::Down { name } => lab_commands::down(&name.name),
            LabCommand::Status => lab_commands::status(),
            LabCommand::Exec {
                name,
                place,
                command,
            } => lab_commands::exec(&name.name, &place, &command),
            LabCommand::Run { shape, command } => lab_commands::run(&shape, &command),
            LabCommand::Hold { shape, file } => lab_commands::hold(&shape, &file),
        },
        #[cfg(feature = "lab")]
        Command::Demo => demo::run(),
        Command::Check(args) => check::run(&args),
        #[cfg(feature = "manual")]
        Command::Manual { dir, date } => manual::write(&dir, &date),
        Command::Config { command } => config::run(&command),
        Command::Status(args) => reports::status(&args),
        Command::Peers(args) => reports::peers(&args),
        #[cfg(feature = "top")]
        Command::Top(args) => top::run(&args),
        Command::Connectivity(args) => connectivity::run(&args),
        Command::ConnectivityAgent(args) => connectivity::agent::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Bundle(args) => bundle::run(&args),
        Command::LogLevel(args) => reports::log_level(&args),
        Command::UpgradeCheck(args) => upgrade_check::run(&args),
        Command::Version(args) => reports::version(&args),
        Command::Completion { shell } => completion::print(shell),
        Command::InstallCni(what) => install::run(&what),
        Command::Key { command } => key::run(&command),
        Command::Cleanup(args) => cleanup::run(&args),
    };
    done.unwrap_or_else(|e| {
        output::problem(&format!("{e:#}"));
        ExitCode::from(if wrong_command_line(&e) {
            status::USAGE
        } else {
            status::FAILED
        })
    })
}

/// Whether what was typed is wrong, and not what it speaks of.
fn wrong_command_line(error: &anyhow::Error) -> bool {
    error.is::<flanneld::options::UsageError>()
        || error.is::<clap::Error>()
        || flanneld::settle::wrong_flag(error)
}
