//! Removing every rule of ours from a host, and showing it before: for `flannelctl cleanup`.

use model::{Family, TrafficRules};

use super::nfnetlink::NfTables;
use super::place::Place;
use super::{RulesError, RulesKeeper};

/// Rules of ours that stand in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Whose packets they are about.
    pub family: Family,
    /// The program that would remove them: `iptables-nft-restore --noflush`, `nft -f -`.
    pub by: String,
    /// What it would be told.
    pub commands: String,
    place: Place,
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
                        family,
                        by: place.writer(&self.tools, family),
                        commands,
                        place,
                    })),
                    Err(error) => errors.push(error),
                }
            }
        }
        (removals, errors)
    }

    /// Does what [`RulesKeeper::would_remove`] told.
    ///
    /// # Errors
    /// The program is missing, or refuses.
    pub async fn remove(&self, removal: &Removal) -> Result<(), RulesError> {
        let Removal {
            family,
            place,
            commands,
            ..
        } = removal;
        place.write(&self.tools, *family, commands).await.map(drop)
    }
}
