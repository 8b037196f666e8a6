//! When the condition `NetworkUnavailable` of our Node is written: desired against observed.

use super::own::OwnNode;
use crate::own_lease::{ConflictPolicy, Time};

/// The condition as it should be, and what was done for it.
#[derive(Debug, Default)]
pub(super) struct ConditionKeeper {
    /// Whether pods can be placed here; `None`: not known yet.
    desired: Option<bool>,
    /// What the Node with this uid said when it was last as desired. Until then its reason and text
    /// are to be ours, too; later its status alone counts.
    held: Option<(String, bool)>,
    /// The version in which somebody else's value was seen last.
    foreign: Option<u64>,
    conflict: ConflictPolicy,
}

impl ConditionKeeper {
    /// Takes over what is desired; `None` leaves the condition alone.
    pub(super) fn desire(&mut self, available: Option<bool>) {
        self.desired = available;
    }

    /// Returns what to write to `own` and when; `None` if it says what is desired.
    pub(super) fn due(&mut self, own: &OwnNode, now: Time) -> Option<(Time, bool)> {
        let available = self.desired?;
        let target = (own.uid.clone(), available);
        let was_held = self.held.as_ref() == Some(&target);
        if own.has_condition(available, !was_held) {
            self.held = Some(target);
            self.foreign = None;
            self.conflict.written(now);
            return None;
        }
        if !was_held {
            return Some((now, available));
        }
        if self.foreign.replace(own.version) != Some(own.version) {
            self.conflict.overwritten(now);
        }
        Some((self.conflict.due().unwrap_or(now), available))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use model::Family;

    use super::*;
    use crate::kube::annotations::Prefix;
    use crate::kube::node::Node;

    fn own(version: u64, status: &str, reason: &str, message: &str) -> OwnNode {
        let json = format!(
            r#"{{"metadata":{{"uid":"u","resourceVersion":"{version}"}},"status":{{"conditions":[
            {{"type":"NetworkUnavailable","status":"{status}","reason":"{reason}","message":"{message}"}}]}}}}"#
        );
        let prefix = Prefix::parse("f.io").unwrap();
        OwnNode::of(
            &Node::from_json(json.as_bytes(), &prefix).unwrap(),
            &[Family::V4],
        )
    }

    fn ours(version: u64) -> OwnNode {
        own(
            version,
            "False",
            "FlannelIsUp",
            "Flannel is running on this node",
        )
    }

    #[test]
    fn foreign_values_are_corrected_at_a_known_time() {
        let at = Duration::from_secs;
        let mut keeper = ConditionKeeper::default();
        let route = |version| own(version, "False", "RouteCreated", "");
        assert_eq!(keeper.due(&route(1), at(1)), None, "nothing is desired");
        keeper.desire(Some(true));
        assert_eq!(keeper.due(&route(1), at(1)), Some((at(1), true)));
        assert_eq!(keeper.due(&ours(2), at(1)), None);
        assert_eq!(keeper.due(&route(3), at(2)), None, "its status is the same");
        let unavailable = |version| own(version, "True", "NodeCreated", "");
        assert_eq!(keeper.due(&unavailable(4), at(3)), Some((at(3), true)));
        assert_eq!(keeper.due(&ours(5), at(3)), None);
        // Somebody insists: corrected later each time, but at least every ten seconds.
        let mut now = at(5);
        for round in 3..20_u64 {
            let due = keeper.due(&unavailable(round * 2), now).unwrap().0;
            let again = keeper.due(&unavailable(round * 2), now + at(1)).unwrap().0;
            assert_eq!(due, again, "looking does not postpone it");
            assert!(now <= due && due <= now + at(10), "{due:?}");
            assert!(round < 10 || due > now, "not at once every time");
            assert_eq!(keeper.due(&ours(round * 2 + 1), due), None);
            now = due + at(1);
        }
        keeper.desire(Some(false));
        assert_eq!(keeper.due(&ours(90), at(500)), Some((at(500), false)));
    }
}
