//! The three places where rules of ours may stand. None of them sees the rules of another.

use ipnet::IpNet;
use model::rules::Chain;
use model::{Family, TrafficRules};

use super::nfnetlink::NfTables;
use super::tools::{LOCK_SECONDS, Tools};
use super::variant::{self, Variant};
use super::{Change, RulesError, iptables, legacy, nftables, save, xtables_lock};
use crate::netlink::socket::Failure;

/// What a look at one family's rules in one place tells.
#[derive(Default)]
pub struct Difference {
    /// What turns them into what they should be; `None` if nothing differs.
    pub commands: Option<String>,
    /// The networks of another flannel whose rules stand here, too.
    pub anothers: Vec<IpNet>,
}

/// A place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// nftables tables of our own.
    Tables,
    /// iptables' tables in nf_tables.
    IptablesNft,
    /// iptables' tables in x_tables.
    IptablesLegacy,
}

impl Place {
    /// All of them.
    pub const ALL: [Place; 3] = [Place::Tables, Place::IptablesNft, Place::IptablesLegacy];

    /// Where a variant of iptables puts rules.
    pub fn of(variant: Variant) -> Place {
        match variant {
            Variant::Legacy => Place::IptablesLegacy,
            Variant::Nft => Place::IptablesNft,
        }
    }

    /// Whether anything of ours stands here. Starts no program.
    fn traces(self, family: Family, nft: Option<&mut NfTables>) -> Result<bool, RulesError> {
        match (self, nft) {
            (Place::IptablesLegacy, _) => legacy_traces(family),
            (_, None) => Ok(false),
            (Place::Tables, Some(nft)) => {
                let table = nftables::table(family);
                let found = nft.has_table(family, table);
                found.map_err(|f| refused(format!("nftables table {table}"), f))
            }
            (Place::IptablesNft, Some(nft)) => {
                let found = Chain::ALL.into_iter().try_fold(false, |found, chain| {
                    let (table, shared) = (iptables::table(chain), iptables::shared(chain));
                    Ok(found
                        || nft.has_chain(family, table, iptables::own(chain))?
                        || nft.mentions(family, table, shared, chain.comment())? > 0)
                });
                found.map_err(|f| refused(format!("{family} rules of iptables"), f))
            }
        }
    }

    /// The families for which there is something to read here, each with whether there are traces of
    /// ours: those with traces, and those that are `wanted`.
    ///
    /// # Errors
    /// The kernel's refusal to tell.
    pub fn families(
        self,
        mut nft: Option<&mut NfTables>,
        wanted: impl Fn(Family) -> bool,
    ) -> Result<Vec<(Family, bool)>, RulesError> {
        let mut families = Vec::new();
        for family in Family::ALL {
            let traces = self.traces(family, nft.as_deref_mut())?;
            if traces || wanted(family) {
                families.push((family, traces));
            }
        }
        Ok(families)
    }

    /// Reads the rules of `families` (each with whether there are traces of ours) and writes what
    /// differs from `desired`; adds to `change` a line for each family that was written.
    ///
    /// # Errors
    /// The first failure; the other family was seen to nevertheless.
    pub async fn bring_to(
        self,
        tools: &Tools,
        families: &[(Family, bool)],
        desired: &TrafficRules,
        change: &mut Change,
    ) -> Result<(), RulesError> {
        let read = |family| async move {
            match families.iter().find(|(f, _)| *f == family) {
                Some((_, traces)) => self.difference(tools, family, *traces, desired).await,
                None => Ok(Difference::default()),
            }
        };
        // Reading takes no lock, so both at once; writing does.
        let (v4, v6) = tokio::join!(read(Family::V4), read(Family::V6));
        let mut failed = None;
        for (family, difference) in [(Family::V4, v4), (Family::V6, v6)] {
            let done = match difference {
                Ok(Difference { commands, anothers }) => {
                    change.anothers.extend(anothers);
                    match commands {
                        None => continue,
                        Some(text) => self.write(tools, family, &text).await,
                    }
                }
                Err(error) => Err(error),
            };
            match done {
                Ok(by) => {
                    let what = if desired.has(family) {
                        "written"
                    } else {
                        "removed"
                    };
                    change.written.push(format!("{family} rules {what} ({by})"));
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Reads what stands and compares it with what should.
    ///
    /// # Errors
    /// What stands cannot be read.
    pub async fn difference(
        self,
        tools: &Tools,
        family: Family,
        traces: bool,
        desired: &TrafficRules,
    ) -> Result<Difference, RulesError> {
        let variant = match self {
            Place::Tables => return table_difference(tools, family, traces, desired).await,
            Place::IptablesNft => Variant::Nft,
            Place::IptablesLegacy => Variant::Legacy,
        };
        let program = variant::program(tools, variant, family, "-save");
        let saved = tools.run(&program, &[], None).await?;
        let needed = Chain::ALL.map(iptables::table);
        if let Some(table) = save::unreadable(&saved, &needed) {
            return Err(RulesError::Unreadable {
                command: program,
                why: format!(
                    "cannot read table {table}, because another program changed it with nft: remove what that program put there, or set EnableNFTables to true in the network configuration"
                ),
            });
        }
        let standing = iptables::read(&saved);
        if !desired.has(family) && standing.is_empty() {
            return Ok(Difference::default());
        }
        Ok(Difference {
            commands: iptables::patch(desired, family, &standing),
            anothers: standing.anothers(desired),
        })
    }

    /// The program that writes here, and its arguments.
    pub fn writer(self, tools: &Tools, family: Family) -> String {
        let restore = |variant| {
            let program = variant::program(tools, variant, family, "-restore");
            format!("{program} --noflush")
        };
        match self {
            Place::Tables => "nft -f -".into(),
            Place::IptablesNft => restore(Variant::Nft),
            Place::IptablesLegacy => restore(Variant::Legacy),
        }
    }

    /// Writes; returns the program that did.
    ///
    /// # Errors
    /// It is missing, or refuses.
    pub async fn write(
        self,
        tools: &Tools,
        family: Family,
        text: &str,
    ) -> Result<String, RulesError> {
        let variant = match self {
            Place::Tables => {
                tools.run("nft", &["-f", "-"], Some(text)).await?;
                return Ok("nft".into());
            }
            Place::IptablesNft => Variant::Nft,
            Place::IptablesLegacy => Variant::Legacy,
        };
        let program = variant::program(tools, variant, family, "-restore");
        if !tools.lacks_waiting(&program) {
            let waiting = ["--noflush", "-w", LOCK_SECONDS];
            match tools.run(&program, &waiting, Some(text)).await {
                // Before 1.6.2 it knows no -w, and takes no lock. Nothing was written.
                Err(RulesError::Failed { said, .. }) if refuses_waiting(&said) => {
                    tools.note_lacks_waiting(&program);
                }
                done => return done.map(|_| program),
            }
        }
        let lock = xtables_lock::take().await?;
        let done = tools.run(&program, &["--noflush"], Some(text)).await;
        drop(lock);
        done.map(|_| program)
    }
}

/// Whether a program complains about `-w 10`: about the option, or about a file named 10.
fn refuses_waiting(said: &str) -> bool {
    let option = ["invalid option", "unrecognized option: w"];
    option.iter().any(|o| said.contains(o)) || said.contains(&format!("Can't open {LOCK_SECONDS}"))
}

async fn table_difference(
    tools: &Tools,
    family: Family,
    exists: bool,
    desired: &TrafficRules,
) -> Result<Difference, RulesError> {
    if !exists {
        return Ok(Difference {
            commands: nftables::script(desired, family, None),
            anothers: Vec::new(),
        });
    }
    let (of, table) = (nftables::family_name(family), nftables::table(family));
    let args = ["-j", "list", "table", of, table];
    let standing = match tools.run("nft", &args, None).await {
        Ok(listed) => {
            let read = nftables::read(family, &listed);
            Some(read.map_err(|error| RulesError::Unreadable {
                command: format!("nft {}", args.join(" ")),
                why: format!("expected JSON: {error}"),
            })?)
        }
        // It went away since it was seen.
        Err(RulesError::Failed { said, .. }) if said.contains("No such file") => None,
        Err(error) => return Err(error),
    };
    let anothers = standing.as_ref().map(|there| there.anothers(desired));
    Ok(Difference {
        commands: nftables::script(desired, family, standing.as_ref()),
        anothers: anothers.unwrap_or_default(),
    })
}

/// What the legacy tables that we write to look like, counters apart. Starts no program.
pub fn fingerprints(known: &mut legacy::Briefs) -> Vec<Option<u64>> {
    // What cannot be looked at is a change as long as it could before.
    let mut look = |family, chain| {
        let brief = known.of(family, iptables::table(chain)).ok()?;
        brief.map(|brief| brief.fingerprint)
    };
    let chains = |family| Chain::ALL.into_iter().map(move |chain| (family, chain));
    let all = Family::ALL.into_iter().flat_map(chains);
    all.map(|(family, chain)| look(family, chain)).collect()
}

/// Whether each of our chains is entered from the kernel's exactly once. Starts no program.
pub fn led_into(desired: &TrafficRules, nft: &mut NfTables) -> bool {
    Family::ALL.into_iter().all(|family| {
        let mut wanted = Chain::ALL
            .into_iter()
            .filter(|c| !desired.chain(family, *c).is_empty());
        wanted.all(|chain| {
            let (table, shared) = (iptables::table(chain), iptables::shared(chain));
            let found = nft.mentions(family, table, shared, iptables::own(chain));
            found.is_ok_and(|found| found == 1)
        })
    })
}

fn legacy_traces(family: Family) -> Result<bool, RulesError> {
    for chain in Chain::ALL {
        let mentions = [iptables::own(chain), chain.comment()];
        let table = iptables::table(chain);
        match legacy::look(family, table, &mentions) {
            Ok(look) if look.as_ref().is_some_and(|look| look.ours) => return Ok(true),
            Ok(_) => {}
            Err(error) => {
                return Err(RulesError::Kernel {
                    what: format!("{family} table {table} of legacy iptables"),
                    reason: error.to_string(),
                });
            }
        }
    }
    Ok(false)
}

fn refused(what: String, failure: Failure) -> RulesError {
    RulesError::Kernel {
        what,
        reason: failure.text,
    }
}
