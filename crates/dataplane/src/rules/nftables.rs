//! Our rules as nftables has them: a table per family that is ours alone, replaced as a whole in one
//! transaction and read back as JSON.

use std::fmt::Write;

use ipnet::IpNet;
use model::rules::{Chain, Match, Rule, Verdict};
use model::{Family, TrafficRules};
use serde_json::Value;

/// nftables' name of a family.
pub fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// Our table.
pub fn table(family: Family) -> &'static str {
    match family {
        Family::V4 => "flannel-ipv4",
        Family::V6 => "flannel-ipv6",
    }
}

/// How a chain of ours hangs in the kernel.
struct Hook {
    name: &'static str,
    kind: &'static str,
    hook: &'static str,
    /// As `nft` spells it, and as a number.
    priority: (&'static str, i64),
}

fn hook(chain: Chain) -> Hook {
    match chain {
        Chain::Postrouting => Hook {
            name: "postrtg",
            kind: "nat",
            hook: "postrouting",
            priority: ("srcnat", 100),
        },
        Chain::Forward => Hook {
            name: "forward",
            kind: "filter",
            hook: "forward",
            priority: ("filter", 0),
        },
    }
}

/// What stands in the family's table.
#[derive(Debug, Default, PartialEq)]
pub struct Standing {
    /// Nothing but our chains, hung as they should be.
    sane: bool,
    /// Their rules, by chain; `None` for a rule that we would never write.
    chains: [Option<Vec<Option<Rule>>>; 2],
}

/// The commands that turn the family's table into what it should be, or delete it where it has no
/// rules; `None` when it is right. `standing` is `None` where there is no table. `nft -f` carries out
/// all of them at once or none.
pub fn script(
    desired: &TrafficRules,
    family: Family,
    standing: Option<&Standing>,
) -> Option<String> {
    let rules = |chain: Chain| {
        let there = standing.and_then(|s| s.chains[chain as usize].as_deref());
        desired.merged(family, chain, there.unwrap_or_default())
    };
    let wanted = Chain::ALL.map(|chain| (chain, rules(chain)));
    let some = wanted.iter().any(|(_, rules)| !rules.is_empty());
    let right = match standing {
        None => !some,
        Some(standing) => {
            some && standing.sane
                && wanted.iter().all(|(chain, rules)| {
                    let there = standing.chains[*chain as usize].as_deref();
                    let rules = (!rules.is_empty()).then_some(rules.iter().map(Some));
                    match (there, rules) {
                        (Some(there), Some(rules)) => there.iter().map(Option::as_ref).eq(rules),
                        (there, rules) => there.is_none() && rules.is_none(),
                    }
                })
        }
    };
    (!right).then(|| replace(family, &wanted))
}

fn replace(family: Family, chains: &[(Chain, Vec<Rule>)]) -> String {
    let (of, name) = (family_name(family), table(family));
    // Adding what is there is no error, deleting what is not there would be one.
    let mut text = format!("add table {of} {name}\ndelete table {of} {name}\n");
    if chains.iter().all(|(_, rules)| rules.is_empty()) {
        return text;
    }
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(text, "table {of} {name} {{");
    for (chain, rules) in chains.iter().filter(|(_, rules)| !rules.is_empty()) {
        let Hook {
            name,
            kind,
            hook,
            priority,
        } = hook(*chain);
        let _ = writeln!(text, "\tchain {name} {{");
        let priority = priority.0;
        let _ = writeln!(
            text,
            "\t\ttype {kind} hook {hook} priority {priority}; policy accept;"
        );
        for rule in rules {
            let _ = writeln!(text, "\t\t{}", spell(family, *chain, rule));
        }
        text.push_str("\t}\n");
    }
    text.push_str("}\n");
    text
}

fn spell(family: Family, chain: Chain, rule: &Rule) -> String {
    let of = family_name(family);
    let mut text = String::new();
    for condition in rule.matches() {
        let unlike = |not: &bool| if *not { "!= " } else { "" };
        let _ = match condition {
            Match::Mark { value, mask } => write!(text, "meta mark & {mask:#x} == {value:#x} "),
            Match::Source { net, not } => write!(text, "{of} saddr {}{net} ", unlike(not)),
            Match::Destination { net, not } => write!(text, "{of} daddr {}{net} ", unlike(not)),
        };
    }
    text.push_str(match rule.verdict() {
        Verdict::Return => "return",
        Verdict::Accept => "accept",
        Verdict::Masquerade {
            fully_random: false,
        } => "masquerade",
        Verdict::Masquerade { fully_random: true } => "masquerade fully-random",
    });
    let _ = write!(text, " comment \"{}\"", chain.comment());
    text
}

/// Reads what `nft -j list table` printed.
///
/// # Errors
/// The text is not JSON.
pub fn read(family: Family, listed: &str) -> Result<Standing, serde_json::Error> {
    let listed: Value = serde_json::from_str(listed)?;
    let objects = listed["nftables"].as_array();
    let mut standing = Standing {
        sane: objects.is_some(),
        ..Standing::default()
    };
    for object in objects.into_iter().flatten() {
        let known = object.as_object().and_then(|o| o.iter().next());
        standing.sane &= known.is_some_and(|(kind, object)| standing.take(family, kind, object));
    }
    Ok(standing)
}

impl Standing {
    /// The networks of another flannel that have rules here; `desired` tells which are ours.
    pub fn anothers(&self, desired: &TrafficRules) -> Vec<IpNet> {
        let chains = self.chains.iter().flatten();
        chains.flat_map(|rules| desired.anothers(rules)).collect()
    }

    /// Takes in an object of the table. Returns whether it is one that we could have made.
    fn take(&mut self, family: Family, kind: &str, object: &Value) -> bool {
        match kind {
            "metainfo" => true,
            // Flags would switch it off or tie it to a process.
            "table" => object.get("flags").is_none(),
            "chain" => match chain_of(&object["name"]) {
                Some(chain) => {
                    self.chains[chain as usize].get_or_insert_default();
                    hangs_right(chain, object)
                }
                None => false,
            },
            "rule" => match chain_of(&object["chain"]) {
                Some(chain) => {
                    let rules = self.chains[chain as usize].get_or_insert_default();
                    rules.push(rule(family, object));
                    true
                }
                None => false,
            },
            // A set or a map: none of ours.
            _ => false,
        }
    }
}

fn chain_of(name: &Value) -> Option<Chain> {
    let name = name.as_str()?;
    Chain::ALL.into_iter().find(|c| hook(*c).name == name)
}

fn hangs_right(chain: Chain, object: &Value) -> bool {
    let wanted = hook(chain);
    object["type"] == wanted.kind
        && object["hook"] == wanted.hook
        && object["prio"] == wanted.priority.1
        && object["policy"] == "accept"
}

/// What a rule means; `None` if it is not one that we could have written.
fn rule(family: Family, object: &Value) -> Option<Rule> {
    let (last, conditions) = object["expr"].as_array()?.split_last()?;
    let matches: Option<Vec<Match>> = conditions.iter().map(|e| condition(family, e)).collect();
    let (verdict, value) = last.as_object()?.iter().next()?;
    let verdict = match verdict.as_str() {
        "return" => Verdict::Return,
        "accept" => Verdict::Accept,
        // The flags are one word, a list, or not there.
        "masquerade" => Verdict::Masquerade {
            fully_random: match &value["flags"] {
                Value::Null => value.is_null().then_some(false)?,
                Value::Array(flags) => (flags.as_slice() == ["fully-random"]).then_some(true)?,
                flag => (flag == "fully-random").then_some(true)?,
            },
        },
        _ => return None,
    };
    Some(Rule::new(matches?, verdict))
}

fn condition(family: Family, expression: &Value) -> Option<Match> {
    let condition = &expression["match"];
    let not = match condition["op"].as_str()? {
        "==" => false,
        "!=" => true,
        _ => return None,
    };
    let (left, right) = (&condition["left"], &condition["right"]);
    if let [what, mask] = left["&"].as_array().map(Vec::as_slice).unwrap_or_default() {
        if what["meta"]["key"] != "mark" || not {
            return None;
        }
        return Some(Match::Mark {
            value: number(right)?,
            mask: number(mask)?,
        });
    }
    let payload = &left["payload"];
    if payload["protocol"] != family_name(family) {
        return None;
    }
    let net = net(right)?;
    match payload["field"].as_str()? {
        "saddr" => Some(Match::Source { net, not }),
        "daddr" => Some(Match::Destination { net, not }),
        _ => None,
    }
}

fn number(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

/// `{"prefix": {"addr": "10.1.0.0", "len": 16}}`, or one address as a string.
fn net(value: &Value) -> Option<IpNet> {
    if let Some(ip) = value.as_str() {
        return Some(IpNet::from(ip.parse::<std::net::IpAddr>().ok()?));
    }
    let prefix = &value["prefix"];
    let ip = prefix["addr"].as_str()?.parse().ok()?;
    IpNet::new(ip, u8::try_from(prefix["len"].as_u64()?).ok()?).ok()
}

#[cfg(test)]
mod tests;
