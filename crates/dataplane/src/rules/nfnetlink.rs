//! nf_tables without a process: whether a table or chain is there, which rules mention something,
//! the generation of the whole. Both `nft` and the nft variant of iptables end up here.

use std::collections::BTreeSet;
use std::io;

use model::Family;
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::netlink::socket::{Failure, Requests};
use crate::netlink::wire::{Attrs, Batch, Message, af, text};

const SUBSYSTEM: u16 = 10 << 8;
pub const NEWTABLE: u16 = SUBSYSTEM;
const GETTABLE: u16 = SUBSYSTEM | 1;
pub const DELTABLE: u16 = SUBSYSTEM | 2;
pub const NEWCHAIN: u16 = SUBSYSTEM | 3;
const GETCHAIN: u16 = SUBSYSTEM | 4;
pub const DELCHAIN: u16 = SUBSYSTEM | 5;
pub const NEWRULE: u16 = SUBSYSTEM | 6;
const GETRULE: u16 = SUBSYSTEM | 7;
pub const DELRULE: u16 = SUBSYSTEM | 8;
pub const NEWSET: u16 = SUBSYSTEM | 9;
pub const NEWSETELEM: u16 = SUBSYSTEM | 12;
const GETSETELEM: u16 = SUBSYSTEM | 13;
pub const NEWGEN: u16 = SUBSYSTEM | 15;
const GETGEN: u16 = SUBSYSTEM | 16;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `NFNL_SUBSYS_NFTABLES`, as the resource of a transaction.
const BATCH_BODY: [u8; FIXED] = [0, 0, 0, 10];
/// `NFPROTO_INET`.
const INET: [u8; FIXED] = [1, 0, 0, 0];

/// The attribute that holds a table's name, in messages about tables, chains and rules.
pub const TABLE: u16 = 1;
/// The chain's name in a message about a rule.
pub const RULE_CHAIN: u16 = 2;
/// The chain's name in a message about a chain.
pub const CHAIN_NAME: u16 = 3;
/// The set's name in a message about its elements, and the elements.
const ELEMENTS_SET: u16 = 2;
pub const SET_ELEMENTS: u16 = 3;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
/// Of an expression: its name, its data; of the data of a `match`: its name.
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const MATCH_NAME: u16 = 1;
const GENERATION: u16 = 1;
/// The program that made a generation, in big-endian.
pub const GEN_PID: u16 = 2;
pub const GEN_PROGRAM: u16 = 3;

/// Bytes before the attributes: family, version, resource.
pub const FIXED: usize = 4;

/// A door to nf_tables in the network namespace in which it was opened.
pub struct NfTables {
    requests: Requests,
}

impl NfTables {
    /// Opens it.
    ///
    /// # Errors
    /// No socket to be had.
    pub fn open() -> io::Result<NfTables> {
        Ok(NfTables {
            requests: Requests::open_for(NETLINK_NETFILTER)?,
        })
    }

    /// The number that changes with every change; `None` where the kernel has no nf_tables.
    pub fn generation(&mut self) -> Option<u32> {
        let mut found = None;
        let asked = self.requests.call(
            GETGEN,
            0,
            &[0; FIXED],
            |_| {},
            |message| {
                found = attr(message, GENERATION).and_then(be32);
            },
        );
        asked.ok().and(found)
    }

    /// Whether a table is there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn has_table(&mut self, family: Family, table: &str) -> Result<bool, Failure> {
        let names = |batch: &mut Batch| put(batch, TABLE, table);
        there(
            self.requests
                .call(GETTABLE, 0, &body(family), names, |_| {}),
        )
    }

    /// Whether a chain is there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn has_chain(&mut self, family: Family, table: &str, chain: &str) -> Result<bool, Failure> {
        let names = |batch: &mut Batch| {
            put(batch, TABLE, table);
            put(batch, CHAIN_NAME, chain);
        };
        there(
            self.requests
                .call(GETCHAIN, 0, &body(family), names, |_| {}),
        )
    }

    /// The names of the tables of one netfilter family, by its number.
    ///
    /// # Errors
    /// The kernel's refusal; a kernel without nf_tables has no tables.
    pub fn tables(&mut self, family: u8) -> Result<Vec<String>, Failure> {
        let mut found = BTreeSet::new();
        let body = [family, 0, 0, 0];
        let dumped = self.requests.dump(
            GETTABLE,
            &body,
            |_| {},
            |message| {
                found.extend(attr(message, TABLE).and_then(text).map(str::to_owned));
            },
        );
        there(dumped)?;
        Ok(found.into_iter().collect())
    }

    /// Whether an `inet` table exists.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn has_inet_table(&mut self, table: &str) -> Result<bool, Failure> {
        self.get_inet_table(table, |_| {})
    }

    /// Shows an `inet` table to `each`; `false` if there is none.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn get_inet_table(
        &mut self,
        table: &str,
        each: impl FnMut(&Message),
    ) -> Result<bool, Failure> {
        let name = |batch: &mut Batch| put(batch, TABLE, table);
        there(self.requests.call(GETTABLE, 0, &INET, name, each))
    }

    /// Shows every chain of the `inet` family to `each`.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn dump_inet_chains(&mut self, each: impl FnMut(&Message)) -> Result<(), Failure> {
        self.requests.dump(GETCHAIN, &INET, |_| {}, each)
    }

    /// Shows every rule of an `inet` table to `each`, in order; older kernels show those of other
    /// tables too.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn dump_inet_rules(
        &mut self,
        table: &str,
        each: impl FnMut(&Message),
    ) -> Result<(), Failure> {
        let name = |batch: &mut Batch| put(batch, TABLE, table);
        self.requests.dump(GETRULE, &INET, name, each)
    }

    /// Shows the elements of a set of an `inet` table to `each`, many in one message.
    ///
    /// # Errors
    /// The kernel's refusal, also where there is no such set.
    pub fn dump_inet_elements(
        &mut self,
        table: &str,
        set: &str,
        each: impl FnMut(&Message),
    ) -> Result<(), Failure> {
        let names = |batch: &mut Batch| {
            put(batch, TABLE, table);
            put(batch, ELEMENTS_SET, set);
        };
        self.requests.dump(GETSETELEM, &INET, names, each)
    }

    /// Carries out a transaction: all of it or nothing. See [`begin`] and [`end`].
    ///
    /// # Errors
    /// The kernel's first refusal.
    pub fn transact(&mut self, batch: &mut Batch) -> Result<(), Failure> {
        self.requests.transact(batch)
    }

    /// Every chain of a family: its table and its name.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn chains(&mut self, family: Family) -> Result<BTreeSet<(String, String)>, Failure> {
        let mut found = BTreeSet::new();
        self.requests.dump(
            GETCHAIN,
            &body(family),
            |_| {},
            |message| {
                let name = |kind| attr(message, kind).and_then(text).map(str::to_owned);
                found.extend(name(TABLE).zip(name(CHAIN_NAME)));
            },
        )?;
        Ok(found)
    }

    /// How many rules of a chain mention `needle` anywhere: a target, a comment.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn mentions(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
        needle: &str,
    ) -> Result<usize, Failure> {
        // By handle: a dump that was disturbed begins again.
        let mut found = BTreeSet::new();
        let names = |batch: &mut Batch| {
            put(batch, TABLE, table);
            put(batch, RULE_CHAIN, chain);
        };
        let dumped = self
            .requests
            .dump(GETRULE, &body(family), names, |message| {
                let there = attr(message, RULE_CHAIN).and_then(text) == Some(chain)
                    && attr(message, TABLE).and_then(text) == Some(table);
                if there && mentions(message, needle) {
                    found.extend(attr(message, RULE_HANDLE).map(<[u8]>::to_vec));
                }
            });
        match there(dumped)? {
            true => Ok(found.len()),
            false => Ok(0),
        }
    }
}

/// Whether a message's bytes hold `needle`; all hold the empty one.
pub fn mentions(message: &Message, needle: &str) -> bool {
    let mut windows = message.body.windows(needle.len().max(1));
    needle.is_empty() || windows.any(|w| w == needle.as_bytes())
}

/// Whether a rule concerns every packet: it counts, comments and ends or jumps, and looks at nothing.
pub fn is_unconditional(message: &Message) -> bool {
    let expressions = attr(message, RULE_EXPRESSIONS).unwrap_or_default();
    Attrs(expressions).all(|(_, expression)| {
        let part = |kind| Attrs(expression).find(|(k, _)| *k == kind).map(|(_, v)| v);
        match part(EXPRESSION_NAME).and_then(text) {
            Some("counter" | "immediate" | "reject" | "target") => true,
            // A comment is a match in iptables.
            Some("match") => part(EXPRESSION_DATA)
                .and_then(|data| Attrs(data).find(|(k, _)| *k == MATCH_NAME))
                .and_then(|(_, name)| text(name))
                .is_some_and(|name| name == "comment"),
            _ => false,
        }
    })
}

/// An attribute's value.
pub fn attr<'a>(message: &Message<'a>, kind: u16) -> Option<&'a [u8]> {
    let mut attrs: Attrs<'a> = message.attrs(FIXED);
    attrs.find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// A big-endian number.
pub fn be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn body(family: Family) -> [u8; FIXED] {
    [af(family), 0, 0, 0]
}

/// Begins a transaction. The last message in it must ask for its acknowledgement.
pub fn begin(batch: &mut Batch) {
    batch.open(BATCH_BEGIN, 0, &BATCH_BODY);
    batch.close();
}

/// Ends a transaction.
pub fn end(batch: &mut Batch) {
    batch.open(BATCH_END, 0, &BATCH_BODY);
    batch.close();
}

/// Adds a name, with the NUL that the kernel wants.
pub fn put(batch: &mut Batch, kind: u16, name: &str) {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    batch.attr(kind, &bytes);
}

/// "No such thing" is an answer. So is "no such subsystem": then there is nothing.
fn there(asked: Result<(), Failure>) -> Result<bool, Failure> {
    match asked {
        Ok(()) => Ok(true),
        Err(failure) => match failure.errno {
            libc::ENOENT | libc::EOPNOTSUPP | libc::EINVAL | libc::EAFNOSUPPORT => Ok(false),
            _ => Err(failure),
        },
    }
}
