//! The base chains of nftables that see forwarded packets, as `nft -j list ruleset` shows them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use model::Family;
use serde_json::Value;

use super::packet::{Action, Forwarded, Holds, Step, Verdict, device, verdict};

/// The hooks that a forwarded packet passes and where it can be refused.
const HOOKS: [&str; 3] = ["prerouting", "forward", "postrouting"];
/// A table: family and name.
type Table = (String, String);

/// Every table's chains, and which of them are base chains.
#[derive(Debug, Default)]
pub struct Ruleset {
    rules: BTreeMap<Table, BTreeMap<String, Vec<Value>>>,
    bases: Vec<Base>,
}

#[derive(Debug)]
struct Base {
    table: Table,
    chain: String,
    drops: bool,
}

/// Reads what `nft -j list ruleset` printed.
///
/// # Errors
/// It is no JSON.
pub fn read(text: &str) -> Result<Ruleset, serde_json::Error> {
    let listed: Value = serde_json::from_str(text)?;
    let mut ruleset = Ruleset::default();
    for entry in listed["nftables"].as_array().into_iter().flatten() {
        let text = |object: &Value, key: &str| object[key].as_str().unwrap_or_default().to_owned();
        if let Some(chain) = entry.get("chain") {
            let table = (text(chain, "family"), text(chain, "table"));
            let name = text(chain, "name");
            let hook = chain["hook"].as_str().unwrap_or_default();
            if HOOKS.contains(&hook) && chain["type"] == "filter" {
                ruleset.bases.push(Base {
                    table: table.clone(),
                    chain: name.clone(),
                    drops: chain["policy"] == "drop",
                });
            }
            let chains = ruleset.rules.entry(table).or_default();
            chains.entry(name).or_default();
        } else if let Some(rule) = entry.get("rule") {
            let table = (text(rule, "family"), text(rule, "table"));
            let chains = ruleset.rules.entry(table).or_default();
            let rules = chains.entry(text(rule, "chain")).or_default();
            rules.push(rule["expr"].clone());
        }
    }
    Ok(ruleset)
}

/// Whether it is a base chain of iptables in nf_tables.
fn of_iptables((family, table): &Table, chain: &str) -> bool {
    matches!(family.as_str(), "ip" | "ip6")
        && matches!(
            table.as_str(),
            "filter" | "mangle" | "raw" | "nat" | "security"
        )
        && !chain.is_empty()
        && chain.chars().all(|c| c.is_ascii_uppercase())
}

impl Ruleset {
    /// The same without the chains of iptables, which `iptables-save` shows better: those of IPv4, of
    /// IPv6.
    pub fn without_iptables(mut self, v4: bool, v6: bool) -> Ruleset {
        self.bases.retain(|base| {
            let family_shown = match base.table.0.as_str() {
                "ip" => v4,
                "ip6" => v6,
                _ => false,
            };
            !(family_shown && of_iptables(&base.table, &base.chain))
        });
        self
    }

    /// The base chains that do not let `packet` pass, or may not.
    pub fn refusals(&self, packet: &Forwarded) -> Vec<(String, Verdict)> {
        let mut refusals = Vec::new();
        for base in self.bases.iter().filter(|base| sees(&base.table.0, packet)) {
            let Some(chains) = self.rules.get(&base.table) else {
                continue;
            };
            let steps: BTreeMap<String, Vec<Step>> = chains
                .iter()
                .map(|(name, rules)| {
                    let steps = rules.iter().map(|rule| step(name, rule, packet));
                    (name.clone(), steps.collect())
                })
                .collect();
            let policy = base
                .drops
                .then(|| format!("policy drop of chain {}", base.chain));
            let verdict = verdict(&steps, &base.chain, policy);
            if verdict != Verdict::Passes {
                let (family, table) = &base.table;
                let place = format!("nft, table {family} {table}, chain {}", base.chain);
                refusals.push((place, verdict));
            }
        }
        refusals
    }
}

fn sees(family: &str, packet: &Forwarded) -> bool {
    match packet.family() {
        Family::V4 => matches!(family, "ip" | "inet"),
        Family::V6 => matches!(family, "ip6" | "inet"),
    }
}

fn step(chain: &str, expressions: &Value, packet: &Forwarded) -> Step {
    let mut holds = Holds::Yes;
    let mut action = Action::Nothing;
    for expression in expressions.as_array().into_iter().flatten() {
        let Some((kind, value)) = expression.as_object().and_then(|o| o.iter().next()) else {
            continue;
        };
        match kind.as_str() {
            "match" => holds = holds.and(condition(value, packet)),
            // A limit may be exceeded, and what comes after it is then not done.
            "limit" => holds = holds.and(Holds::Unknown),
            "vmap" => action = mapped(value, packet),
            "queue" => action = Action::Unknown,
            // A match or target of iptables.
            "xt" => holds = holds.and(Holds::Unknown),
            // Counters, logs and marks decide nothing.
            _ => action = decides(kind, value).unwrap_or(action),
        }
    }
    Step {
        holds,
        action,
        text: format!("a rule of chain {chain}: {expressions}"),
    }
}

/// A statement that decides over the packet.
fn decides(kind: &str, value: &Value) -> Option<Action> {
    let named = || value["target"].as_str().unwrap_or_default().to_owned();
    Some(match kind {
        "accept" => Action::Accept,
        "drop" | "reject" => Action::Refuse,
        "return" => Action::Return,
        "jump" => Action::Jump(named()),
        "goto" => Action::Goto(named()),
        _ => return None,
    })
}

/// What a map of verdicts does; a key that is not in it has none.
fn mapped(map: &Value, packet: &Forwarded) -> Action {
    let Some(pairs) = map["data"]["set"].as_array() else {
        return Action::Unknown;
    };
    for pair in pairs {
        let of = serde_json::json!({"op": "==", "left": map["key"], "right": pair[0]});
        let verdict = pair[1].as_object().and_then(|o| o.iter().next());
        match condition(&of, packet) {
            Holds::No => {}
            Holds::Yes => {
                let decided = verdict.and_then(|(kind, value)| decides(kind, value));
                return decided.unwrap_or(Action::Unknown);
            }
            Holds::Unknown => return Action::Unknown,
        }
    }
    Action::Nothing
}

fn condition(of: &Value, packet: &Forwarded) -> Holds {
    let negated = of["op"] == "!=";
    if !matches!(of["op"].as_str(), Some("==" | "!=" | "in")) {
        return Holds::Unknown;
    }
    let (left, right) = (&of["left"], &of["right"]);
    let values: Vec<&Value> = match right.get("set").unwrap_or(right) {
        Value::Array(values) => values.iter().collect(),
        one => vec![one],
    };
    let any = |test: &dyn Fn(&Value) -> Holds| {
        let tests: Vec<Holds> = values.iter().map(|value| test(value)).collect();
        if tests.contains(&Holds::Yes) {
            Holds::Yes
        } else if tests.contains(&Holds::Unknown) {
            Holds::Unknown
        } else {
            Holds::No
        }
    };
    let holds = if let Some(payload) = left.get("payload") {
        match (payload["protocol"].as_str(), payload["field"].as_str()) {
            (Some("ip"), _) if packet.family() == Family::V6 => return Holds::No,
            (Some("ip6"), _) if packet.family() == Family::V4 => return Holds::No,
            (Some("ip" | "ip6"), Some("saddr")) => any(&|value| contains(value, packet.source)),
            (Some("ip" | "ip6"), Some("daddr")) => {
                any(&|value| contains(value, packet.destination))
            }
            (Some("ip"), Some("protocol")) => any(&tcp),
            // A rule of another protocol's header is not for this packet.
            (Some("udp" | "udplite" | "icmp" | "icmpv6" | "sctp" | "esp" | "ah"), _) => {
                return Holds::No;
            }
            _ => Holds::Unknown,
        }
    } else if let Some(key) = left["meta"]["key"].as_str() {
        match key {
            "iifname" | "iif" => any(&|value| named(value, packet.arrives.as_deref())),
            "oifname" | "oif" => any(&|value| named(value, packet.leaves.as_deref())),
            "l4proto" => any(&tcp),
            "nfproto" => any(&|value| match (value.as_str(), packet.family()) {
                (Some("ipv4"), family) => (family == Family::V4).into(),
                (Some("ipv6"), family) => (family == Family::V6).into(),
                _ => Holds::Unknown,
            }),
            "mark" => any(&|value| {
                value
                    .as_u64()
                    .map_or(Holds::Unknown, |mark| (mark == 0).into())
            }),
            _ => Holds::Unknown,
        }
    } else if left["ct"]["key"] == "state" {
        any(&|value| {
            value
                .as_str()
                .map_or(Holds::Unknown, |state| (state == "new").into())
        })
    } else if let [what, mask] = left["&"].as_array().map(Vec::as_slice).unwrap_or_default() {
        match (what["meta"]["key"].as_str(), mask.as_u64()) {
            (Some("mark"), Some(_)) => any(&|value| {
                value
                    .as_u64()
                    .map_or(Holds::Unknown, |mark| (mark == 0).into())
            }),
            _ => Holds::Unknown,
        }
    } else {
        Holds::Unknown
    };
    holds.xor(negated)
}

/// `"10.1.0.1"`, a prefix, a range; the name of a set is not looked up.
fn contains(value: &Value, ip: IpAddr) -> Holds {
    let parse = |text: &Value| text.as_str().and_then(|text| text.parse::<IpAddr>().ok());
    if let Some(one) = parse(value) {
        return (one == ip).into();
    }
    if let Some(prefix) = value.get("prefix") {
        let len = prefix["len"]
            .as_u64()
            .and_then(|len| u8::try_from(len).ok());
        let net = parse(&prefix["addr"]).zip(len);
        let net = net.and_then(|(addr, len)| IpNet::new(addr, len).ok());
        return net.map_or(Holds::Unknown, |net| net.contains(&ip).into());
    }
    if let [from, to] = value["range"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
    {
        let range = parse(from).zip(parse(to));
        return range.map_or(Holds::Unknown, |(from, to)| (from <= ip && ip <= to).into());
    }
    Holds::Unknown
}

fn named(value: &Value, known: Option<&str>) -> Holds {
    match value.as_str() {
        // The name of a set.
        Some(name) if name.starts_with('@') => Holds::Unknown,
        Some(name) => device(known, name, '*'),
        None => Holds::Unknown,
    }
}

fn tcp(value: &Value) -> Holds {
    match value {
        Value::String(name) if name.starts_with('@') => Holds::Unknown,
        Value::String(name) => (name == "tcp").into(),
        Value::Number(number) => (number.as_u64() == Some(6)).into(),
        _ => Holds::Unknown,
    }
}
