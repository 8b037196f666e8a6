//! Keeps the table that drops what a node never lets in: see [`model::guard`]. It exists in iptables
//! and in nftables mode and without any other traffic rule, and is written through netlink, so that it
//! needs nothing but `CAP_NET_ADMIN` and a kernel with nf_tables. Where the kernel has none, legacy iptables does it.

pub(crate) mod legacy_rules;
mod shown;
mod sources;
mod table;

use ipnet::IpNet;
use model::guard::Guard;
use tokio::time::{Duration, sleep, sleep_until};

use legacy_rules::LegacyRules;
pub use sources::{SourcesKeeper, remove_sources};

use crate::netlink::socket::Failure;
use crate::rules::RulesError;
use crate::rules::contention::Contention;
use crate::rules::nfnetlink::NfTables;
use crate::rules::watch::{Realm, Watch};
use shown::Shown;

/// How the names of our tables begin. Each network on a host has a table of its own.
pub const PREFIX: &str = "flannel-guard-";

/// Several changes in a row are looked at together.
const COALESCE: Duration = Duration::from_millis(5);

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
    network: IpNet,
    name: String,
    /// Networks that this node was part of before: their tables are deleted.
    former: Vec<IpNet>,
    nft: Option<NfTables>,
    watch: Option<Watch>,
    failed: bool,
    /// What the kernel showed right after it was written, where that is not what was sent.
    written: Option<Shown>,
    /// In place of the table, where the kernel has no nf_tables.
    legacy: Option<LegacyRules>,
    has_nf_tables: bool,
    /// The table was right once, and no rules of iptables are in its place.
    has_table: bool,
    /// Afterwards there was no table, or another number of rules: somebody acted in between.
    unsure: bool,
    contention: Contention,
}

impl GuardKeeper {
    /// Nothing is read or written yet. `network` names the table.
    pub fn new(desired: Guard, network: &IpNet, former: Vec<IpNet>) -> GuardKeeper {
        GuardKeeper {
            desired,
            network: *network,
            name: table_name(network),
            former,
            nft: None,
            watch: None,
            failed: false,
            written: None,
            legacy: None,
            has_nf_tables: true,
            has_table: false,
            unsure: false,
            contention: Contention::default(),
        }
    }

    /// Does as on a kernel without nf_tables.
    pub fn without_nf_tables(mut self) -> GuardKeeper {
        self.has_nf_tables = false;
        self
    }

    /// Returns whether rules of legacy iptables are in the table's place.
    pub fn uses_iptables(&self) -> bool {
        self.legacy.is_some()
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

    /// Reads the table and writes it if it is not as it should be, also by an earlier run. The
    /// replacement is atomic: no packet passes in between. Returns whether it wrote.
    ///
    /// # Errors
    /// The kernel's refusal; [`GuardKeeper::changed`] then returns when it is time to try again.
    pub async fn ensure(&mut self) -> Result<bool, RulesError> {
        let ensured = match self.ensure_table() {
            Err(lack) if is_unsupported(&lack) => self.ensure_rules(lack).await,
            Err(failure) => Err(refused(&self.name, failure)),
            Ok(wrote) => {
                if !std::mem::replace(&mut self.has_table, true) {
                    // Also those of an earlier run; any that stay do no harm.
                    let legacy = self.legacy.take();
                    let mut legacy =
                        legacy.unwrap_or_else(|| LegacyRules::new(&self.network.to_string()));
                    let _ = legacy.ensure(&[]).await;
                }
                Ok(wrote)
            }
        };
        self.failed = ensured.is_err();
        self.contention
            .note(self.failed, ensured.as_ref().is_ok_and(|wrote| *wrote));
        ensured
    }

    /// Has legacy iptables do the table's work; `lack` is why there is no table.
    async fn ensure_rules(&mut self, lack: Failure) -> Result<bool, RulesError> {
        self.has_table = false;
        let network = &self.network;
        let legacy = self
            .legacy
            .get_or_insert_with(|| LegacyRules::new(&network.to_string()));
        legacy
            .ensure(&self.desired.rules())
            .await
            .map_err(|error| RulesError::Kernel {
                what: format!("nftables table inet {}", self.name),
                reason: format!("{}, nor can iptables do it: {error}", lack.text),
            })
    }

    fn ensure_table(&mut self) -> Result<bool, Failure> {
        if !self.has_nf_tables {
            return Err(Failure::errno(libc::EOPNOTSUPP));
        }
        let nft = match &mut self.nft {
            Some(nft) => nft,
            none => {
                let opened = NfTables::open().map_err(Failure::from);
                none.insert(opened?)
            }
        };
        if self.watch.is_none() {
            self.watch = Watch::open(Realm::Guard).ok();
        }
        if let Some(watch) = &mut self.watch {
            watch.forget();
        }
        while let Some(network) = self.former.last() {
            let former = table_name(network);
            for former in [sources::name(network), former] {
                if *network != self.network && nft.has_inet_table(&former).unwrap_or_default() {
                    nft.transact(&mut table::delete(&former))?;
                }
            }
            self.former.pop();
        }
        let shown = Shown::read(nft, &self.name)?;
        let rules = self.desired.rules();
        let mut batch = table::replace(&self.name, &rules);
        let is_right =
            |shown: &Shown| shown.is_as_by(&batch) || self.written.as_ref() == Some(shown);
        if shown.as_ref().is_some_and(is_right) {
            return Ok(false);
        }
        nft.transact(&mut batch)?;
        if let Some(watch) = &mut self.watch {
            // The notifications of our own transaction are already queued.
            watch.forget();
        }
        let shown = Shown::read(nft, &self.name)?;
        self.unsure = shown
            .as_ref()
            .is_none_or(|shown| shown.rules() != rules.len());
        self.written = shown.filter(|shown| !shown.is_as_by(&batch));
        Ok(true)
    }

    /// Deletes the table of this network, and the rules in its place.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn remove(&self) -> Result<(), RulesError> {
        let mut legacy = LegacyRules::new(&self.network.to_string());
        let rules = legacy.ensure(&[]).await.map(drop);
        match delete(&self.name) {
            // Where there is no nf_tables there is no table.
            Err(_) if !self.has_nf_tables || self.legacy.is_some() => rules,
            deleted => deleted.and(rules),
        }
    }

    /// Waits until the table may no longer be as it should, or until it is time to try again what
    /// failed. Cancel-safe.
    pub async fn changed(&mut self) {
        match &mut self.watch {
            _ if self.failed || self.unsure => {}
            _ if self.legacy.is_some() => {
                if let Some(legacy) = &mut self.legacy {
                    legacy.changed().await;
                }
            }
            Some(watch) => {
                watch.told().await;
                sleep(COALESCE).await;
            }
            None => std::future::pending().await,
        }
        sleep_until(self.contention.not_before).await;
    }
}

/// Returns whether the kernel lacks nf_tables, or what the table needs of it.
fn is_unsupported(failure: &Failure) -> bool {
    matches!(
        failure.errno,
        libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::ENOENT
    )
}

fn refused(table: &str, failure: Failure) -> RulesError {
    RulesError::Kernel {
        what: format!("nftables table inet {table}"),
        reason: failure.text,
    }
}
