//! Up to which resource version the Nodes are known, and whether an API server continues from there.

use super::nodes_client::Freshness;

/// How far the Nodes are known.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Everything is known up to this resource version; `None`: the Nodes have to be listed.
    position: Option<String>,
    /// Everything was known up to this one before they have to be listed again: an older state will not do.
    known: Option<String>,
    /// A watch broke off: whether what follows continues from it has to be checked.
    interrupted: bool,
    /// The API server lost data: what is missing was not deleted.
    regressed: bool,
}

impl History {
    /// Returns from where to watch; `None`: list first.
    pub(super) fn position(&self) -> Option<&str> {
        self.position.as_deref()
    }

    /// Takes in the resource version of a list or an event. An empty one says nothing.
    pub(super) fn reached(&mut self, version: &str) {
        if !version.is_empty() {
            let position = self.position.get_or_insert_default();
            position.clear();
            position.push_str(version);
        }
    }

    /// The Nodes have to be listed again, in no older state.
    pub(super) fn list_again(&mut self) {
        self.known = self.position.take().or(self.known.take());
    }

    /// A watch broke off, or the API server is another one.
    pub(super) fn interrupt(&mut self) {
        self.interrupted = true;
    }

    /// A watch has begun that continues from what is known.
    pub(super) fn joined(&mut self) {
        self.interrupted = false;
    }

    /// Whether to check that the API server continues from what is known.
    pub(super) fn is_doubtful(&self) -> bool {
        self.interrupted && self.position.is_some()
    }

    /// Whether an API server whose newest version is `newest` has lost data.
    pub(super) fn is_lost(&self, newest: u64) -> bool {
        let known = self.position.as_deref().or(self.known.as_deref());
        let known = known.and_then(|version| version.parse().ok());
        known.is_some_and(|known: u64| newest < known)
    }

    /// The API server has lost data: versions that are known say nothing.
    pub(super) fn regress(&mut self) {
        self.regressed = true;
        self.position = None;
        self.known = None;
    }

    /// Returns which list will do.
    pub(super) fn freshness(&self) -> Freshness<'_> {
        match &self.known {
            _ if self.regressed => Freshness::Newest,
            Some(known) => Freshness::NotOlderThan(known),
            None => Freshness::Any,
        }
    }

    /// Takes in the resource version of a complete list. Returns whether the list is of an API server that
    /// lost data.
    pub(super) fn listed(&mut self, version: &str) -> bool {
        self.reached(version);
        std::mem::take(&mut self.regressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_lags_behind_is_told_from_one_that_lost_data() {
        let mut history = History::default();
        assert_eq!(history.freshness(), Freshness::Any);
        assert!(!history.is_lost(0) && !history.is_doubtful());
        history.reached("100");
        history.reached("");
        history.interrupt();
        assert!(history.is_doubtful());
        assert!(history.is_lost(99) && !history.is_lost(100));
        history.list_again();
        history.list_again();
        assert_eq!(history.freshness(), Freshness::NotOlderThan("100"));
        assert!(history.is_lost(99) && !history.is_lost(101));
        assert!(!history.listed("101"));
        history.joined();
        assert_eq!(history.position(), Some("101"));
        history.regress();
        assert_eq!(history.freshness(), Freshness::Newest);
        assert!(!history.is_lost(7));
        assert!(history.listed("7"));
        assert_eq!(history.position(), Some("7"));
    }
}
