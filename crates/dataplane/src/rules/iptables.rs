//! Our rules as `iptables-save` shows them and as `iptables-restore --noflush` takes them, for the
//! legacy and the nft variant of iptables alike.
//!
//! What stands is compared as values: versions differ in how they spell the same rule. What is
//! written is the least that is needed, in one commit per table: a chain of ours that is listed
//! again is emptied and refilled within it, so that no packet ever meets half a chain.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use ipnet::IpNet;
use model::rules::{Chain, Match, Rule, Verdict};
use model::{Family, TrafficRules};

use super::save::{self, Always, Words};

/// The table that holds a chain of ours.
pub fn table(chain: Chain) -> &'static str {
    match chain {
        Chain::Postrouting => "nat",
        Chain::Forward => "filter",
    }
}

/// Our own chain.
pub fn own(chain: Chain) -> &'static str {
    match chain {
        Chain::Postrouting => "FLANNEL-POSTRTG",
        Chain::Forward => "FLANNEL-FWD",
    }
}

/// The kernel's chain from which ours is entered. Everybody has rules there.
pub fn shared(chain: Chain) -> &'static str {
    match chain {
        Chain::Postrouting => "POSTROUTING",
        Chain::Forward => "FORWARD",
    }
}

/// What stands for one family, as far as it is ours.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Standing {
    postrouting: ChainStanding,
    forward: ChainStanding,
}

/// What stands of one chain of ours.
#[derive(Debug, Default, PartialEq, Eq)]
struct ChainStanding {
    exists: bool,
    /// Its rules; `None` is one that we would never write.
    rules: Vec<Option<Rule>>,
    /// Rules of ours in the shared chain, each as it is spelled after `-A POSTROUTING`.
    entries: Vec<Entry>,
    /// Somebody's rule leads into our chain, which therefore cannot be deleted.
    used_elsewhere: bool,
    /// The position in the shared chain, counted from 1, of the first rule that refuses every packet:
    /// a jump after it is never reached.
    refusal: Option<usize>,
}

/// A rule of ours in a shared chain.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    spelled: String,
    /// Its position in the shared chain, counted from 1.
    position: usize,
    /// It leads every packet into our chain; others are what older versions wrote.
    jump: bool,
}

impl Standing {
    /// Whether nothing of ours stands.
    pub fn is_empty(&self) -> bool {
        let none = |s: &ChainStanding| !s.exists && s.entries.is_empty();
        none(&self.postrouting) && none(&self.forward)
    }

    /// The networks of another flannel that have rules here; `desired` tells which are ours.
    pub fn anothers(&self, desired: &TrafficRules) -> Vec<IpNet> {
        let chains = Chain::ALL.into_iter();
        chains
            .flat_map(|chain| desired.anothers(&self.of(chain).rules))
            .collect()
    }

    fn of(&self, chain: Chain) -> &ChainStanding {
        match chain {
            Chain::Postrouting => &self.postrouting,
            Chain::Forward => &self.forward,
        }
    }

    fn of_mut(&mut self, chain: Chain) -> &mut ChainStanding {
        match chain {
            Chain::Postrouting => &mut self.postrouting,
            Chain::Forward => &mut self.forward,
        }
    }
}

/// Reads what `iptables-save` or `ip6tables-save` printed.
pub fn read(saved: &str) -> Standing {
    let mut standing = Standing::default();
    let mut filter: BTreeMap<&str, Vec<Words>> = BTreeMap::new();
    let mut positions = [0; Chain::ALL.len()];
    save::each(saved, |table_name, line| {
        let Some(chain) = Chain::ALL.into_iter().find(|c| table(*c) == table_name) else {
            return;
        };
        let here = standing.of_mut(chain);
        match line {
            save::Line::Chain { name, .. } => here.exists |= name == own(chain),
            save::Line::Rule { in_chain, spelled } if in_chain == own(chain) => {
                here.rules.push(save::rule(spelled, chain));
            }
            save::Line::Rule { in_chain, spelled } => {
                let words = Words::of(spelled);
                let position = &mut positions[chain as usize];
                *position += usize::from(in_chain == shared(chain));
                let leads = words.target() == Some(own(chain));
                // A jump under a condition, without our comment, is an administrator's.
                let ours =
                    words.comment() == Some(chain.comment()) || (leads && words.is_bare_jump());
                match ours && in_chain == shared(chain) {
                    true => here.entries.push(Entry {
                        spelled: spelled.to_owned(),
                        position: *position,
                        jump: leads && words.is_bare_jump(),
                    }),
                    false => here.used_elsewhere |= leads,
                }
                if chain == Chain::Forward {
                    filter.entry(in_chain).or_default().push(words);
                }
            }
        }
    });
    standing.forward.refusal = refusal(&filter);
    standing
}

/// Chains of the administrator's that docker asks to be first; what they refuse is refused on purpose.
const LEFT_FIRST: [&str; 1] = ["DOCKER-USER"];

/// The position of the first rule of `FORWARD` that refuses every packet, itself or through the chain
/// that it leads to.
fn refusal(filter: &BTreeMap<&str, Vec<Words>>) -> Option<usize> {
    let rules = filter.get(shared(Chain::Forward))?;
    let refuses = |rule: &Words| match rule.always() {
        Some(Always::Refuses) => true,
        Some(Always::Enters(chain)) => {
            !LEFT_FIRST.contains(&chain) && refuses_all(filter, chain, &mut BTreeSet::new())
        }
        None => false,
    };
    rules.iter().position(refuses).map(|at| at + 1)
}

/// Whether no packet gets through a chain: a rule without conditions refuses what comes to it, and
/// no rule before it can let a packet go on.
fn refuses_all<'a>(
    filter: &'a BTreeMap<&str, Vec<Words>>,
    chain: &'a str,
    visited: &mut BTreeSet<&'a str>,
) -> bool {
    let Some(rules) = filter.get(chain).filter(|_| visited.insert(chain)) else {
        return false;
    };
    for rule in rules {
        match (rule.always(), rule.target()) {
            (Some(Always::Refuses), _) => return true,
            (Some(Always::Enters(next)), _) if refuses_all(filter, next, visited) => return true,
            // These end no packet's way, or end it by refusing it.
            (_, None | Some("LOG" | "NFLOG" | "MARK" | "CONNMARK" | "DROP" | "REJECT")) => {}
            // An empty chain, or one that only logs, would not either; but that is not looked into.
            _ => return false,
        }
    }
    false
}

impl ChainStanding {
    /// The index of the jump that may stay as it is.
    fn kept_entry(&self) -> Option<usize> {
        let keep = self.entries.iter().position(|e| e.jump)?;
        let Some(refusal) = self.refusal else {
            return Some(keep);
        };
        let kept = &self.entries[keep];
        // Deleting a later one that is spelled alike would delete this one in its place.
        let alike = |e: &&Entry| e.spelled == kept.spelled;
        let once = self.entries.iter().filter(alike).count() == 1;
        (kept.position < refusal && once).then_some(keep)
    }

    /// Where a new jump goes after all old entries were deleted; `None` is the end.
    fn place_for_entry(&self) -> Option<usize> {
        let refusal = self.refusal?;
        let before = |e: &&Entry| e.position < refusal;
        Some(refusal - self.entries.iter().filter(before).count())
    }
}

/// What `iptables-restore --noflush` must be given so that `standing` becomes `desired`; `None`
/// when it is so already.
pub fn patch(desired: &TrafficRules, family: Family, standing: &Standing) -> Option<String> {
    let mut text = String::new();
    for chain in Chain::ALL {
        let standing = standing.of(chain);
        let merged = desired.merged(family, chain, &standing.rules);
        let commands = changes(chain, &merged, standing);
        if !commands.is_empty() {
            // Writing to a string cannot fail, here and below.
            let _ = write!(text, "*{}\n{commands}COMMIT\n", table(chain));
        }
    }
    (!text.is_empty()).then_some(text)
}

fn changes(chain: Chain, desired: &[Rule], standing: &ChainStanding) -> String {
    let (own, shared) = (own(chain), shared(chain));
    let wanted = !desired.is_empty();
    let right = wanted
        && standing.exists
        && standing
            .rules
            .iter()
            .map(Option::as_ref)
            .eq(desired.iter().map(Some));
    let keep = standing.kept_entry().filter(|_| wanted);

    let mut text = String::new();
    let emptied = standing.used_elsewhere && standing.rules.is_empty();
    if !right && (wanted || (standing.exists && !emptied)) {
        // Made if it is missing, emptied if it is there.
        let _ = writeln!(text, ":{own} - [0:0]");
    }
    for (at, entry) in standing.entries.iter().enumerate() {
        // Of several that are spelled alike, deleting takes the first; `kept_entry` minds that.
        if Some(at) != keep {
            let _ = writeln!(text, "-D {shared} {}", entry.spelled);
        }
    }
    if wanted && keep.is_none() {
        let comment = chain.comment();
        let at = match standing.place_for_entry() {
            Some(position) => format!("-I {shared} {position}"),
            None => format!("-A {shared}"),
        };
        let _ = writeln!(text, "{at} -m comment --comment \"{comment}\" -j {own}");
    }
    if !right {
        desired.iter().for_each(|rule| {
            let _ = writeln!(text, "{}", spell(chain, rule));
        });
    }
    if !wanted && standing.exists && !standing.used_elsewhere {
        let _ = writeln!(text, "-X {own}");
    }
    text
}

/// A rule of ours as a command of `iptables-restore`.
fn spell(chain: Chain, rule: &Rule) -> String {
    let mut text = format!("-A {}", own(chain));
    for condition in rule.matches() {
        let bang = |not: &bool| if *not { "! " } else { "" };
        let _ = match condition {
            Match::Mark { value, mask } => write!(text, " -m mark --mark {value:#x}/{mask:#x}"),
            Match::Source { net, not } => write!(text, " {}-s {net}", bang(not)),
            Match::Destination { net, not } => write!(text, " {}-d {net}", bang(not)),
        };
    }
    let target = match rule.verdict() {
        Verdict::Return => "RETURN",
        Verdict::Accept => "ACCEPT",
        Verdict::Masquerade {
            fully_random: false,
        } => "MASQUERADE",
        Verdict::Masquerade { fully_random: true } => "MASQUERADE --random-fully",
    };
    let _ = write!(
        text,
        " -m comment --comment \"{}\" -j {target}",
        chain.comment()
    );
    text
}

#[cfg(test)]
mod tests;
