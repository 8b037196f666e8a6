//! The manual pages and shell completions, made of the same tables that the programs parse with, so
//! that they cannot be behind. A page that no table holds is in `dist/man`.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use flanneld::flags::{self, FLAGS, Flag, Takes};

use crate::cli::Cli;
use crate::completion::visible;

/// What of flanneld's page is not in its table of flags.
const FLANNELD_BEFORE: &str = include_str!("manual/flanneld-before.roff");
const FLANNELD_AFTER: &str = include_str!("manual/flanneld-after.roff");

const SECTION: &str = "8";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Writes all of them below `dir`: `man/flanneld.8`, `bash/flanneld`, `zsh/_flanneld`,
/// `fish/flanneld.fish`, and so on.
///
/// # Errors
/// A file cannot be written: with its name.
pub(crate) fn write(dir: &Path, date: &str) -> anyhow::Result<ExitCode> {
    let man = dir.join("man");
    make(&man)?;
    put(&man.join("flanneld.8"), flanneld_page(date))?;
    let mut cli = Cli::command();
    cli.build();
    pages(&man, &cli, date)?;

    let shells = [
        (Shell::Bash, "bash"),
        (Shell::Zsh, "zsh"),
        (Shell::Fish, "fish"),
    ];
    for (shell, name) in shells {
        let dir = dir.join(name);
        make(&dir)?;
        for (program, mut command) in [
            ("flanneld", flags::command()),
            ("flannelctl", visible(&Cli::command())),
        ] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut command, program, &mut text);
            let file = match shell {
                Shell::Zsh => format!("_{program}"),
                Shell::Fish => format!("{program}.fish"),
                _ => program.into(),
            };
            put(&dir.join(file), text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The pages of a command and of those below it, hidden ones left out.
fn pages(dir: &Path, command: &clap::Command, date: &str) -> anyhow::Result<()> {
    let name = command
        .get_display_name()
        .unwrap_or(command.get_name())
        .to_string();
    let page = Man::new(
        command
            .clone()
            .name(name.clone())
            .disable_help_subcommand(true),
    )
    .section(SECTION)
    .date(date)
    .source(format!("flannel-rs {VERSION}"))
    .manual("flannel");
    let mut text = Vec::new();
    page.render(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    // A break beside an empty line breaks nothing, and linters say so.
    let text = text.replace(".br\n\n.br\n", ".sp\n");
    put(&dir.join(format!("{name}.{SECTION}")), text.into())?;
    command
        .get_subcommands()
        .filter(|c| !c.is_hide_set() && c.get_name() != "help")
        .try_for_each(|c| pages(dir, c, date))
}

fn flanneld_page(date: &str) -> Vec<u8> {
    let mut head = Roff::new();
    let source = format!("flannel-rs {VERSION}");
    head.control("TH", ["flanneld", SECTION, date, &source, "flannel"]);
    let mut options = Roff::new();
    options.control("SH", ["OPTIONS"]);
    options.control("ad", ["l"]);
    for flag in FLAGS.iter().filter(|flag| !flag.help.is_empty()) {
        options.control("TP", []);
        options.text(heading(flag));
        options.text([roman(sentence(flag.help))]);
        options.control("br", []);
        let mut ends = vec![
            roman("Environment: "),
            bold(flags::env_name(flag.name)),
            roman("."),
        ];
        if !flag.default.is_empty() {
            ends.extend([roman(" Default: "), bold(flag.default), roman(".")]);
        }
        options.text(ends);
    }
    let parts = [
        &head.render(),
        FLANNELD_BEFORE,
        &options.render(),
        FLANNELD_AFTER,
    ];
    parts.concat().into_bytes()
}

fn heading(flag: &Flag) -> Vec<Inline> {
    let name = bold(format!("-{}", flag.name));
    match flag.takes {
        Takes::Bool => vec![
            name,
            roman("[="),
            bold("true"),
            roman("|"),
            bold("false"),
            roman("]"),
        ],
        Takes::Value => vec![name, roman(" "), italic("value")],
        Takes::Repeated => vec![
            name,
            roman(" "),
            italic("value"),
            roman(", may be given again"),
        ],
    }
}

/// A line of help as a sentence.
fn sentence(help: &str) -> String {
    let mut letters = help.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string());
    format!("{}{}.", first.unwrap_or_default(), letters.as_str())
}

fn make(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))
}

fn put(file: &Path, text: Vec<u8>) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}
