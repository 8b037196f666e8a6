//! Traffic rules as values: which packets leave a node with its own address in place of the pod's,
//! and which ones the host's firewall must let through. Every program that can write such rules gets
//! them from the same list.
//!
//! With `C` the flannel network and `P` this node's subnet, in this order:
//!
//! | chain | packets | what happens |
//! |---|---|---|
//! | postrouting | marked 0x4000, whatever the other bits | left to whoever marked them (kube-proxy) |
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
    /// `-ip-masq`: the rules of [`Chain::Postrouting`].
    pub masquerade: bool,
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
            let wanted = flags.masquerade || flags.forward;
            wanted.then(|| FamilyRules {
                postrouting: match flags.masquerade {
                    true => masquerade(c, p, flags.fully_random),
                    false => Vec::new(),
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

    /// No rules for the same networks: what should stand where these rules should not.
    pub fn none(&self) -> TrafficRules {
        TrafficRules {
            families: Dual::default(),
            own: self.own.clone(),
        }
    }

    /// What a chain should hold in which `standing` stands, where `None` is a rule that no flannel
    /// writes: the rules of [`TrafficRules::chain`], and those of another flannel's networks as they
    /// are. It is `standing` itself if nothing needs to change.
    pub fn merged(&self, family: Family, chain: Chain, standing: &[Option<Rule>]) -> Vec<Rule> {
        let desired = self.chain(family, chain);
        let others = |rule: &Option<Rule>| rule.as_ref().is_some_and(|r| self.is_anothers(r));
        let ours = standing.iter().filter(|rule| !others(rule));
        if ours.map(Option::as_ref).eq(desired.iter().map(Some)) {
            return standing.iter().flatten().cloned().collect();
        }
        let theirs = standing.iter().filter(|rule| others(rule)).flatten();
        // What is said of marks is said for all networks.
        let marks = theirs.clone().next().and_then(|_| {
            let marks = |rule: &&Rule| rule.networks().next().is_none();
            standing.iter().flatten().find(marks)
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
mod tests {
    use super::*;

    fn net(s: &str) -> IpNet {
        s.parse().unwrap()
    }

    fn dual(v4: &str, v6: &str) -> Dual<IpNet> {
        Dual {
            v4: (!v4.is_empty()).then(|| net(v4)),
            v6: (!v6.is_empty()).then(|| net(v6)),
        }
    }

    const ALL: RuleFlags = RuleFlags {
        masquerade: true,
        fully_random: true,
        forward: true,
    };

    /// What the rules make of a packet: the first verdict that is final.
    fn fate(rules: &[Rule], mark: u32, from: &str, to: &str) -> Option<Verdict> {
        let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let holds = |m: &Match| match m {
            Match::Mark { value, mask } => mark & mask == *value,
            Match::Source { net, not } => net.contains(&from) != *not,
            Match::Destination { net, not } => net.contains(&to) != *not,
        };
        let rule = rules.iter().find(|r| r.matches().iter().all(holds))?;
        Some(rule.verdict())
    }

    #[test]
    fn each_kind_of_packet_gets_its_verdict_in_both_families() {
        let rules = TrafficRules::of(
            &dual("10.1.0.0/16", "fd00::/48"),
            &dual("10.1.5.0/24", "fd00:0:0:5::/64"),
            ALL,
        );
        let masq = Some(Verdict::Masquerade { fully_random: true });
        let stay = Some(Verdict::Return);
        for (v4, v6, mark, verdict) in [
            (
                ("10.1.5.2", "10.1.9.2"),
                ("fd00:0:0:5::2", "fd00:0:0:9::2"),
                0,
                stay,
            ),
            (
                ("10.1.9.2", "10.1.5.2"),
                ("fd00:0:0:9::2", "fd00:0:0:5::2"),
                0,
                stay,
            ),
            (
                ("192.0.2.1", "10.1.5.2"),
                ("2001:db8::1", "fd00:0:0:5::2"),
                0,
                stay,
            ),
            (
                ("10.1.5.2", "192.0.2.1"),
                ("fd00:0:0:5::2", "2001:db8::1"),
                0,
                masq,
            ),
            (
                ("192.0.2.1", "10.1.9.2"),
                ("2001:db8::1", "fd00:0:0:9::2"),
                0,
                masq,
            ),
            (
                ("10.1.5.2", "192.0.2.1"),
                ("fd00:0:0:5::2", "2001:db8::1"),
                0x4003,
                stay,
            ),
            (
                ("10.1.5.2", "192.0.2.1"),
                ("fd00:0:0:5::2", "2001:db8::1"),
                0x8003,
                masq,
            ),
            (
                ("10.1.5.2", "224.0.0.251"),
                ("fd00:0:0:5::2", "ff02::fb"),
                0,
                None,
            ),
            (
                ("192.0.2.1", "192.0.2.2"),
                ("2001:db8::1", "2001:db8::2"),
                0,
                None,
            ),
        ] {
            for (family, (from, to)) in [(Family::V4, v4), (Family::V6, v6)] {
                let rules = rules.chain(family, Chain::Postrouting);
                assert_eq!(
                    fate(rules, mark, from, to),
                    verdict,
                    "{from} to {to}, mark {mark:#x}"
                );
            }
        }
        for family in Family::ALL {
            assert_eq!(rules.chain(family, Chain::Forward).len(), 2);
        }
    }

    #[test]
    fn flags_and_families_take_rules_away() {
        let (c, p) = (dual("10.1.0.0/16", ""), dual("10.1.5.0/24", "fd00::/64"));
        let only_masq = TrafficRules::of(
            &c,
            &p,
            RuleFlags {
                forward: false,
                ..ALL
            },
        );
        assert_eq!(only_masq.chain(Family::V4, Chain::Postrouting).len(), 6);
        assert!(only_masq.chain(Family::V4, Chain::Forward).is_empty());
        assert!(only_masq.has(Family::V4) && !only_masq.has(Family::V6));

        let none = RuleFlags {
            masquerade: false,
            forward: false,
            ..ALL
        };
        assert!(TrafficRules::of(&c, &p, none).is_empty());
    }

    #[test]
    fn another_flannel_s_rules_stay_and_the_former_network_s_go() {
        let of = |c: &str, p: &str| TrafficRules::of(&dual(c, ""), &dual(p, ""), ALL);
        let (a, b) = (
            of("10.1.0.0/16", "10.1.5.0/24"),
            of("10.60.0.0/16", "10.60.3.0/24"),
        );
        let chain = |rules: &TrafficRules| rules.chain(Family::V4, Chain::Postrouting).to_vec();
        let merge = |rules: &TrafficRules, standing: &[Rule]| {
            let standing: Vec<_> = standing.iter().cloned().map(Some).collect();
            rules.merged(Family::V4, Chain::Postrouting, &standing)
        };
        // Each adds its own to what it finds, and then finds nothing to do.
        let both = merge(&b, &merge(&a, &[]));
        assert_eq!(both.len(), 6 + 5);
        assert_eq!(merge(&a, &both), both);
        assert_eq!(merge(&b, &both), both);
        // Each takes its own away alone; the last one takes the rule about marks too.
        let only_b = merge(&a.none(), &both);
        assert_eq!(only_b, chain(&b));
        assert_eq!(merge(&a.none(), &only_b), only_b);
        assert_eq!(merge(&b.none(), &only_b), []);
        // A rule of ours that is wrong is replaced, wherever it stands.
        let mut wrong = both.clone();
        wrong.remove(8);
        wrong.push(Rule::new([], Verdict::Accept));
        assert_eq!(merge(&a, &wrong).len(), 6 + 5);

        // A node that moved to another network leaves nothing of the first; one that only cleans
        // up takes all.
        let moved = b.clone().and_formerly([net("10.1.0.0/16")]);
        assert_eq!(merge(&moved, &chain(&a)), chain(&b));
        assert_eq!(merge(&TrafficRules::default(), &both), []);
    }

    #[test]
    fn the_order_of_conditions_makes_no_difference() {
        let from = Match::Source {
            net: net("10.1.0.0/16"),
            not: false,
        };
        let to = Match::Destination {
            net: net("10.1.5.0/24"),
            not: false,
        };
        assert_eq!(
            Rule::new([from, to], Verdict::Return),
            Rule::new([to, from], Verdict::Return)
        );
        assert_ne!(
            Rule::new([from], Verdict::Return),
            Rule::new([from, to], Verdict::Return)
        );
    }
}
