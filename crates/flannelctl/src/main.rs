//! `flannelctl`: what a person does to flannel by hand. For now: a whole cluster on one machine to
//! try things in (`flannelctl lab`), and a demonstration of it.

mod cli;
mod demo;
mod lab_commands;
mod output;
mod running;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, LabCommand};

fn main() -> ExitCode {
    // clap itself exits with status 2 on a command line that it cannot read.
    let done = match Cli::parse().command {
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
        Command::Demo => demo::run(),
    };
    done.unwrap_or_else(|e| {
        output::problem(&format!("{e:#}"));
        ExitCode::from(1)
    })
}
