//! The rules of iptables that see forwarded packets, as `iptables-save` prints them.

use std::collections::BTreeMap;

use super::packet::{Action, Forwarded, Holds, Step, Verdict, device, verdict, within};
use crate::rules::save::{self, Line, Words};

/// The base chains that a forwarded packet passes, with their tables. Those of table `nat` only
/// translate addresses.
const SEEN: [(&str, &str); 4] = [
    ("raw", "PREROUTING"),
    ("mangle", "PREROUTING"),
    ("mangle", "FORWARD"),
    ("filter", "FORWARD"),
];

/// Targets after which a packet goes on to the next rule.
const GO_ON: [&str; 22] = [
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "DSCP",
    "ECN",
    "HL",
    "HMARK",
    "IDLETIMER",
    "LED",
    "LOG",
    "MARK",
    "NFLOG",
    "NOTRACK",
    "SECMARK",
    "SET",
    "TCPMSS",
    "TOS",
    "TRACE",
    "TTL",
];

/// Rules by table and chain, and the policies that refuse.
#[derive(Debug, Default)]
pub struct Saved<'a> {
    rules: BTreeMap<&'a str, BTreeMap<&'a str, Vec<&'a str>>>,
    refusing: Vec<(&'a str, &'a str)>,
}

/// Reads what `iptables-save` printed.
pub fn read(text: &str) -> Saved<'_> {
    let mut saved = Saved::default();
    save::each(text, |table, line| match line {
        Line::Chain { name, policy } => {
            saved
                .rules
                .entry(table)
                .or_default()
                .entry(name)
                .or_default();
            if policy == "DROP" {
                saved.refusing.push((table, name));
            }
        }
        Line::Rule { in_chain, spelled } => {
            let chains = saved.rules.entry(table).or_default();
            chains.entry(in_chain).or_default().push(spelled);
        }
    });
    saved
}

impl Saved<'_> {
    /// The base chains that do not let `packet` pass, or may not.
    pub fn refusals(&self, packet: &Forwarded) -> Vec<(String, Verdict)> {
        let mut refusals = Vec::new();
        for (table, base) in SEEN {
            let Some(chains) = self.rules.get(table) else {
                continue;
            };
            let known = |name: &str| chains.contains_key(name);
            let steps = |chain: &&str, rules: &Vec<&str>| {
                let step = |rule: &&str| step(chain, rule, packet, &known);
                rules.iter().map(step).collect::<Vec<_>>()
            };
            let steps = chains
                .iter()
                .map(|(chain, rules)| ((*chain).to_owned(), steps(chain, rules)))
                .collect();
            let policy = self.refusing.contains(&(table, base));
            let policy = policy.then(|| format!("policy DROP of chain {base}"));
            let verdict = verdict(&steps, base, policy);
            if verdict != Verdict::Passes {
                refusals.push((format!("table {table}, chain {base}"), verdict));
            }
        }
        refusals
    }
}

/// What a rule is to the packet. `known` says which chains there are.
fn step(chain: &str, spelled: &str, packet: &Forwarded, known: &impl Fn(&str) -> bool) -> Step {
    let words = Words::of(spelled);
    let mut words = words.as_slice().iter().map(String::as_str).peekable();
    let (mut holds, mut negated) = (Holds::Yes, false);
    let mut action = Action::Nothing;
    while let Some(word) = words.next() {
        if word == "!" {
            negated = true;
            continue;
        }
        let not = std::mem::take(&mut negated);
        let condition = match word {
            "-j" | "--jump" => {
                action = words.next().map_or(Action::Nothing, |to| target(to, known));
                // What follows are the target's own options.
                break;
            }
            "-g" | "--goto" => {
                action = words
                    .next()
                    .map_or(Action::Nothing, |to| Action::Goto(to.to_owned()));
                break;
            }
            "-m" | "--match" | "--comment" => {
                words.next();
                Holds::Yes
            }
            "-s" | "--source" => address(words.next(), |net| within(&packet.source, net)),
            "-d" | "--destination" => address(words.next(), |net| within(&packet.destination, net)),
            "-i" | "--in-interface" => named(words.next(), packet.arrives.as_deref()),
            "-o" | "--out-interface" => named(words.next(), packet.leaves.as_deref()),
            "-p" | "--protocol" => match words.next() {
                Some("tcp" | "all" | "6" | "0") => Holds::Yes,
                _ => Holds::No,
            },
            "--ctstate" | "--state" => states(words.next().unwrap_or_default()),
            "--mark" => marked(words.next().unwrap_or_default()),
            // Whatever it is, and whatever it is given.
            _ => {
                while words
                    .next_if(|next| !next.starts_with('-') && *next != "!")
                    .is_some()
                {}
                Holds::Unknown
            }
        };
        holds = holds.and(match word {
            "-m" | "--match" | "--comment" => condition,
            _ => condition.xor(not),
        });
    }
    Step {
        holds,
        action,
        text: format!("-A {chain} {spelled}"),
    }
}

fn target(name: &str, known: &impl Fn(&str) -> bool) -> Action {
    match name {
        "ACCEPT" => Action::Accept,
        "DROP" | "REJECT" => Action::Refuse,
        "RETURN" => Action::Return,
        name if known(name) => Action::Jump(name.to_owned()),
        name if GO_ON.contains(&name) => Action::Nothing,
        _ => Action::Unknown,
    }
}

fn address(text: Option<&str>, holds: impl Fn(&ipnet::IpNet) -> Holds) -> Holds {
    match text.and_then(save::net) {
        Some(net) => holds(&net),
        None => Holds::Unknown,
    }
}

fn named(name: Option<&str>, known: Option<&str>) -> Holds {
    name.map_or(Holds::Unknown, |name| device(known, name, '+'))
}

/// Whether a connection's first packet is meant.
fn states(list: &str) -> Holds {
    list.split(',').any(|state| state == "NEW").into()
}

/// Whether a packet without a mark is meant.
fn marked(text: &str) -> Holds {
    match save::mark(text) {
        Some(model::rules::Match::Mark { value, .. }) => (value == 0).into(),
        _ => Holds::Unknown,
    }
}
