//! Traffic rules as values: which packets leave a node with its own address in place of the pod's,
//! and which ones the host's firewall must let through. Every program that can write such rules gets
//! them from the same list.
//!
//! With `C` the flannel network and `P` this node's subnet, in this order:
//!
//! | chain | packets | what happens |
//! |---|---|---|
//! | postrouting | marked 0x4000, whatever the other bits | left to the program that marked them (kube-proxy) |
//! | | from `P` to `C` | keep their source |
//! | | from `C` to `P` | keep their source |
//! | | from outside `C` to `P` | keep their source |
//! | | from `C` to anything but multicast | leave with the node's address |
//! | | from outside `C` to `C` | leave with the node's address |
//! | forward | from `C`, or to `C` | accepted |

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::{Dual, Family, NetConfig, SubnetKey};

/// The mark's bit by which kube-proxy says that it masquerades a packet itself.
pub const KUBE_MARK: u32 = 0x4000;

/// What the flags ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleFlags {
    /// `-ip-masq`: the rules of [`Chain::Postrouting`] for IPv4.
    pub masquerade: bool,
    /// `-ip-masq-ipv6`: the same for IPv6.
    pub masquerade_ipv6: bool,
    /// Not `-ip-masq-fully-random-disable`: source ports are picked at random, so that two
    /// connections set up at once are less likely to want the same one.
    pub fully_random: bool,
    /// `-iptables-forward-rules`: the rules of [`Chain::Forward`].
    pub forward: bool,
}

/// Where in a packet's way a rule is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chain {
    /// When it leaves the host: network address translation.
    Postrouting,
    /// When it is passed on from one device to another.
    Forward,
}

impl Chain {
    /// Both chains.
    pub const ALL: [Chain; 2] = [Chain::Postrouting, Chain::Forward];

    /// The comment that every rule of ours in this chain carries.
    pub fn comment(self) -> &'static str {
        match self {
            Chain::Postrouting => "flanneld masq",
            Chain::Forward => "flanneld forward",
        }
    }
}

/// Something that a packet must be for a rule to apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Match {
    /// Its mark, masked by `mask`, is `value`.
    Mark {
        /// What the masked mark must be.
        value: u32,
        /// The bits that are looked at.
        mask: u32,
    },
    /// Its source is in `net`; with `not`, is outside of it.
    Source {
        /// The network.
        net: IpNet,
        /// Turns the condition around.
        not: bool,
    },
    /// Its destination is in `net`; with `not`, is outside of it.
    Destination {
        /// The network.
        net: IpNet,
        /// Turns the condition around.
        not: bool,
    },
}

/// What becomes of a packet to which a rule applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// None of our other rules applies.
    Return,
    /// The packet passes.
    Accept,
    /// It leaves with the address of the device it leaves by.
    Masquerade {
        /// With a source port picked at random.
        fully_random: bool,
    },
}

/// One rule. Two rules are the same whatever the order of their conditions: see [`Rule::new`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    matches: Vec<Match>,
    verdict: Verdict,
}

impl Rule {
    /// A rule; the conditions are brought into one order: mark, source, destination.
    pub fn new(matches: impl Into<Vec<Match>>, verdict: Verdict) -> Rule {
        let mut matches = matches.into();
        matches.sort_unstable();
        Rule { matches, verdict }
    }

    /// All of these must hold.
    pub fn matches(&self) -> &[Match] {
        &self.matches
    }

    /// The networks that it names, multicast apart.
    fn networks(&self) -> impl Iterator<Item = IpNet> {
        let named = self.matches.iter().filter_map(|condition| match condition {
            Match::Mark { .. } => None,
            Match::Source { net, .. } | Match::Destination { net, .. } => Some(*net),
        });
        named.filter(|net| *net != multicast(Family::of_net(net)))
    }

    /// What happens then.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }
}

/// All rules that a host should hold, per family that is in use. Neither family's rules know of the
/// other's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficRules {
    families: Dual<FamilyRules>,
    /// The networks whose rules are ours to write and to remove; `None` for all. Rules of others
    /// belong to another flannel on this host.
    own: Option<Vec<IpNet>>,
}

/// The rules of one family, by chain; a chain that is not asked for is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct FamilyRules {
    postrouting: Vec<Rule>,
    forward: Vec<Rule>,
}

impl TrafficRules {
    /// The rules for the node that owns `own` in the network of `config`.
    pub fn new(config: &NetConfig, own: &SubnetKey, flags: RuleFlags) -> TrafficRules {
        let networks = config.pools.map(|_, pool| pool.network);
        TrafficRules::of(&networks, own.nets(), flags)
    }

    /// The rules for the networks `networks` and the node's own subnets `own`. A family for which
    /// either is missing has none.
    pub fn of(networks: &Dual<IpNet>, own: &Dual<IpNet>, flags: RuleFlags) -> TrafficRules {
        let families = Dual::from_fn(|family| {
            let (c, p) = (*networks.get(family)?, *own.get(family)?);
            let translated = match family {
                Family::V4 => flags.masquerade,
                Family::V6 => flags.masquerade_ipv6,
            };
            let wanted = translated || flags.forward;
            wanted.then(|| FamilyRules {
                postrouting: if translated {
                    masquerade(c, p, flags.fully_random)
                } else {
                    Vec::new()
                },
                forward: match flags.forward {
                    true => forward(c),
                    false => Vec::new(),
                },
            })
        });
        let own = networks.iter().map(|(_, net)| *net).collect();
        TrafficRules {
            families,
            own: Some(own),
        }
    }

    /// Rules of these networks are ours too, to be removed: the ones that this node was part of
    /// before.
    pub fn and_formerly(mut self, networks: impl IntoIterator<Item = IpNet>) -> TrafficRules {
        if let Some(own) = &mut self.own {
            own.extend(networks);
        }
        self
    }

    /// Returns no rules for the same networks: what should be where these rules should not.
    pub fn none(&self) -> TrafficRules {
        TrafficRules {
            families: Dual::default(),
            own: self.own.clone(),
        }
    }

    /// Returns what a chain should hold that holds `present`, where `None` is a rule that no flannel
    /// writes: the rules of [`TrafficRules::chain`], and those of another flannel's networks as they
    /// are. It is `present` itself if nothing needs to change.
    pub fn merged(&self, family: Family, chain: Chain, present: &[Option<Rule>]) -> Vec<Rule> {
        let desired = self.chain(family, chain);
        let others = |rule: &Option<Rule>| rule.as_ref().is_some_and(|r| self.is_anothers(r));
        let ours = present.iter().filter(|rule| !others(rule));
        if ours.map(Option::as_ref).eq(desired.iter().map(Some)) {
            return present.iter().flatten().cloned().collect();
        }
        let theirs = present.iter().filter(|rule| others(rule)).flatten();
        // What is said of marks is said for all networks.
        let marks = theirs.clone().next().and_then(|_| {
            let marks = |rule: &&Rule| rule.networks().next().is_none();
            present.iter().flatten().find(marks)
        });
        let kept = marks.filter(|_| desired.is_empty());
        let rules = desired.iter().chain(kept).chain(theirs);
        rules.cloned().collect()
    }

    fn is_anothers(&self, rule: &Rule) -> bool {
        let Some(own) = &self.own else {
            return false;
        };
        let overlaps = |a: &IpNet| own.iter().any(|b| a.contains(b) || b.contains(a));
        let mut networks = rule.networks().peekable();
        networks.peek().is_some() && !networks.any(|net| overlaps(&net))
    }

    /// The networks of another flannel whose rules are among `present`, the widest ones only.
    pub fn anothers(&self, present: &[Option<Rule>]) -> Vec<IpNet> {
        let rules = present
            .iter()
            .flatten()
            .filter(|rule| self.is_anothers(rule));
        let mut named: Vec<IpNet> = rules.flat_map(Rule::networks).collect();
        named.sort_by_key(|net| (net.prefix_len(), *net));
        let mut widest: Vec<IpNet> = Vec::new();
        for net in named {
            if !widest.iter().any(|wide| wide.contains(&net)) {
                widest.push(net);
            }
        }
        widest
    }

    /// The rules of one chain, in order; none where the chain is not asked for.
    pub fn chain(&self, family: Family, chain: Chain) -> &[Rule] {
        match (self.families.get(family), chain) {
            (None, _) => &[],
            (Some(rules), Chain::Postrouting) => &rules.postrouting,
            (Some(rules), Chain::Forward) => &rules.forward,
        }
    }

    /// The same rules for a program that cannot have source ports picked at random.
    pub fn without_random_ports(&self) -> TrafficRules {
        let plain = |rule: &Rule| {
            let mut rule = rule.clone();
            if let Verdict::Masquerade { fully_random } = &mut rule.verdict {
                *fully_random = false;
            }
            rule
        };
        TrafficRules {
            own: self.own.clone(),
            families: self.families.map(|_, rules| FamilyRules {
                postrouting: rules.postrouting.iter().map(plain).collect(),
                forward: rules.forward.clone(),
            }),
        }
    }

    /// Whether there is any rule for this family.
    pub fn has(&self, family: Family) -> bool {
        Chain::ALL
            .into_iter()
            .any(|chain| !self.chain(family, chain).is_empty())
    }

    /// Whether packets leave with the node's address in any family.
    pub fn masquerades(&self) -> bool {
        let any = |family| !self.chain(family, Chain::Postrouting).is_empty();
        Family::ALL.into_iter().any(any)
    }

    /// Whether there is no rule at all.
    pub fn is_empty(&self) -> bool {
        !Family::ALL.into_iter().any(|family| self.has(family))
    }
}

fn masquerade(c: IpNet, p: IpNet, fully_random: bool) -> Vec<Rule> {
    use Verdict::{Masquerade, Return};
    let from = |net, not| Match::Source { net, not };
    let to = |net, not| Match::Destination { net, not };
    let marked = Match::Mark {
        value: KUBE_MARK,
        mask: KUBE_MARK,
    };
    let many = multicast(Family::of_net(&c));
    vec![
        Rule::new([marked], Return),
        Rule::new([from(p, false), to(c, false)], Return),
        Rule::new([from(c, false), to(p, false)], Return),
        Rule::new([from(c, true), to(p, false)], Return),
        Rule::new(
            [from(c, false), to(many, true)],
            Masquerade { fully_random },
        ),
        Rule::new([from(c, true), to(c, false)], Masquerade { fully_random }),
    ]
}

fn forward(c: IpNet) -> Vec<Rule> {
    let (net, not) = (c, false);
    vec![
        Rule::new([Match::Source { net, not }], Verdict::Accept),
        Rule::new([Match::Destination { net, not }], Verdict::Accept),
    ]
}

/// The addresses of groups: `224.0.0.0/4`, `ff00::/8`.
fn multicast(family: Family) -> IpNet {
    let (ip, len) = match family {
        Family::V4 => (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
        Family::V6 => (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    };
    IpNet::new_assert(ip, len)
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Chain::Postrouting => "masquerade rules",
            Chain::Forward => "forward rules",
        })
    }
}

#[cfg(test)]
mod tests;
