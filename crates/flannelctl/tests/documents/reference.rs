//! docs/configuration.md and docs/flannelctl.md name what the programs have, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use flanneld::flags::{FLAGS, env_name};
use model::NetConfig;

use crate::page::{code, page, root, rows};

const PAGE: &str = "docs/configuration.md";

/// Names in capitals in the sources that are no variables of flanneld's own environment.
const NOT_READ: [&str; 20] = [
    // What it writes for others: subnet.env, and the environment of commands and plugins.
    "FLANNEL_IPMASQ",
    "FLANNEL_IPV6_NETWORK",
    "FLANNEL_IPV6_SUBNET",
    "FLANNEL_MTU",
    "FLANNEL_NETWORK",
    "FLANNEL_SUBNET",
    "KUBERNETES_EXEC_INFO",
    "LC_ALL",
    "PUBLIC_IP",
    "PUBLIC_IPV6",
    "XTABLES_LIBDIR",
    // Known when it is built.
    "CARGO_PKG_VERSION",
    "FLANNEL_COMMIT",
    // systemd's, which it also keeps from commands.
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    // Read in order to refuse it, as Go does in a CGI.
    "HTTP_PROXY",
];

fn set<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

/// The names in the first column of the tables of a section.
fn first_column(section: &str) -> BTreeSet<String> {
    rows(section)
        .iter()
        .flat_map(|row| code(&row[0]).into_iter().map(str::to_owned))
        .collect()
}

#[test]
fn every_flag_is_described_with_its_default() {
    let text = page(PAGE).section("## Flags");
    let known = FLAGS.iter().filter(|flag| !flag.help.is_empty());
    assert_eq!(first_column(&text), set(known.map(|flag| flag.name)));
    for row in rows(&text) {
        let names = code(&row[0]);
        // Tables without a column of defaults have two columns.
        if row.len() != 3 {
            continue;
        }
        let defaults: Vec<&str> = row[1].split(", ").map(|d| d.trim_matches('`')).collect();
        for (index, name) in names.iter().enumerate() {
            let flag = FLAGS.iter().find(|flag| flag.name == *name).unwrap();
            let said = if names.len() == 1 {
                row[1].as_str()
            } else {
                defaults[index.min(defaults.len() - 1)]
            };
            if flag.default.is_empty() {
                // In words, and never a value.
                assert!(!said.contains(['`', '/']), "{name}: {said:?} is no default");
            } else {
                assert_eq!(said.trim_matches('`'), flag.default, "default of {name}");
            }
        }
    }
    assert!(text.contains(&format!("`{}`", env_name("etcd-endpoints"))));
}

#[test]
fn every_key_of_the_network_configuration_is_described() {
    let whole = page(PAGE).section("## The network configuration");
    let table = whole.split("### Backends").next().unwrap();
    let keys = table.split("| key |").nth(1).unwrap();
    assert_eq!(first_column(keys), set(NetConfig::KEYS));
}

#[test]
fn every_option_of_every_backend_is_described() {
    let text = page(PAGE).section("### Backends");
    let mut described: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in rows(&text) {
        let options = code(&row[2]);
        described.insert(code(&row[0])[0].to_owned(), set(options));
    }
    let known: BTreeMap<String, BTreeSet<String>> = backend::HAVE
        .iter()
        .map(|kind| {
            (
                kind.to_string(),
                set(backend::options(kind).iter().copied()),
            )
        })
        .collect();
    assert_eq!(described, known);

    let backends = page("docs/backends.md");
    for (kind, options) in known {
        let section = backends.section(&format!("## {kind}"));
        for option in options {
            assert!(
                code(&section).contains(&option.as_str()),
                "docs/backends.md, {kind}: {option}"
            );
        }
    }
}

/// Names such as `NODE_NAME` between quotes in the sources below `dir`.
fn quoted_names(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            quoted_names(&path, names);
            continue;
        }
        if path.ends_with("tests.rs") || path.extension().is_none_or(|e| e != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        let quoted = text.split('"').skip(1).step_by(2);
        names.extend(
            quoted
                .filter(|word| {
                    word.contains('_')
                        && word.starts_with(|c: char| c.is_ascii_uppercase())
                        && !word.ends_with('_')
                        && word
                            .chars()
                            .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
                })
                .map(str::to_owned),
        );
    }
}

#[test]
fn every_variable_of_the_environment_is_described() {
    let mut names = BTreeSet::new();
    for part in [
        "flanneld",
        "store",
        "dataplane",
        "backend",
        "model",
        "proxy",
    ] {
        quoted_names(&root().join("crates").join(part).join("src"), &mut names);
    }
    names.retain(|name| !NOT_READ.contains(&name.as_str()));
    let flags: BTreeSet<String> = FLAGS.iter().map(|flag| env_name(flag.name)).collect();
    names.retain(|name| !flags.contains(name));

    let described = first_column(&page(PAGE).section("## Environment"));
    let missing: Vec<_> = names.difference(&described).collect();
    assert!(missing.is_empty(), "{PAGE} lacks {missing:?}");
    // Read by libraries, or by nobody.
    let elsewhere = set([
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "EVENT_QUEUE_DEPTH",
        "CONT_WHEN_CACHE_NOT_READY",
    ]);
    let invented: Vec<_> = described
        .difference(&names)
        .filter(|name| !elsewhere.contains(*name))
        .collect();
    assert!(invented.is_empty(), "nothing reads {invented:?}");
}

#[test]
fn every_command_of_flannelctl_is_described() {
    let output = Command::new(env!("CARGO_BIN_EXE_flannelctl"))
        .arg("help")
        .output()
        .unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let commands = help.split("Commands:\n").nth(1).unwrap();
    let commands = commands.lines().map_while(|line| line.strip_prefix("  "));
    let commands = commands.filter(|line| !line.starts_with(' '));
    let commands = commands.filter_map(|line| line.split_whitespace().next());
    let commands = set(commands.filter(|name| *name != "help"));
    assert!(commands.len() > 10, "{help}");

    let page = page("docs/flannelctl.md");
    let described: BTreeSet<String> = rows(&page.text)
        .iter()
        .flat_map(|row| code(&row[0]))
        .filter_map(|cell| cell.strip_prefix("flannelctl "))
        .filter_map(|rest| rest.split(' ').next().map(str::to_owned))
        .collect();
    assert_eq!(described, commands, "docs/flannelctl.md");
}
