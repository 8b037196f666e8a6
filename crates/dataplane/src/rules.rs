//! Traffic rules in the kernel: read, compared with what they should be, written only where they
//! differ, and watched.
//!
//! | module | holds |
//! |---|---|
//! | `iptables`, `save` | our chains as `iptables-restore` takes and `iptables-save` shows them |
//! | `nftables` | our tables as `nft` takes and shows them |
//! | `variant` | which of the two iptables this host uses |
//! | `place` | the three places where rules of ours may stand; reading and writing each |
//! | `nfnetlink`, `legacy` | looking at them without starting a program |
//! | `watch` | being told when somebody else changes them |
//! | `tools` | running programs |
//! | `xtables_lock` | the lock for programs that do not take it |
//! | `removal` | showing what stands, and removing it for good |
//! | `contention` | how fast to go on when repairs do not last |
//! | [`forwarding`] | what the host's own rules do to forwarded packets |
//! | `bridge` | whether bridged packets meet iptables at all |

mod bridge;
pub(crate) mod contention;
mod error;
pub mod forwarding;
mod iptables;
pub(crate) mod legacy;
pub(crate) mod nfnetlink;
mod nftables;
pub(crate) mod place;
mod removal;
pub(crate) mod save;
pub(crate) mod tools;
pub(crate) mod variant;
pub(crate) mod watch;
mod xtables_lock;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use model::TrafficRules;
use tokio::time::{Instant, sleep, sleep_until};

pub use bridge::{BridgeFilter, bridge_filter};
pub use error::RulesError;
pub use removal::Removal;

use contention::Contention;
use nfnetlink::NfTables;
use place::Place;
use tools::Tools;
use variant::{Iptables, Variant};
use watch::{Realm, Touched, Watch};

/// Several changes in a row are looked at together.
const COALESCE: Duration = Duration::from_millis(5);

/// By which program the rules are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// iptables, in the variant that the host uses.
    Iptables,
    /// nftables (`EnableNFTables`).
    Nftables,
}

/// What [`RulesKeeper::ensure`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Worth saying once, such as which iptables is used and why.
    pub notes: Vec<String>,
    /// One line for each set of rules that was written or removed.
    pub written: Vec<String>,
    /// The networks of another flannel whose rules stand beside ours, and stay.
    pub anothers: BTreeSet<IpNet>,
}

/// Keeps a host's traffic rules as they should be: `ensure`, then `changed`, then `ensure` again.
///
/// Works in the network namespace of the thread that first calls [`RulesKeeper::ensure`], and must
/// stay on it.
pub struct RulesKeeper {
    mode: Mode,
    desired: TrafficRules,
    /// How often what tells nobody of its changes is looked at.
    resync: Duration,
    tools: Tools,
    nft: Option<NfTables>,
    iptables: Option<Iptables>,
    /// Kubernetes was last found to use the variant of iptables that is not used here.
    kubernetes_elsewhere: bool,
    /// What is kept of the legacy tables.
    legacy: legacy::Briefs,
    watch: Option<Watch>,
    /// What the silent tables looked like when all was well; `None` calls for a look.
    seen: Option<Vec<Option<u64>>>,
    next_look: Instant,
    /// The last look found a fault that it could not mend, or there was none yet.
    dirty: bool,
    contention: Contention,
}

impl RulesKeeper {
    /// Nothing is read or written yet.
    pub fn new(mode: Mode, desired: TrafficRules, resync: Duration) -> RulesKeeper {
        RulesKeeper {
            mode,
            desired,
            resync,
            tools: Tools::new(),
            nft: None,
            iptables: None,
            kubernetes_elsewhere: false,
            legacy: legacy::Briefs::default(),
            watch: None,
            seen: None,
            next_look: Instant::now() + resync,
            dirty: true,
            contention: Contention::default(),
        }
    }

    /// The same, but programs are looked for in these directories only.
    pub fn with_programs_in(mut self, dirs: Vec<PathBuf>) -> RulesKeeper {
        self.tools = Tools::within(dirs);
        self
    }

    /// Other rules are wanted from now on; [`RulesKeeper::ensure`] makes them so.
    pub fn set_desired(&mut self, desired: TrafficRules) {
        self.dirty |= self.desired != desired;
        self.desired = desired;
    }

    /// How many programs were started so far.
    pub fn programs_started(&self) -> u64 {
        self.tools.started()
    }

    /// Reads the rules once, and writes what differs. Rules that are right stay untouched; no packet
    /// meets half of them. Rules of ours in places where they should not be, such as those of the
    /// other mode, are removed after the right ones are in place.
    ///
    /// # Errors
    /// The first thing that failed; what does not depend on it was done nevertheless.
    /// [`RulesKeeper::changed`] then returns when it is time to try again.
    pub async fn ensure(&mut self) -> Result<Change, RulesError> {
        let mut change = Change::default();
        let ensured = self.ensure_now(&mut change).await;
        let ids = self.tools.take_ids();
        if let Some(watch) = &mut self.watch {
            watch.disregard(ids);
        }
        self.dirty = ensured.is_err();
        self.contention
            .note(ensured.is_err(), !change.written.is_empty());
        self.next_look = Instant::now() + self.resync;
        ensured.map(|()| change)
    }

    /// Removes every rule of ours in every place.
    ///
    /// # Errors
    /// As [`RulesKeeper::ensure`].
    pub async fn remove_all(&mut self) -> Result<Change, RulesError> {
        self.set_desired(TrafficRules::default());
        self.ensure().await
    }

    /// Waits until the rules may no longer be what they should be, or until it is time to try
    /// again what failed. Starts no program. Cancel-safe.
    pub async fn changed(&mut self) {
        loop {
            if self.dirty {
                return sleep_until(self.contention.not_before).await;
            }
            let looks = self.silent() || self.iptables.is_some();
            let next_look = looks.then_some(self.next_look);
            tokio::select! {
                () = told(&mut self.watch) => {
                    if self.harmless() {
                        continue;
                    }
                    sleep(COALESCE).await;
                    return sleep_until(self.contention.not_before).await;
                }
                () = at(next_look) => {
                    if self.kubernetes_moved() {
                        self.dirty = true;
                        continue;
                    }
                    if self.silent() {
                        let now = self.look();
                        if now.is_none() || now != self.seen {
                            return sleep_until(self.contention.not_before).await;
                        }
                    }
                    self.next_look = Instant::now() + self.resync;
                }
            }
        }
    }

    async fn ensure_now(&mut self, change: &mut Change) -> Result<(), RulesError> {
        if self.nft.is_none() {
            self.nft = NfTables::open().ok();
        }
        let right = self.right_place(change).await?;
        if let Some(watch) = &mut self.watch {
            watch.forget();
        }
        let seen = self.look();
        let tools = &self.tools;
        if let Some(place) = right {
            let desired = match &self.iptables {
                Some(iptables) if !iptables.random_fully => &self.desired.without_random_ports(),
                _ => &self.desired,
            };
            let families = place.families(self.nft.as_mut(), |family| desired.has(family))?;
            place.bring_to(tools, &families, desired, change).await?;
        }
        // Only once the right ones are there.
        let nothing = self.desired.none();
        for other in Place::ALL.into_iter().filter(|p| Some(*p) != right) {
            let families = other.families(self.nft.as_mut(), |_| false)?;
            other.bring_to(tools, &families, &nothing, change).await?;
        }
        // After a write, the next look at the silent tables is a full one.
        self.seen = seen.filter(|_| change.written.is_empty());
        Ok(())
    }

    /// Where the rules should stand; `None` if there should be none.
    async fn right_place(&mut self, change: &mut Change) -> Result<Option<Place>, RulesError> {
        if self.desired.is_empty() {
            return Ok(None);
        }
        let place = match (self.mode, &self.iptables) {
            (Mode::Nftables, _) => Place::Tables,
            (Mode::Iptables, Some(iptables)) => Place::of(iptables.variant),
            (Mode::Iptables, None) => {
                let chosen = variant::choose(&self.tools, self.nft.as_mut()).await?;
                change.notes.push(chosen.why.clone());
                let place = Place::of(chosen.variant);
                self.kubernetes_elsewhere = variant::kubernetes_is_elsewhere(
                    chosen.variant,
                    self.nft.as_mut(),
                    &mut self.legacy,
                );
                self.iptables = Some(chosen);
                place
            }
        };
        let realm = match place {
            Place::Tables => Some(Realm::Own),
            Place::IptablesNft => Some(Realm::Iptables),
            Place::IptablesLegacy => None,
        };
        if let (None, Some(realm)) = (&self.watch, realm) {
            // Not to be had: the generation is asked for now and then.
            self.watch = Watch::open(realm).ok();
        }
        Ok(Some(place))
    }

    /// Whether Kubernetes began to use the other variant of iptables since the variant was chosen, as
    /// it does where kubelet starts after flanneld. The variant is then chosen again.
    fn kubernetes_moved(&mut self) -> bool {
        let Some(iptables) = self.iptables.as_ref().filter(|_| !self.desired.is_empty()) else {
            return false;
        };
        let elsewhere =
            variant::kubernetes_is_elsewhere(iptables.variant, self.nft.as_mut(), &mut self.legacy);
        let moved = elsewhere && !self.kubernetes_elsewhere;
        self.kubernetes_elsewhere = elsewhere;
        if moved {
            self.iptables = None;
            self.watch = None;
        }
        moved
    }

    /// Whether nobody tells us of changes.
    fn silent(&self) -> bool {
        self.watch.is_none() && !self.desired.is_empty()
    }

    /// What can be had of the tables' state for next to nothing, where nobody tells us of changes.
    fn look(&mut self) -> Option<Vec<Option<u64>>> {
        let legacy = self
            .iptables
            .as_ref()
            .is_some_and(|i| i.variant == Variant::Legacy);
        match (self.silent(), legacy) {
            (false, _) => None,
            (true, true) => Some(place::fingerprints(&mut self.legacy)),
            (true, false) => {
                let generation = self.nft.as_mut()?.generation();
                Some(vec![generation.map(u64::from)])
            }
        }
    }

    /// Whether what was told is only a neighbour's going: our own rules stand.
    fn harmless(&mut self) -> bool {
        let (Some(watch), Some(nft)) = (&mut self.watch, &mut self.nft) else {
            return false;
        };
        let harmless = watch.touched() == Touched::Neighbour && place::led_into(&self.desired, nft);
        if harmless {
            watch.dismiss();
        }
        harmless
    }
}

async fn told(watch: &mut Option<Watch>) {
    match watch {
        Some(watch) => watch.told().await,
        None => std::future::pending().await,
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
