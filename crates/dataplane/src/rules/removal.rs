//! Removing every rule of ours from a host, and showing it before: for `flannelctl cleanup`.

use model::{Family, TrafficRules};

use super::nfnetlink::NfTables;
use super::place::Place;
use super::{RulesError, RulesKeeper};
use crate::guard;

/// Rules of ours that stand in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// What they are, such as "IPv4 traffic rules".
    pub what: String,
    /// The program that would remove them: `iptables-nft-restore --noflush`, `nft -f -`.
    pub by: String,
    /// What it would be told.
    pub commands: String,
    held: Held,
}

/// Where rules of ours are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    /// Traffic rules of one family.
    Traffic(Place, Family),
    /// A guard table of this name.
    Guard(String),
    /// The guard's rules in legacy iptables, of one family.
    GuardRules(Family),
}

impl RulesKeeper {
    /// What [`RulesKeeper::remove_all`] would do. Writes nothing. What cannot be read is told beside
    /// what can.
    pub async fn would_remove(&mut self) -> (Vec<Removal>, Vec<RulesError>) {
        if self.nft.is_none() {
            self.nft = NfTables::open().ok();
        }
        let nothing = TrafficRules::default();
        let (mut removals, mut errors) = (Vec::new(), Vec::new());
        for place in Place::ALL {
            let families = match place.families(self.nft.as_mut(), |_| false) {
                Ok(families) => families,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            for (family, traces) in families {
                match place
                    .difference(&self.tools, family, traces, &nothing)
                    .await
                {
                    Ok(found) => removals.extend(found.commands.map(|commands| Removal {
                        what: format!("{family} traffic rules"),
                        by: place.writer(&self.tools, family),
                        commands,
                        held: Held::Traffic(place, family),
                    })),
                    Err(error) => errors.push(error),
                }
            }
        }
        let guards = self.nft.as_mut().map(guard::tables);
        match guards.transpose() {
            Ok(names) => removals.extend(names.into_iter().flatten().map(|name| Removal {
                what: "rules against forged packets".into(),
                by: "nft -f -".into(),
                commands: format!("delete table inet {name}\n"),
                held: Held::Guard(name),
            })),
            Err(error) => errors.push(error),
        }
        match guard::legacy_rules::removals(&self.tools).await {
            Ok(found) => removals.extend(found.into_iter().map(|(family, commands)| Removal {
                what: format!("{family} rules against forged packets"),
                by: Place::IptablesLegacy.writer(&self.tools, family),
                commands,
                held: Held::GuardRules(family),
            })),
            Err(error) => errors.push(error),
        }
        (removals, errors)
    }

    /// Does what [`RulesKeeper::would_remove`] told.
    ///
    /// # Errors
    /// The program is missing, or refuses.
    pub async fn remove(&self, removal: &Removal) -> Result<(), RulesError> {
        match &removal.held {
            Held::Traffic(place, family) => {
                let done = place.write(&self.tools, *family, &removal.commands).await;
                done.map(drop)
            }
            Held::Guard(name) => guard::delete(name),
            Held::GuardRules(family) => {
                let place = Place::IptablesLegacy;
                let done = place.write(&self.tools, *family, &removal.commands).await;
                done.map(drop)
            }
        }
    }
}
