//! Reading all files: in batches, each handed on while the next one is being read.

use std::io;
use std::vec::IntoIter;

use model::SubnetKey;
use tokio::task::JoinHandle;

use super::files::{FileId, Look};
use super::follow::{Fault, Follower};
use super::reading::look_at_each;

/// Files in a batch: some milliseconds of work.
const BATCH: usize = 1000;

/// Files as they were found.
type Batch = io::Result<Vec<(SubnetKey, Look)>>;

/// A listing that is under way.
#[derive(Debug, Default)]
pub(super) struct Listing {
    names: Option<Remaining>,
    coming: Option<JoinHandle<Batch>>,
}

/// What of the directory is still to be read.
#[derive(Debug)]
struct Remaining {
    keys: IntoIter<SubnetKey>,
    dir: Option<FileId>,
    shows_own: bool,
}

impl Follower {
    /// Starts reading all files anew; what the new listing does not show is gone at its end.
    pub(super) fn list_anew(&mut self) {
        self.listing = Some(Listing::default());
        self.catalog.begin();
    }

    /// Reads one batch of files, if there is one left.
    pub(super) async fn read_batch(&mut self) -> Result<(), Fault> {
        let Some(mut listing) = self.listing.take() else {
            return Ok(());
        };
        let result = self.batch_of(&mut listing).await;
        match result {
            Ok(false) => self.listing = Some(listing),
            Ok(true) => self.finish_listing(listing).await?,
            Err(fault) => {
                self.list_anew();
                return Err(fault);
            }
        }
        self.feed.flush();
        Ok(())
    }

    /// Whether it was the last one.
    async fn batch_of(&mut self, listing: &mut Listing) -> Result<bool, Fault> {
        let names = match &mut listing.names {
            Some(names) => names,
            None => {
                let names = self.files(super::files::Place::names).await?;
                for name in &names.foreign {
                    self.key_of(&name.into());
                }
                let own = self.holding.as_ref().map(|own| own.key);
                let shows_own = own.is_none_or(|own| names.keys.contains(&own));
                let keys = names.keys.into_iter();
                listing.names.insert(Remaining {
                    keys,
                    dir: names.dir,
                    shows_own,
                })
            }
        };
        let batch = match listing.coming.take() {
            Some(coming) => coming,
            None => {
                let keys = self.with_states(names.keys.by_ref().take(BATCH).collect());
                self.begin(move |place| look_at_each(place, keys))
            }
        };
        let looks = self.finish(batch).await?;
        let next: Vec<SubnetKey> = names.keys.by_ref().take(BATCH).collect();
        let last = next.is_empty();
        if !last {
            let keys = self.with_states(next);
            listing.coming = Some(self.begin(move |place| look_at_each(place, keys)));
        }
        for (key, look) in looks {
            self.take_in(key, look).await?;
        }
        Ok(last)
    }

    async fn finish_listing(&mut self, listing: Listing) -> Result<(), Fault> {
        let Some(names) = listing.names else {
            return Ok(());
        };
        // Changed while it was read, perhaps: then the next poll reads it again.
        let settled = names.dir.filter(|dir| !dir.is_young());
        self.listed = settled.or(names.dir.map(FileId::unsettled));
        self.end_of_listing();
        if let Some(own) = self.holding.as_ref().filter(|_| !names.shows_own) {
            let key = own.key;
            self.read(vec![key]).await?;
        }
        self.lost = false;
        Ok(())
    }
}
