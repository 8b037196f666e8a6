//! The mark on a device that says whose it is.

use std::fmt;

use ipnet::IpNet;

use crate::Dual;

/// The flannel networks for which a device was created, as its alias says:
/// `flannel 10.244.0.0/16 fd00:10::/48`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(Dual<IpNet>);

const WORD: &str = "flannel";

impl Mark {
    /// Returns the mark of a network. `None` if it has neither family.
    pub fn of(network: &Dual<IpNet>) -> Option<Mark> {
        (!network.is_empty()).then_some(Mark(*network))
    }

    /// Reads a device's alias. `None` if it is not a mark.
    pub fn parse(alias: &str) -> Option<Mark> {
        let mut words = alias.split(' ');
        if words.next() != Some(WORD) {
            return None;
        }
        let mut networks = Dual::default();
        for word in words {
            match word.parse().ok()? {
                net @ IpNet::V4(_) => networks.v4 = Some(net),
                net @ IpNet::V6(_) => networks.v6 = Some(net),
            }
        }
        Mark::of(&networks)
    }

    /// Returns whether the mark names this network, in one family at least: a network may have got
    /// its second family later.
    pub fn names(&self, network: &Dual<IpNet>) -> bool {
        let mut ours = network.iter();
        ours.any(|(family, net)| self.0.get(family) == Some(net))
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(WORD)?;
        self.0.iter().try_for_each(|(_, net)| write!(f, " {net}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_back_and_nothing_else_is_one() {
        let network = Dual {
            v4: Some("10.244.0.0/16".parse().unwrap()),
            v6: Some("fd00:10::/48".parse().unwrap()),
        };
        let mark = Mark::of(&network).unwrap();
        assert_eq!(mark.to_string(), "flannel 10.244.0.0/16 fd00:10::/48");
        assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
        let v4 = Mark::parse("flannel 10.244.0.0/16").unwrap();
        assert!(v4.names(&network) && mark.names(&network));
        let other = Mark::parse("flannel 10.245.0.0/16").unwrap();
        assert!(!other.names(&network));
        for text in [
            "",
            "flannel",
            "flannel x",
            "eth0 uplink",
            "flannel 10.244.0.0/33",
        ] {
            assert_eq!(Mark::parse(text), None, "{text}");
        }
    }
}
