//! Values that were sent and whose fate is not known.

use super::terms::{Entry, Value};

/// How many of them are remembered.
const MOST: usize = 8;

/// Each value, and the state of the key that it was to replace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sent<M>(Vec<(Value, Option<M>)>);

impl<M: Clone + PartialEq> Sent<M> {
    pub(super) fn new() -> Sent<M> {
        Sent(Vec::new())
    }

    /// Remembers a value that was sent to replace the state `over`; `None`: to be created.
    pub(super) fn add(&mut self, value: Value, over: Option<M>) {
        let sent = (value, over);
        if !self.0.contains(&sent) {
            if self.0.len() == MOST {
                self.0.remove(0);
            }
            self.0.push(sent);
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether `entry` may be one of them. `before`: the last state of the key that was seen; a value that was
    /// to replace an earlier one can no longer take effect.
    pub(super) fn may_be(&self, entry: &Entry<M>, before: Option<&M>) -> bool {
        let mut sent = self.0.iter();
        sent.any(|(value, over)| over.as_ref() == before && entry.says(value))
    }

    /// Whether `entry` has a value that was sent, whatever it was to replace.
    pub(super) fn has_value(&self, entry: &Entry<M>) -> bool {
        self.0.iter().any(|(value, _)| entry.says(value))
    }
}
