//! The text that `iptables-save` prints, whichever version and variant prints it.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use model::rules::{Chain, Match, Rule, Verdict};

/// A line that says something.
pub enum Line<'a> {
    /// `:NAME POLICY …`: a chain is there. One of our kind has the policy `-`.
    Chain {
        /// The chain.
        name: &'a str,
        /// What becomes of packets that reach its end.
        policy: &'a str,
    },
    /// `-A NAME …`: one of its rules.
    Rule {
        /// The chain.
        in_chain: &'a str,
        /// What follows the chain's name, as it stands.
        spelled: &'a str,
    },
}

/// Calls `f` with the name of the table and the line, for each line that says something.
pub fn each<'a>(saved: &'a str, mut f: impl FnMut(&'a str, Line<'a>)) {
    let mut table = "";
    for line in saved.lines() {
        let line = line.trim_end();
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':') {
            let (name, rest) = first_word(chain);
            let policy = first_word(rest).0;
            f(table, Line::Chain { name, policy });
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let (in_chain, spelled) = first_word(rule);
            f(table, Line::Rule { in_chain, spelled });
        }
    }
}

/// The tables among `tables` that iptables says it cannot read: somebody used `nft` on them.
pub fn unreadable<'a>(saved: &str, tables: &[&'a str]) -> Option<&'a str> {
    let cannot = |table: &&&str| {
        saved
            .lines()
            .any(|l| l.starts_with('#') && l.contains(&format!("`{table}' is incompatible")))
    };
    tables.iter().find(cannot).copied()
}

fn first_word(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}

/// A rule's words, without quotes and escapes.
pub struct Words(Vec<String>);

impl Words {
    /// Takes a rule apart as a shell would, as far as iptables quotes: `"…"` and `\`.
    pub fn of(spelled: &str) -> Words {
        let (mut words, mut word) = (Vec::new(), None::<String>);
        let (mut quoted, mut chars) = (false, spelled.chars());
        while let Some(c) = chars.next() {
            match c {
                '"' => {
                    quoted = !quoted;
                    word.get_or_insert_default();
                }
                '\\' => word.get_or_insert_default().extend(chars.next()),
                ' ' | '\t' if !quoted => words.extend(word.take()),
                c => word.get_or_insert_default().push(c),
            }
        }
        words.extend(word);
        Words(words)
    }

    /// The words in order.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }

    fn after(&self, option: &[&str]) -> Option<&str> {
        let at = self.0.iter().position(|w| option.contains(&w.as_str()))?;
        self.0.get(at + 1).map(String::as_str)
    }

    /// Where the rule leads.
    pub fn target(&self) -> Option<&str> {
        self.after(&["-j", "--jump", "-g", "--goto"])
    }

    /// Its comment.
    pub fn comment(&self) -> Option<&str> {
        self.after(&["--comment"])
    }

    /// What the rule does to a packet of any kind; `None` if it has a condition or no target.
    pub fn always(&self) -> Option<Always<'_>> {
        let mut words = self.0.iter().map(String::as_str);
        let mut target = None;
        while let Some(word) = words.next() {
            match (word, words.next()) {
                ("-j" | "--jump" | "-g" | "--goto", Some(to)) => target = Some(to),
                ("-m" | "--match", Some("comment")) | ("--comment" | "--reject-with", Some(_)) => {}
                _ => return None,
            }
        }
        Some(match target? {
            "DROP" | "REJECT" => Always::Refuses,
            chain => Always::Enters(chain),
        })
    }

    /// A jump that every packet takes: nothing but a target and perhaps a comment.
    pub fn is_bare_jump(&self) -> bool {
        let mut words = self.0.iter().map(String::as_str);
        while let Some(word) = words.next() {
            match (word, words.next()) {
                ("-j" | "--jump" | "--comment", Some(_)) | ("-m", Some("comment")) => {}
                _ => return false,
            }
        }
        true
    }
}

/// What a rule without conditions does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Always<'a> {
    /// It drops or rejects the packet.
    Refuses,
    /// It passes the packet to this chain or target.
    Enters(&'a str),
}

/// What a rule in one of our chains means; `None` if it is not one that we could have written.
pub fn rule(spelled: &str, chain: Chain) -> Option<Rule> {
    let words = Words::of(spelled).0;
    let mut words = words.iter().map(String::as_str);
    let (mut matches, mut verdict) = (Vec::new(), None);
    let (mut not, mut random, mut commented) = (false, false, false);
    while let Some(word) = words.next() {
        let negated = std::mem::take(&mut not);
        match word {
            "!" => not = true,
            "-s" | "--source" | "--src" => matches.push(Match::Source {
                net: net(words.next()?)?,
                not: negated,
            }),
            "-d" | "--destination" | "--dst" => matches.push(Match::Destination {
                net: net(words.next()?)?,
                not: negated,
            }),
            _ if negated => return None,
            "-m" | "--match" => {
                if !matches!(words.next()?, "mark" | "comment") {
                    return None;
                }
            }
            "--mark" => matches.push(mark(words.next()?)?),
            "--comment" => commented = words.next()? == chain.comment(),
            "-j" | "--jump" => {
                verdict = Some(match words.next()? {
                    "RETURN" => Verdict::Return,
                    "ACCEPT" => Verdict::Accept,
                    "MASQUERADE" => Verdict::Masquerade {
                        fully_random: false,
                    },
                    _ => return None,
                });
            }
            "--random-fully" => random = true,
            _ => return None,
        }
    }
    let verdict = match (verdict?, random) {
        (Verdict::Masquerade { .. }, fully_random) => Verdict::Masquerade { fully_random },
        (other, false) => other,
        (_, true) => return None,
    };
    (commented && !not).then(|| Rule::new(matches, verdict))
}

/// `10.1.0.0/16`, `10.1.5.7`, `10.1.0.0/255.255.0.0`, `fd00::/48`.
pub fn net(text: &str) -> Option<IpNet> {
    if let Ok(net) = text.parse::<IpNet>() {
        return Some(net.trunc());
    }
    match text.split_once('/') {
        None => text.parse().ok().map(|ip: IpAddr| IpNet::from(ip)),
        Some((ip, mask)) => {
            let (ip, mask): (Ipv4Addr, Ipv4Addr) = (ip.parse().ok()?, mask.parse().ok()?);
            let net = IpNet::with_netmask(ip.into(), mask.into()).ok()?;
            Some(net.trunc())
        }
    }
}

/// `0x4000/0x4000`, `0x4000`.
pub fn mark(text: &str) -> Option<Match> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    let (value, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
    Some(Match::Mark {
        value: number(value)?,
        mask: number(mask)?,
    })
}
