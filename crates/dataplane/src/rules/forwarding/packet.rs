//! A packet that a host is to forward, and how a set of rules treats it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use model::Family;

/// The first packet of a TCP connection, without a mark, that this host is to forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes.
    pub destination: IpAddr,
    /// The device on which it arrives, if that is known.
    pub arrives: Option<String>,
    /// The device by which it leaves, if that is known.
    pub leaves: Option<String>,
}

impl Forwarded {
    /// The family of its addresses.
    pub fn family(&self) -> Family {
        Family::of(&self.source)
    }
}

/// How a set of rules treats a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It lets it pass.
    Passes,
    /// This rule or policy refuses it.
    Refused(String),
    /// This rule or policy refuses it unless an earlier one, which is not understood, let it pass.
    Unknown(String),
}

/// Whether a condition holds for the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// It holds.
    Yes,
    /// It does not hold.
    No,
    /// It is not understood, or depends on what is not known of the packet.
    Unknown,
}

impl Holds {
    /// Both hold.
    pub fn and(self, other: Holds) -> Holds {
        match (self, other) {
            (Holds::No, _) | (_, Holds::No) => Holds::No,
            (Holds::Yes, Holds::Yes) => Holds::Yes,
            _ => Holds::Unknown,
        }
    }

    /// The opposite, if `negated`.
    pub fn xor(self, negated: bool) -> Holds {
        match self {
            Holds::Yes if negated => Holds::No,
            Holds::No if negated => Holds::Yes,
            other => other,
        }
    }
}

impl From<bool> for Holds {
    fn from(holds: bool) -> Holds {
        if holds { Holds::Yes } else { Holds::No }
    }
}

/// Whether `ip` is in `net`.
pub fn within(ip: &IpAddr, net: &IpNet) -> Holds {
    net.contains(ip).into()
}

/// Whether a device's name is `name`; one that ends in `wildcard` names all that begin so.
pub fn device(known: Option<&str>, name: &str, wildcard: char) -> Holds {
    match (known, name.strip_suffix(wildcard)) {
        // Every device is meant.
        (_, Some("")) => Holds::Yes,
        (None, _) => Holds::Unknown,
        (Some(known), Some(begin)) => known.starts_with(begin).into(),
        (Some(known), None) => (known == name).into(),
    }
}

/// What a rule does to packets for which its conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Lets the packet pass.
    Accept,
    /// Drops or rejects it.
    Refuse,
    /// Goes on in another chain, and comes back.
    Jump(String),
    /// Goes on in another chain for good.
    Goto(String),
    /// Leaves the chain.
    Return,
    /// Counts, logs, marks.
    Nothing,
    /// It is not understood: the packet may pass.
    Unknown,
}

/// A rule, as far as one packet is concerned.
#[derive(Clone, Debug)]
pub struct Step {
    /// Whether its conditions hold.
    pub holds: Holds,
    /// What it does.
    pub action: Action,
    /// The rule as its tool prints it.
    pub text: String,
}

/// Where a packet is after a chain.
enum Walk {
    /// Its fate is known.
    Ended(Verdict),
    /// It goes on.
    Through,
}

/// Jumps deeper than this are not followed. The kernel allows sixteen.
const DEEPEST: usize = 20;

/// What the rules of the chains do to a packet, from `base` on. `policy` is the text of a base chain's
/// policy that refuses.
pub fn verdict(
    chains: &BTreeMap<String, Vec<Step>>,
    base: &str,
    policy: Option<String>,
) -> Verdict {
    let mut walker = Walker {
        chains,
        may_have_passed: false,
    };
    match (walker.chain(base, true, 0), policy) {
        (Walk::Ended(verdict), _) => verdict,
        (Walk::Through, Some(policy)) => walker.refused(policy),
        (Walk::Through, None) => Verdict::Passes,
    }
}

struct Walker<'a> {
    chains: &'a BTreeMap<String, Vec<Step>>,
    /// Some rule may have let the packet pass.
    may_have_passed: bool,
}

impl Walker<'_> {
    fn refused(&self, by: String) -> Verdict {
        if self.may_have_passed {
            Verdict::Unknown(by)
        } else {
            Verdict::Refused(by)
        }
    }

    /// Follows the packet through a chain. `certain`: it gets there for sure.
    fn chain(&mut self, name: &str, mut certain: bool, depth: usize) -> Walk {
        let chains = self.chains;
        let steps = chains.get(name).map(Vec::as_slice).unwrap_or_default();
        if depth > DEEPEST {
            self.may_have_passed = true;
            return Walk::Through;
        }
        for step in steps.iter().filter(|step| step.holds != Holds::No) {
            let sure = certain && step.holds == Holds::Yes;
            match &step.action {
                Action::Accept if sure => return Walk::Ended(Verdict::Passes),
                Action::Accept | Action::Unknown => self.may_have_passed = true,
                Action::Refuse if sure => {
                    return Walk::Ended(self.refused(step.text.clone()));
                }
                Action::Refuse | Action::Nothing => {}
                Action::Return if sure => return Walk::Through,
                // What follows is reached only if it did not return.
                Action::Return => certain = false,
                Action::Jump(to) => match self.chain(to, sure, depth + 1) {
                    Walk::Through => {}
                    ended => return ended,
                },
                Action::Goto(to) => match self.chain(to, sure, depth + 1) {
                    Walk::Through if sure => return Walk::Through,
                    Walk::Through => certain = false,
                    ended => return ended,
                },
            }
        }
        Walk::Through
    }
}
