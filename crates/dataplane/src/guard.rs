//! Keeps the table that drops what a node never lets in: see [`model::guard`]. It exists in iptables
//! and in nftables mode and without any other traffic rule, and is written through netlink, so that it
//! needs nothing but `CAP_NET_ADMIN` and a kernel with nf_tables.

mod table;

use ipnet::IpNet;
use model::guard::Guard;
use tokio::time::{Duration, sleep, sleep_until};

use crate::netlink::socket::Failure;
use crate::netlink::wire::{Attrs, text};
use crate::rules::RulesError;
use crate::rules::contention::Contention;
use crate::rules::nfnetlink::{CHAIN_NAME, NfTables, RULE_CHAIN, TABLE, attr};
use crate::rules::watch::{Realm, Watch};

/// How the names of our tables begin. Each network on a host has a table of its own.
pub const PREFIX: &str = "flannel-guard-";

/// Several changes in a row are looked at together.
const SETTLE: Duration = Duration::from_millis(5);

/// The name of the table that guards `network`.
pub fn table_name(network: &IpNet) -> String {
    let text = network.to_string().replace('/', "-").replace(':', "_");
    format!("{PREFIX}{text}")
}

/// Returns whether the table that guards `network` exists.
///
/// # Errors
/// The kernel has no nf_tables, or does not show its tables.
pub fn exists(network: &IpNet) -> Result<bool, RulesError> {
    let name = table_name(network);
    let opened = NfTables::open().map_err(Failure::from);
    let found = opened.and_then(|mut nft| nft.has_inet_table(&name));
    found.map_err(|failure| refused(&name, failure))
}

/// The names of all guard tables of this host.
///
/// # Errors
/// The kernel does not list its tables.
pub(crate) fn tables(nft: &mut NfTables) -> Result<Vec<String>, RulesError> {
    let listed = nft
        .tables(table::INET)
        .map_err(|failure| refused(PREFIX, failure))?;
    Ok(listed
        .into_iter()
        .filter(|name| name.starts_with(PREFIX))
        .collect())
}

/// Deletes a guard table, whether or not it exists.
///
/// # Errors
/// The kernel's refusal.
pub(crate) fn delete(name: &str) -> Result<(), RulesError> {
    let opened = NfTables::open().map_err(Failure::from);
    let deleted = opened.and_then(|mut nft| match nft.has_inet_table(name)? {
        true => nft.transact(&mut table::delete(name)),
        false => Ok(()),
    });
    deleted.map_err(|failure| refused(name, failure))
}

/// Keeps one network's table: `ensure`, then `changed`, then `ensure` again.
pub struct GuardKeeper {
    desired: Guard,
    name: String,
    /// Networks that this node was part of before: their tables are deleted.
    former: Vec<IpNet>,
    nft: Option<NfTables>,
    watch: Option<Watch>,
    /// How the kernel showed the table right after it was written.
    written: Option<Shown>,
    failed: bool,
    contention: Contention,
}

/// A table as the kernel shows it, without handles and counters.
#[derive(Debug, Default, PartialEq, Eq)]
struct Shown {
    flags: Vec<u8>,
    chains: Vec<Vec<u8>>,
    rules: Vec<Vec<u8>>,
}

impl GuardKeeper {
    /// Nothing is read or written yet. `network` names the table.
    pub fn new(desired: Guard, network: &IpNet, former: Vec<IpNet>) -> GuardKeeper {
        GuardKeeper {
            desired,
            name: table_name(network),
            former,
            nft: None,
            watch: None,
            written: None,
            failed: false,
            contention: Contention::default(),
        }
    }

    /// Sets what is to be dropped from now on; [`GuardKeeper::ensure`] writes it. Returns whether that is
    /// something else than before.
    pub fn set_desired(&mut self, desired: Guard) -> bool {
        let changed = self.desired != desired;
        if changed {
            self.written = None;
        }
        self.desired = desired;
        changed
    }

    /// Reads the table and writes it if it is not as this keeper left it; the first call always
    /// writes. The replacement is atomic: no packet passes in between. Returns whether it wrote.
    ///
    /// # Errors
    /// The kernel's refusal; [`GuardKeeper::changed`] then returns when it is time to try again.
    pub fn ensure(&mut self) -> Result<bool, RulesError> {
        let ensured = self.ensure_now();
        self.failed = ensured.is_err();
        self.contention
            .note(self.failed, ensured.as_ref().is_ok_and(|wrote| *wrote));
        ensured
    }

    fn ensure_now(&mut self) -> Result<bool, RulesError> {
        let nft = match &mut self.nft {
            Some(nft) => nft,
            none => {
                let opened = NfTables::open().map_err(Failure::from);
                none.insert(opened.map_err(|failure| refused(&self.name, failure))?)
            }
        };
        if self.watch.is_none() {
            self.watch = Watch::open(Realm::Guard).ok();
        }
        if let Some(watch) = &mut self.watch {
            watch.forget();
        }
        let shown = show(nft, &self.name).map_err(|failure| refused(&self.name, failure))?;
        if self.written.is_some() && shown == self.written {
            return Ok(false);
        }
        let rules = self.desired.rules();
        nft.transact(&mut table::replace(&self.name, &rules))
            .map_err(|failure| refused(&self.name, failure))?;
        for network in self.former.drain(..) {
            let former = table_name(&network);
            if former != self.name && nft.has_inet_table(&former).unwrap_or_default() {
                nft.transact(&mut table::delete(&former))
                    .map_err(|failure| refused(&former, failure))?;
            }
        }
        if let Some(watch) = &mut self.watch {
            // The notifications of our own transaction are already queued.
            watch.forget();
        }
        let shown = show(nft, &self.name).map_err(|failure| refused(&self.name, failure))?;
        // Somebody may have changed it in between: then the next look writes again.
        self.written = shown.filter(|shown| shown.rules.len() == rules.len());
        Ok(true)
    }

    /// Deletes the table of this network.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn remove(&self) -> Result<(), RulesError> {
        delete(&self.name)
    }

    /// Waits until the table may no longer be as it should, or until it is time to try again what
    /// failed. Cancel-safe.
    pub async fn changed(&mut self) {
        match &mut self.watch {
            _ if self.failed => {}
            Some(watch) => {
                watch.told().await;
                sleep(SETTLE).await;
            }
            None => std::future::pending().await,
        }
        sleep_until(self.contention.not_before).await;
    }
}

/// The table as it is; `None` where there is none.
fn show(nft: &mut NfTables, name: &str) -> Result<Option<Shown>, Failure> {
    let mut shown = Shown::default();
    let exists = nft.get_inet_table(name, |message| {
        shown.flags = attr(message, table::TABLE_FLAGS)
            .unwrap_or_default()
            .to_vec();
    })?;
    if !exists {
        return Ok(None);
    }
    nft.dump_inet_chains(|message| {
        if attr(message, TABLE).and_then(text) == Some(name) {
            let kinds = [
                CHAIN_NAME,
                table::CHAIN_HOOK,
                table::CHAIN_POLICY,
                table::CHAIN_TYPE,
            ];
            let parts = kinds.map(|kind| attr(message, kind).unwrap_or_default());
            shown.chains.push(parts.concat());
        }
    })?;
    let mut rules = Vec::new();
    nft.dump_inet_rules(name, |message| {
        if attr(message, TABLE).and_then(text) != Some(name) {
            return;
        }
        let mut bytes = attr(message, RULE_CHAIN).unwrap_or_default().to_vec();
        let expressions = attr(message, table::RULE_EXPRESSIONS).unwrap_or_default();
        for (_, element) in Attrs(expressions) {
            let named = Attrs(element).find(|(kind, _)| *kind == table::EXPRESSION_NAME);
            if named.and_then(|(_, name)| text(name)) != Some("counter") {
                bytes.extend_from_slice(element);
            }
        }
        bytes.extend_from_slice(attr(message, table::RULE_USERDATA).unwrap_or_default());
        rules.push(bytes);
    })?;
    shown.rules = rules;
    shown.chains.sort();
    Ok(Some(shown))
}

fn refused(table: &str, failure: Failure) -> RulesError {
    RulesError::Kernel {
        what: format!("nftables table inet {table}"),
        reason: failure.text,
    }
}
