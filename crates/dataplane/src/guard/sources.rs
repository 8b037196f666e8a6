//! The optional check of who sends the tunnel's packets: a table of its own, with a set that follows the addresses that
//! the other nodes publish.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use model::Family;
use model::guard::{Hook, Sources};
use tokio::time::{sleep, sleep_until};

use super::shown::Shown;
use super::{COALESCE, refused, table, table_name};
use crate::netlink::socket::Failure;
use crate::netlink::uapi::NLM_F_CREATE;
use crate::netlink::wire::{Attrs, Batch, ip};
use crate::rules::RulesError;
use crate::rules::contention::Contention;
use crate::rules::nfnetlink::{
    NEWRULE, NEWSET, NEWSETELEM, NfTables, RULE_CHAIN, SET_ELEMENTS, TABLE, attr, begin, end, put,
};
use crate::rules::watch::{Realm, Watch};

const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_ID: u16 = 10;
const ELEMENTS_SET_ID: u16 = 4;
const ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const VALUE: u16 = 1;
/// Elements in one message: an attribute holds less than 64 KiB.
const PIECE: usize = 1000;

/// Keeps the table of one network.
pub struct SourcesKeeper {
    name: String,
    desired: Sources,
    nft: Option<NfTables>,
    watch: Option<Watch>,
    /// What the kernel showed right after it was written.
    written: Option<Shown>,
    /// The next write follows `desired`, and nobody's change.
    follows: bool,
    failed: bool,
    contention: Contention,
}

/// The name of the table that checks the sources of `network`'s tunnel.
pub(super) fn name(network: &IpNet) -> String {
    format!("{}-sources", table_name(network))
}

/// Deletes the table of `network`, if there is one.
///
/// # Errors
/// The kernel's refusal.
pub fn remove_sources(network: &IpNet) -> Result<(), RulesError> {
    super::delete(&name(network))
}

impl SourcesKeeper {
    /// Nothing is read or written yet.
    pub fn new(network: &IpNet, desired: Sources) -> SourcesKeeper {
        SourcesKeeper {
            name: name(network),
            desired,
            nft: None,
            watch: None,
            written: None,
            follows: true,
            failed: false,
            contention: Contention::default(),
        }
    }

    /// Sets who may send from now on; [`SourcesKeeper::ensure`] writes it.
    pub fn set_desired(&mut self, desired: Sources) {
        self.follows |= self.desired != desired;
        self.desired = desired;
    }

    /// Reads the table and writes it if it is not as it should be; the replacement is atomic. Returns whether it
    /// repaired what somebody else had changed.
    ///
    /// # Errors
    /// The kernel's refusal; [`SourcesKeeper::changed`] then returns when it is time to try again.
    pub fn ensure(&mut self) -> Result<bool, RulesError> {
        let followed = std::mem::take(&mut self.follows);
        let ensured = self.ensure_now();
        self.failed = ensured.is_err();
        self.follows = followed && self.failed;
        let repaired = ensured.as_ref().is_ok_and(|wrote| *wrote && !followed);
        self.contention.note(self.failed, repaired);
        match ensured {
            Ok(_) => Ok(repaired),
            Err(failure) => Err(refused(&self.name, failure)),
        }
    }

    fn ensure_now(&mut self) -> Result<bool, Failure> {
        let nft = match &mut self.nft {
            Some(nft) => nft,
            none => none.insert(NfTables::open()?),
        };
        if self.watch.is_none() {
            self.watch = Watch::open(Realm::Guard).ok();
        }
        if let Some(watch) = &mut self.watch {
            watch.forget();
        }
        if self.desired.ports.is_empty() && !self.desired.ipip {
            let exists = nft.has_inet_table(&self.name)?;
            if exists {
                nft.transact(&mut table::delete(&self.name))?;
            }
            return Ok(exists);
        }
        let shown = Shown::read(nft, &self.name)?;
        if shown.is_some()
            && shown == self.written
            && elements(nft, &self.name)? == self.desired.peers
        {
            return Ok(false);
        }
        nft.transact(&mut replace(&self.name, &self.desired))?;
        if let Some(watch) = &mut self.watch {
            // The notifications of our own transaction are already queued.
            watch.forget();
        }
        self.written = Shown::read(nft, &self.name)?;
        Ok(true)
    }

    /// Waits until the table may no longer be as it should, or until it is time to try again what failed. Cancel-safe.
    pub async fn changed(&mut self) {
        match &mut self.watch {
            _ if self.failed => {}
            Some(watch) => {
                watch.told().await;
                sleep(COALESCE).await;
            }
            None => std::future::pending().await,
        }
        sleep_until(self.contention.not_before).await;
    }
}

fn set(family: Family) -> &'static str {
    match family {
        Family::V4 => "peers4",
        Family::V6 => "peers6",
    }
}

/// The set's number within a transaction.
fn id(family: Family) -> u32 {
    match family {
        Family::V4 => 1,
        Family::V6 => 2,
    }
}

/// The addresses in both sets.
fn elements(nft: &mut NfTables, table: &str) -> Result<BTreeSet<IpAddr>, Failure> {
    let mut found = BTreeSet::new();
    for family in Family::ALL {
        nft.dump_inet_elements(table, set(family), |message| {
            for (_, element) in Attrs(attr(message, SET_ELEMENTS).unwrap_or_default()) {
                let part = |bytes, wanted| {
                    let mut parts = Attrs(bytes);
                    parts.find(|(kind, _)| *kind == wanted).map(|(_, v)| v)
                };
                let key = part(element, ELEMENT_KEY).and_then(|key| part(key, VALUE));
                found.extend(key.and_then(ip));
            }
        })?;
    }
    Ok(found)
}

/// One transaction that replaces the table, or makes it.
fn replace(name: &str, sources: &Sources) -> Batch {
    let mut batch = Batch::default();
    begin(&mut batch);
    table::fresh(&mut batch, name, &[Hook::Input]);
    for family in Family::ALL {
        add_set(&mut batch, name, family, &sources.peers);
    }
    let ports = sources.ports.iter().copied().map(Some);
    let ports: Vec<Option<u16>> = ports.chain(sources.ipip.then_some(None)).collect();
    let of = |family| ports.iter().map(move |port| (family, *port));
    let rules: Vec<_> = Family::ALL.into_iter().flat_map(of).collect();
    for (at, (family, port)) in rules.iter().enumerate() {
        let last = at + 1 == rules.len();
        let ack = if last { table::NLM_F_ACK } else { 0 };
        let flags = NLM_F_CREATE | table::NLM_F_APPEND | ack;
        batch.open(NEWRULE, flags, &table::BODY);
        put(&mut batch, TABLE, name);
        put(&mut batch, RULE_CHAIN, table::chain(Hook::Input));
        let expressions = batch.nest(table::RULE_EXPRESSIONS);
        table::of_family(&mut batch, *family);
        match port {
            Some(port) => table::udp_to(&mut batch, *port),
            None => table::protocol(&mut batch, libc::IPPROTO_IPIP as u8),
        }
        table::source_not_in(&mut batch, *family, set(*family), id(*family));
        table::count_and_drop(&mut batch);
        batch.end(expressions);
        table::comment(&mut batch, "flanneld: no node publishes this address");
        batch.close();
    }
    end(&mut batch);
    batch
}

fn add_set(batch: &mut Batch, name: &str, family: Family, peers: &BTreeSet<IpAddr>) {
    // The numbers by which nft knows the type.
    let (kind, len): (u32, u32) = match family {
        Family::V4 => (7, 4),
        Family::V6 => (8, 16),
    };
    batch.open(NEWSET, NLM_F_CREATE, &table::BODY);
    put(batch, TABLE, name);
    put(batch, SET_NAME, set(family));
    batch.attr(SET_FLAGS, &0u32.to_be_bytes());
    batch.attr(SET_KEY_TYPE, &kind.to_be_bytes());
    batch.attr(SET_KEY_LEN, &len.to_be_bytes());
    batch.attr(SET_ID, &id(family).to_be_bytes());
    batch.close();
    let octets = |ip: &IpAddr| match (ip, family) {
        (IpAddr::V4(ip), Family::V4) => Some(ip.octets().to_vec()),
        (IpAddr::V6(ip), Family::V6) => Some(ip.octets().to_vec()),
        _ => None,
    };
    let all: Vec<Vec<u8>> = peers.iter().filter_map(octets).collect();
    for piece in all.chunks(PIECE) {
        batch.open(NEWSETELEM, NLM_F_CREATE, &table::BODY);
        put(batch, TABLE, name);
        put(batch, SET_NAME, set(family));
        batch.attr(ELEMENTS_SET_ID, &id(family).to_be_bytes());
        let list = batch.nest(SET_ELEMENTS);
        for address in piece {
            let element = batch.nest(ELEMENT);
            let key = batch.nest(ELEMENT_KEY);
            batch.attr(VALUE, address);
            batch.end(key);
            batch.end(element);
        }
        batch.end(list);
        batch.close();
    }
}
