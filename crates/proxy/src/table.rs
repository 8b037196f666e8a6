//! To whom the packets for a subnet go.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// Next hops by destination; the longest prefix wins. A value never changes: the workers read it while
/// the daemon builds the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table<T = SocketAddr> {
    v4: Vec<Length<u32, T>>,
    v6: Vec<Length<u128, T>>,
}

/// The subnets of one prefix length, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Length<A, T> {
    mask: A,
    nets: Vec<(A, T)>,
}

impl<T> Default for Table<T> {
    fn default() -> Table<T> {
        Table {
            v4: Vec::new(),
            v6: Vec::new(),
        }
    }
}

impl<T: Copy> Table<T> {
    /// Builds a table. Of two entries for one subnet, the later one wins.
    pub fn new(routes: impl IntoIterator<Item = (IpNet, T)>) -> Table<T> {
        let mut table = Table::default();
        for (net, hop) in routes {
            match net {
                IpNet::V4(net) => add(
                    &mut table.v4,
                    net.netmask().to_bits(),
                    net.network().to_bits(),
                    hop,
                ),
                IpNet::V6(net) => add(
                    &mut table.v6,
                    net.netmask().to_bits(),
                    net.network().to_bits(),
                    hop,
                ),
            }
        }
        finish(&mut table.v4);
        finish(&mut table.v6);
        table
    }

    /// Returns where packets for `destination` go.
    pub fn next_hop(&self, destination: IpAddr) -> Option<T> {
        match destination {
            IpAddr::V4(ip) => find(&self.v4, |mask| ip.to_bits() & mask),
            IpAddr::V6(ip) => find(&self.v6, |mask| ip.to_bits() & mask),
        }
    }

    /// Returns the number of subnets.
    pub fn len(&self) -> usize {
        let v4 = self.v4.iter().map(|length| length.nets.len());
        let v6 = self.v6.iter().map(|length| length.nets.len());
        v4.chain(v6).sum()
    }

    /// Returns whether there is no subnet at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn add<A: Ord + Copy, T>(lengths: &mut Vec<Length<A, T>>, mask: A, network: A, hop: T) {
    match lengths.iter_mut().find(|length| length.mask == mask) {
        Some(length) => length.nets.push((network, hop)),
        None => lengths.push(Length {
            mask,
            nets: vec![(network, hop)],
        }),
    }
}

fn finish<A: Ord + Copy, T: Copy>(lengths: &mut [Length<A, T>]) {
    lengths.sort_by_key(|length| std::cmp::Reverse(length.mask));
    for length in lengths {
        // Stable: the later entry of two stays behind the earlier one.
        length.nets.sort_by_key(|(network, _)| *network);
        length.nets.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                earlier.1 = later.1;
            }
            same
        });
    }
}

fn find<A: Ord + Copy, T: Copy>(lengths: &[Length<A, T>], masked: impl Fn(A) -> A) -> Option<T> {
    lengths.iter().find_map(|length| {
        let network = masked(length.mask);
        let at = length.nets.binary_search_by(|(net, _)| net.cmp(&network));
        Some(length.nets.get(at.ok()?)?.1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 8285))
    }

    #[test]
    fn the_longest_prefix_wins() {
        let table = Table::new([
            ("10.1.0.0/16".parse().unwrap(), hop(1)),
            ("10.1.4.0/24".parse().unwrap(), hop(2)),
            ("10.1.4.7/32".parse().unwrap(), hop(3)),
            ("fd00:1::/64".parse().unwrap(), hop(4)),
        ]);
        let to = |ip: &str| table.next_hop(ip.parse().unwrap());
        assert_eq!(to("10.1.4.7"), Some(hop(3)));
        assert_eq!(to("10.1.4.8"), Some(hop(2)));
        assert_eq!(to("10.1.5.8"), Some(hop(1)));
        assert_eq!(to("10.2.5.8"), None);
        assert_eq!(to("fd00:1::9"), Some(hop(4)));
        assert_eq!(to("fd00:2::9"), None);
        assert_eq!(table.len(), 4);
    }

    #[test]
    fn everything_and_nothing() {
        assert_eq!(Table::<SocketAddr>::default().next_hop(hop(1).ip()), None);
        let table = Table::new([("0.0.0.0/0".parse().unwrap(), hop(1))]);
        assert_eq!(table.next_hop("203.0.113.9".parse().unwrap()), Some(hop(1)));
        assert_eq!(table.next_hop("::1".parse().unwrap()), None);
    }

    #[test]
    fn the_later_entry_of_two_wins() {
        let net: IpNet = "10.1.4.0/24".parse().unwrap();
        let table = Table::new([(net, hop(1)), (net, hop(2))]);
        assert_eq!(table.next_hop("10.1.4.1".parse().unwrap()), Some(hop(2)));
        assert_eq!(table.len(), 1);
    }
}
