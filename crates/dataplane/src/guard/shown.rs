//! The guard's table as the kernel shows it, beside the messages that write it.

use crate::netlink::socket::Failure;
use crate::netlink::wire::{Attrs, Batch, Message, Messages, text};
use crate::rules::nfnetlink::{CHAIN_NAME, NEWCHAIN, NEWRULE, NfTables, RULE_CHAIN, TABLE, attr};

use super::table;

/// What makes a chain, besides its name.
const CHAIN_PARTS: [u16; 3] = [table::CHAIN_HOOK, table::CHAIN_POLICY, table::CHAIN_TYPE];

/// A table without handles and counters.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    /// It is switched off, or another program's.
    flags: bool,
    chains: Vec<Chain>,
    rules: Vec<Rule>,
}

#[derive(Debug, PartialEq, Eq)]
struct Chain {
    name: Vec<u8>,
    parts: [Vec<u8>; 3],
}

#[derive(Debug, PartialEq, Eq)]
struct Rule {
    chain: Vec<u8>,
    expressions: Vec<Vec<u8>>,
    comment: Vec<u8>,
}

impl Shown {
    /// Reads the table; `None` where there is none.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(super) fn read(nft: &mut NfTables, name: &str) -> Result<Option<Shown>, Failure> {
        let mut shown = Shown::default();
        let exists = nft.get_inet_table(name, |message| {
            let flags = attr(message, table::TABLE_FLAGS).unwrap_or_default();
            shown.flags = flags.iter().any(|byte| *byte != 0);
        })?;
        if !exists {
            return Ok(None);
        }
        let is_its = |message: &Message| attr(message, TABLE).and_then(text) == Some(name);
        nft.dump_inet_chains(|message| {
            if is_its(message) {
                shown.add_chain(message);
            }
        })?;
        nft.dump_inet_rules(name, |message| {
            if is_its(message) {
                shown.add_rule(message);
            }
        })?;
        Ok(Some(shown))
    }

    /// Returns what a transaction makes of an empty table.
    fn made_by(batch: &Batch) -> Shown {
        let mut made = Shown::default();
        for message in Messages(batch.bytes()) {
            match message.kind {
                NEWCHAIN => made.add_chain(&message),
                NEWRULE => made.add_rule(&message),
                _ => {}
            }
        }
        made
    }

    /// Returns whether the table is as this transaction makes it. The kernel shows more attributes than
    /// it was sent.
    pub(super) fn is_as_by(&self, batch: &Batch) -> bool {
        let asked = Shown::made_by(batch);
        let has_chain = |chain: &Chain| self.chains.iter().any(|shown| shows(chain, shown));
        // The kernel lists the rules chain by chain, each in its order.
        let of = |table: &Shown, chain: &Chain| -> Vec<usize> {
            let rules = table.rules.iter().enumerate();
            rules
                .filter(|(_, rule)| rule.chain == chain.name)
                .map(|(at, _)| at)
                .collect()
        };
        let has_rules = |chain: &Chain| {
            let (asked_at, shown_at) = (of(&asked, chain), of(self, chain));
            let mut pairs = asked_at.iter().zip(&shown_at);
            asked_at.len() == shown_at.len()
                && pairs.all(|(a, b)| asked.rules[*a].is_shown_as(&self.rules[*b]))
        };
        !self.flags
            && self.chains.len() == asked.chains.len()
            && self.rules.len() == asked.rules.len()
            && asked
                .chains
                .iter()
                .all(|chain| has_chain(chain) && has_rules(chain))
    }

    /// Returns the number of rules.
    pub(super) fn rules(&self) -> usize {
        self.rules.len()
    }

    fn add_chain(&mut self, message: &Message) {
        let part = |kind| attr(message, kind).unwrap_or_default().to_vec();
        self.chains.push(Chain {
            name: part(CHAIN_NAME),
            parts: CHAIN_PARTS.map(part),
        });
    }

    fn add_rule(&mut self, message: &Message) {
        let part = |kind| attr(message, kind).unwrap_or_default();
        let elements = Attrs(part(table::RULE_EXPRESSIONS)).map(|(_, element)| element);
        let counts = |element: &[u8]| {
            let named = Attrs(element).find(|(kind, _)| *kind == table::EXPRESSION_NAME);
            named.and_then(|(_, name)| text(name)) == Some("counter")
        };
        self.rules.push(Rule {
            chain: part(RULE_CHAIN).to_vec(),
            expressions: elements
                .filter(|element| !counts(element))
                .map(<[u8]>::to_vec)
                .collect(),
            comment: part(table::RULE_USERDATA).to_vec(),
        });
    }
}

fn shows(asked: &Chain, shown: &Chain) -> bool {
    let mut parts = asked.parts.iter().zip(&shown.parts);
    asked.name == shown.name && parts.all(|(asked, shown)| holds(shown, asked))
}

impl Rule {
    fn is_shown_as(&self, shown: &Rule) -> bool {
        let mut pairs = self.expressions.iter().zip(&shown.expressions);
        self.comment == shown.comment
            && self.expressions.len() == shown.expressions.len()
            && pairs.all(|(asked, shown)| holds(shown, asked))
    }
}

/// Returns whether `shown` is the same value as `asked`, or holds all attributes of `asked`.
fn holds(shown: &[u8], asked: &[u8]) -> bool {
    if shown == asked {
        return true;
    }
    let mut attrs = Attrs(asked);
    let are_attrs = attrs.by_ref().count() > 0 && attrs.0.is_empty();
    let has = |(kind, asked): (u16, &[u8])| {
        Attrs(shown).any(|(other, shown)| other == kind && holds(shown, asked))
    };
    are_attrs && Attrs(asked).all(has)
}
