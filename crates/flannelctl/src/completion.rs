//! Shell completions, made of the table that the program parses with, so that they cannot be behind.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::output;

/// Prints what makes `shell` complete `flannelctl`.
///
/// # Errors
/// None; what cannot be written is reported at the end of the program.
pub(crate) fn print(shell: Shell) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(
        shell,
        &mut visible(&Cli::command()),
        "flannelctl",
        &mut text,
    );
    output::line(String::from_utf8_lossy(&text).trim_end());
    Ok(ExitCode::SUCCESS)
}

/// A command without what is hidden, as far as completions need it.
pub(crate) fn visible(command: &clap::Command) -> clap::Command {
    let shown = clap::Command::new(command.get_name().to_owned())
        .about(command.get_about().cloned().unwrap_or_default())
        .args(command.get_arguments().filter(|arg| !arg.is_hide_set()))
        .groups(command.get_groups());
    command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
        .fold(shown, |shown, below| shown.subcommand(visible(below)))
}
