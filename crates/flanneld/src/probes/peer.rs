//! What probes have shown of one other node. There may be tens of thousands, and the prober's turn comes to most of
//! them late or never: a node that was neither probed nor has probed this one takes 56 bytes.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use model::{Dual, Family};

use super::responder::Bucket;
use super::target::Target;
use super::track::{BROKEN_AFTER, Track};
use super::verdict::Cause;
use crate::report::ProbeState;

/// Through the tunnel or past it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    Overlay,
    Underlay,
}

/// What a probe is to show.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Small(Way),
    /// Of the largest packet's size, the way that containers' packets go.
    Full,
}

/// How long a node that is not broken and has never answered a probe is left alone, and how long a judgement holds at
/// most.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(600);

/// A time in 4 bytes: seconds since the prober's start, plus one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At(NonZeroU32);

impl At {
    pub(super) fn of(now: Duration) -> At {
        let seconds = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        At(NonZeroU32::MIN.saturating_add(seconds))
    }

    /// Returns whether it was `span` ago or longer, give or take a second.
    pub(super) fn is_past(self, span: Duration, now: Duration) -> bool {
        let seconds = At::of(now).0.get().saturating_sub(self.0.get());
        u64::from(seconds) >= span.as_secs()
    }
}

/// Another node.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) target: Target,
    /// The families of which this node can probe it.
    families: Dual<()>,
    /// From the first probe on.
    links: Dual<Box<Links>>,
    pub(super) turn: u8,
    pub(super) probed_at: Option<At>,
    pub(super) bucket: Bucket,
    /// It is known to fail, as the log says.
    pub(super) reported: bool,
    /// It has sent a probe since it was probed.
    pub(super) asked: bool,
    /// Its turn was taken from the allowance of nodes that have never answered.
    pub(super) charged: bool,
}

/// What is known of one family of a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    pub(super) overlay: Track,
    pub(super) underlay: Track,
    pub(super) full: Track,
    pub(super) full_at: Option<At>,
    pub(super) judged_at: Option<At>,
    /// Low halves of the numbers of the last requests through the tunnel to the node: as many as are lost before its
    /// silence is explained.
    pub(super) sent: [u16; BROKEN_AFTER as usize],
    /// The same of the last one from the node.
    pub(super) seen: u16,
    pub(super) cause: Option<Cause>,
    /// Judgements in a row that found the same.
    pub(super) judged: u8,
    pub(super) corrupted: bool,
    pub(super) judging: bool,
}

/// What is known before the first probe.
static UNPROBED: Links = Links::NEW;

impl Peer {
    /// `turns`: how many kinds of turns there are.
    pub(super) fn new(target: Target, turns: u8) -> Peer {
        Peer {
            target,
            families: Dual::default(),
            links: Dual::default(),
            turn: fastrand::u8(..turns),
            probed_at: None,
            bucket: Bucket::default(),
            reported: false,
            asked: false,
            charged: false,
        }
    }

    /// Sets from where this node sends: what is known of families that cannot be probed is forgotten.
    pub(super) fn set_own(&mut self, overlay: &Dual<IpAddr>, underlay: &Dual<IpAddr>) {
        let (key, public_ip) = (self.target.key(), self.target.public_ip());
        self.families = Dual::from_fn(|family| {
            let has_net = key.nets().get(family).is_some();
            let through = has_net && overlay.get(family).is_some();
            let past = public_ip.get(family).is_some() && underlay.get(family).is_some();
            (through || past).then_some(())
        });
        for family in Family::ALL {
            if self.families.get(family).is_none() {
                self.links.set(family, None);
            }
        }
    }

    /// Returns the families of which this node can probe it.
    pub(super) fn families(&self) -> impl Iterator<Item = Family> {
        self.families.iter().map(|(family, ())| family)
    }

    /// Returns what is known of one family; `None` if it cannot be probed.
    pub(super) fn links(&self, family: Family) -> Option<&Links> {
        self.families.get(family)?;
        Some(self.links.get(family).map_or(&UNPROBED, |links| links))
    }

    /// Returns what is known of one family, to be changed; `None` if it cannot be probed.
    pub(super) fn links_mut(&mut self, family: Family) -> Option<&mut Links> {
        self.families.get(family)?;
        let links = match family {
            Family::V4 => &mut self.links.v4,
            Family::V6 => &mut self.links.v6,
        };
        Some(links.get_or_insert_with(|| Box::new(Links::NEW)))
    }

    fn all_links(&self) -> impl Iterator<Item = (Family, &Links)> {
        let families = self.families();
        families.filter_map(|family| Some((family, self.links(family)?)))
    }

    /// Returns whether it has answered anything since the daemon's start.
    pub(super) fn was_ever_heard(&self) -> bool {
        self.all_links().any(|(_, links)| {
            links.overlay.was_ever_answered() || links.underlay.was_ever_answered()
        })
    }

    /// Returns whether it answers no probes, in no family, without being broken.
    pub(super) fn is_silent(&self, own: &Dual<IpAddr>) -> bool {
        let mut all = self.all_links();
        !self.families.is_empty()
            && all.all(|(family, links)| links.state(own, family).0 == ProbeState::Silent)
    }

    /// Returns whether it is left out this time: it has never answered probes, is not broken, and has not asked since.
    /// A node that has answered may do so again at any time, in either family.
    pub(super) fn is_passed_over(&self, own: &Dual<IpAddr>, now: Duration) -> bool {
        let asked_lately = |at: At| !at.is_past(ASK_AGAIN, now);
        !self.asked
            && !self.was_ever_heard()
            && self.is_silent(own)
            && self.probed_at.is_some_and(asked_lately)
    }

    /// Returns the worst of its families' states.
    pub(super) fn state(&self, own: &Dual<IpAddr>) -> (ProbeState, Option<Cause>) {
        let states = self
            .all_links()
            .map(|(family, links)| links.state(own, family));
        states
            .max_by_key(|(state, _)| *state)
            .unwrap_or((ProbeState::Unknown, None))
    }
}

impl Links {
    const NEW: Links = Links {
        overlay: Track::NEW,
        underlay: Track::NEW,
        full: Track::NEW,
        full_at: None,
        judged_at: None,
        sent: [0; BROKEN_AFTER as usize],
        seen: 0,
        cause: None,
        judged: 0,
        corrupted: false,
        judging: false,
    };

    /// The way of containers' packets.
    pub(super) fn main_way(&self, own: &Dual<IpAddr>, family: Family) -> Way {
        if own.get(family).is_some() {
            Way::Overlay
        } else {
            Way::Underlay
        }
    }

    pub(super) fn main(&self, own: &Dual<IpAddr>, family: Family) -> &Track {
        match self.main_way(own, family) {
            Way::Overlay => &self.overlay,
            Way::Underlay => &self.underlay,
        }
    }

    pub(super) fn track(&mut self, kind: Kind) -> &mut Track {
        match kind {
            Kind::Small(Way::Overlay) => &mut self.overlay,
            Kind::Small(Way::Underlay) => &mut self.underlay,
            Kind::Full => &mut self.full,
        }
    }

    pub(super) fn state(&self, own: &Dual<IpAddr>, family: Family) -> (ProbeState, Option<Cause>) {
        let main = self.main(own, family);
        if main.is_broken() {
            return match self.cause {
                Some(cause) if cause.is_fault() => (ProbeState::Failing, Some(cause)),
                Some(cause) => (ProbeState::Silent, Some(cause)),
                None => (ProbeState::Unknown, None),
            };
        }
        if !main.was_ever_answered() {
            return (ProbeState::Unknown, None);
        }
        // Where small packets are lost, too, the size is not what is wrong.
        if self.full.is_broken() && main.is_clean() {
            let cause = if self.corrupted {
                Cause::Corrupted
            } else {
                Cause::Mtu
            };
            return (ProbeState::Failing, Some(cause));
        }
        (ProbeState::Reachable, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_small() {
        assert_eq!((size_of::<Peer>(), size_of::<Links>()), (56, 68));
    }

    #[test]
    fn a_time_in_seconds_is_good_enough() {
        let at = At::of(Duration::from_millis(12_300));
        let past = |ms| at.is_past(Duration::from_secs(15), Duration::from_millis(ms));
        assert!(!past(12_300) && !past(26_000) && past(27_300) && past(100_000));
        let end = At::of(Duration::MAX);
        assert!(end.is_past(Duration::ZERO, Duration::MAX));
    }
}
