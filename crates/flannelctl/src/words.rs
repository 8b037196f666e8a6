//! The command line as flanneld's users write it: `-etcd-endpoints=…` is `--etcd-endpoints=…` here,
//! too, and `-help` is `--help`.

use std::ffi::OsString;

use clap::{Command, CommandFactory};

use crate::cli::Cli;

/// The words of the command line, with two dashes where one was meant to be two.
pub(crate) fn of_command_line() -> Vec<OsString> {
    let words: Vec<OsString> = std::env::args_os().collect();
    let flags = match words.get(1) {
        // Its words may be another program's: `flannelctl lab exec n1 find -name x`.
        Some(first) if first == "lab" => Vec::new(),
        _ => long_flags(&Cli::command()),
    };
    words
        .into_iter()
        .map(|word| two_dashes(word, &flags))
        .collect()
}

/// Every flag with a long name, of a command and of those below it.
fn long_flags(command: &Command) -> Vec<String> {
    let own = command.get_arguments().filter_map(|arg| arg.get_long());
    let mut flags: Vec<String> = own.map(str::to_owned).collect();
    flags.extend(command.get_subcommands().flat_map(long_flags));
    flags.extend(["help".into(), "version".into()]);
    flags
}

fn two_dashes(word: OsString, flags: &[String]) -> OsString {
    let Some(flag) = word.to_str().and_then(|text| text.strip_prefix('-')) else {
        return word;
    };
    let name = flag.split('=').next().unwrap_or(flag);
    match flags.iter().any(|known| known == name) {
        true => format!("--{flag}").into(),
        false => word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flags_that_there_are_get_a_second_dash() {
        let flags = long_flags(&Cli::command());
        for (word, wanted) in [
            ("-etcd-endpoints=http://a:1", "--etcd-endpoints=http://a:1"),
            ("-store-dir", "--store-dir"),
            ("-yes", "--yes"),
            ("-help", "--help"),
            ("--help", "--help"),
            ("-h", "-h"),
            ("-", "-"),
            ("-nosuch", "-nosuch"),
            ("-v", "-v"),
            (
                "{\"Network\":\"10.0.0.0/8\"}",
                "{\"Network\":\"10.0.0.0/8\"}",
            ),
        ] {
            assert_eq!(two_dashes(word.into(), &flags), wanted);
        }
    }
}
