//! iptables exists in two variants that do not see each other's rules. The one to use is the one that
//! the host's other programs use.

use std::fmt;

use model::Family;

use super::RulesError;
use super::legacy::{self, Briefs};
use super::nfnetlink::NfTables;
use super::tools::Tools;

/// A variant of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// The kernel's own x_tables.
    Legacy,
    /// nf_tables, through a layer of compatibility.
    Nft,
}

/// The iptables to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iptables {
    /// Its variant.
    pub variant: Variant,
    /// Whether it knows `--random-fully`.
    pub random_fully: bool,
    /// One line: version, variant and why it was chosen.
    pub why: String,
}

/// Chains by which Kubernetes says which variant it uses.
const HINTS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];
const TABLES: [&str; 4] = ["nat", "filter", "mangle", "raw"];
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// `--random-fully` came with this one.
const RANDOM_FULLY: [u32; 3] = [1, 6, 2];

/// What other programs have in one variant's tables.
#[derive(Default)]
struct Others {
    hint: Option<String>,
    /// Chains that neither the kernel nor we made.
    chains: Vec<String>,
    rules: bool,
}

impl Others {
    fn note(&mut self, chain: &str) {
        if HINTS.contains(&chain) {
            self.hint = Some(chain.to_owned());
        }
        if !BUILT_IN.contains(&chain) && !chain.starts_with("FLANNEL-") {
            self.chains.push(chain.to_owned());
        }
    }

    /// The more, the more likely in use.
    fn weight(&self) -> (bool, usize, bool) {
        (self.hint.is_some(), self.chains.len(), self.rules)
    }

    fn named(&self) -> String {
        match self.hint.as_ref().or(self.chains.first()) {
            Some(chain) => format!("chain {chain} and others stand there"),
            None => "other programs' rules stand there".into(),
        }
    }
}

/// Chooses the variant in use on this host.
///
/// # Errors
/// There is no iptables, or it does not say its version.
pub async fn choose(tools: &Tools, nft: Option<&mut NfTables>) -> Result<Iptables, RulesError> {
    let names = ["iptables", "iptables-nft", "iptables-legacy"];
    let program = names.into_iter().find(|n| tools.find(n).is_some());
    let program = program.ok_or_else(|| RulesError::missing("iptables"))?;
    let said = tools.run(program, &["-V"], None).await?;
    let (version, default) = parse(&said).ok_or_else(|| RulesError::Unreadable {
        command: format!("{program} -V"),
        why: format!("expected a version, got {:?}", said.trim()),
    })?;

    let other = match default {
        Variant::Legacy => Variant::Nft,
        Variant::Nft => Variant::Legacy,
    };
    let (legacy, nft) = (in_legacy(), in_nft(nft));
    let (here, there) = match default {
        Variant::Legacy => (legacy, nft),
        Variant::Nft => (nft, legacy),
    };
    let better = there.weight() > here.weight();
    let installed = tools.find(&name(other, Family::V4, "-restore")).is_some();
    let (variant, why) = match (better, installed) {
        (false, _) => (default, "the host's default".into()),
        (true, true) => (other, there.named()),
        (true, false) => (
            default,
            format!(
                "{}, but {} is not installed: their rules and ours may contradict each other",
                in_other(other, &there),
                name(other, Family::V4, "")
            ),
        ),
    };
    Ok(Iptables {
        variant,
        random_fully: version >= RANDOM_FULLY,
        why: format!(
            "iptables {}.{}.{}, {variant} variant: {why}",
            version[0], version[1], version[2]
        ),
    })
}

/// Whether Kubernetes has chains among the rules of the variant that is not `variant`, and none among
/// those of `variant`. Starts no program.
pub fn kubernetes_is_elsewhere(
    variant: Variant,
    nft: Option<&mut NfTables>,
    legacy: &mut Briefs,
) -> bool {
    let in_nft = || nft.is_some_and(kubernetes_in_nft);
    match variant {
        Variant::Legacy => in_nft() && !kubernetes_in_legacy(legacy),
        Variant::Nft => kubernetes_in_legacy(legacy) && !in_nft(),
    }
}

fn kubernetes_in_nft(nft: &mut NfTables) -> bool {
    let hints = HINTS.map(|hint| ("mangle", hint)).into_iter();
    let chains: Vec<_> = hints.chain([("nat", "KUBE-SERVICES")]).collect();
    Family::ALL.into_iter().any(|family| {
        chains
            .iter()
            .any(|(table, chain)| nft.has_chain(family, table, chain).unwrap_or_default())
    })
}

fn kubernetes_in_legacy(legacy: &mut Briefs) -> bool {
    let mut has = |family, table| {
        let brief = legacy.of(family, table).ok().flatten();
        brief.is_some_and(|brief| brief.kubernetes)
    };
    Family::ALL
        .into_iter()
        .any(|family| has(family, "mangle") || has(family, "nat"))
}

fn in_other(variant: Variant, others: &Others) -> String {
    format!(
        "the host's default; in the {variant} variant {}",
        others.named()
    )
}

/// The name of one of a variant's programs: `part` is `-save` or `-restore`. Where it is not to be had
/// under its own name, the plain one is of the only variant there is.
pub fn program(tools: &Tools, variant: Variant, family: Family, part: &str) -> String {
    let exact = name(variant, family, part);
    match tools.find(&exact) {
        Some(_) => exact,
        None => format!("{}{part}", of(family)),
    }
}

fn of(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

fn name(variant: Variant, family: Family, part: &str) -> String {
    format!("{}-{variant}{part}", of(family))
}

/// `iptables v1.8.9 (nf_tables)`; before 1.8 there was one variant, and it is not named.
fn parse(said: &str) -> Option<([u32; 3], Variant)> {
    let version = said
        .split_whitespace()
        .find_map(|word| word.strip_prefix('v'))?;
    let mut numbers = version.split('.').map(|n| {
        let digits = n.find(|c: char| !c.is_ascii_digit()).unwrap_or(n.len());
        n[..digits].parse::<u32>().ok()
    });
    let mut next = || numbers.next().flatten();
    let version = [next()?, next()?, next().unwrap_or_default()];
    let variant = match said.contains("nf_tables") {
        true => Variant::Nft,
        false => Variant::Legacy,
    };
    Some((version, variant))
}

fn in_legacy() -> Others {
    let mut others = Others::default();
    for family in Family::ALL {
        for table in legacy::tables(family) {
            // What cannot be looked at cannot be taken into account.
            let Ok(Some(look)) = legacy::look(family, &table, &[]) else {
                continue;
            };
            look.chains.iter().for_each(|chain| others.note(chain));
            others.rules |=
                look.has_rules && !look.chains.iter().any(|c| c.starts_with("FLANNEL-"));
        }
    }
    others
}

fn in_nft(nft: Option<&mut NfTables>) -> Others {
    let mut others = Others::default();
    let Some(nft) = nft else {
        return others;
    };
    for family in Family::ALL {
        let chains = nft.chains(family).unwrap_or_default();
        for (table, chain) in chains.iter().filter(|(t, _)| TABLES.contains(&t.as_str())) {
            others.note(chain);
            if BUILT_IN.contains(&chain.as_str()) && !others.rules {
                let count = |nft: &mut NfTables, needle| {
                    nft.mentions(family, table, chain, needle)
                        .unwrap_or_default()
                };
                others.rules = count(nft, "") > count(nft, "FLANNEL-");
            }
        }
    }
    others
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Variant::Legacy => "legacy",
            Variant::Nft => "nft",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_variants_are_told_apart() {
        for (said, version, variant) in [
            ("iptables v1.8.9 (nf_tables)\n", [1, 8, 9], Variant::Nft),
            ("iptables v1.8.11 (legacy)", [1, 8, 11], Variant::Legacy),
            ("iptables v1.4.21", [1, 4, 21], Variant::Legacy),
            ("iptables v1.6", [1, 6, 0], Variant::Legacy),
            ("iptables v1.8.9rc1 (nf_tables)", [1, 8, 9], Variant::Nft),
        ] {
            assert_eq!(parse(said), Some((version, variant)), "{said}");
        }
        assert_eq!(parse(""), None);
        assert_eq!(parse("iptables: command vanished"), None);
    }
}
