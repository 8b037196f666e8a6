//! Reading all files: in batches, each handed on while the next one is being read.

use std::collections::VecDeque;
use std::io;
use std::vec::IntoIter;

use model::SubnetKey;
use tokio::task::JoinHandle;

use super::file_id::FileId;
use super::files::Look;
use super::follow::{Fault, Follower};
use super::reading::look_at_each;
use crate::own_lease::Event;

/// Files in a batch: some milliseconds of work.
const BATCH: usize = 500;
/// Batches that are read at the same time: opening a file is mostly waiting.
const AT_ONCE: usize = 2;

/// Files as they were found.
type Batch = io::Result<Vec<(SubnetKey, Look)>>;

/// A listing that is under way.
#[derive(Debug, Default)]
pub(super) struct Listing {
    names: Option<Remaining>,
    /// Batches that are being read, in order.
    coming: VecDeque<JoinHandle<Batch>>,
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
        self.tell(Event::ListingBegan);
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
        self.queue.flush();
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
                let own = self.own.key();
                let shows_own = own.is_none_or(|own| names.keys.contains(&own));
                let keys = names.keys.into_iter();
                listing.names.insert(Remaining {
                    keys,
                    dir: names.dir,
                    shows_own,
                })
            }
        };
        while listing.coming.len() < AT_ONCE && names.keys.len() > 0 {
            let keys = self.with_states(names.keys.by_ref().take(BATCH).collect());
            listing
                .coming
                .push_back(self.begin(move |place| look_at_each(place, keys)));
        }
        let Some(batch) = listing.coming.pop_front() else {
            return Ok(true);
        };
        for (key, look) in self.finish(batch).await? {
            self.take_in(key, look).await?;
        }
        Ok(false)
    }

    async fn finish_listing(&mut self, listing: Listing) -> Result<(), Fault> {
        let Some(names) = listing.names else {
            return Ok(());
        };
        // Changed while it was read, perhaps: then the next poll reads it again.
        let settled = names
            .dir
            .filter(|dir| !dir.is_young(self.place.clock.now()));
        self.listed = settled.or(names.dir.map(FileId::unsettled));
        self.end_of_listing();
        if !names.shows_own
            && let Some(key) = self.own.key()
        {
            self.read(vec![key]).await?;
        }
        self.lost = false;
        Ok(())
    }
}
