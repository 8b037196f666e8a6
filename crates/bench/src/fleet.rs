//! The peers of a benchmark: as many as wanted, no two alike.

use std::net::Ipv4Addr;

/// The network that all of them share; `SubnetLen` is 24.
pub const NETWORK: &str = "10.0.0.0/8";

/// Peers numbered from here on come and go while a daemon is measured.
pub const VISITORS: u32 = 50_000;

/// One peer, by its number: 0 … 65,000. Subnets start at 10.1.0.0, so that 10.0.1.0 … 10.0.255.0
/// are left for the daemon that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub u32);

impl Peer {
    /// The first address of its subnet, which is a /24.
    pub fn subnet(self) -> Ipv4Addr {
        Ipv4Addr::from(0x0a01_0000 + (self.0 << 8))
    }

    /// Where it is reached. Nobody is there: a benchmark sends it nothing.
    pub fn public_ip(self) -> Ipv4Addr {
        Ipv4Addr::from(0xac10_0001 + self.0)
    }

    /// Its `VtepMAC`.
    pub fn mac(self) -> String {
        let [a, b, c, d] = self.0.to_be_bytes();
        format!("0e:fa:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    }

    /// Its key below `subnets/`.
    pub fn key(self) -> String {
        format!("{}-24", self.subnet())
    }

    /// Its value, as flannel writes it.
    pub fn value(self) -> String {
        format!(
            r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{}"}}}}"#,
            self.public_ip(),
            self.mac()
        )
    }
}

/// Up to 24 of the first `count` peers, evenly spread, the first and the last among them.
pub fn sample(count: u32) -> Vec<Peer> {
    let last = count.saturating_sub(1);
    let mut numbers: Vec<u32> = (0..24).map(|i| (u64::from(last) * i / 23) as u32).collect();
    numbers.dedup();
    numbers.into_iter().map(Peer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_differ_and_stay_inside_the_network() {
        let last = Peer(VISITORS + 1000);
        assert_eq!(Peer(0).key(), "10.1.0.0-24");
        assert_eq!(last.subnet().octets()[0], 10);
        assert_eq!(Peer(256).subnet(), Ipv4Addr::new(10, 2, 0, 0));
        assert_ne!(Peer(1).mac(), Peer(256).mac());
        assert!(Peer(5).value().contains(r#""PublicIP":"172.16.0.6""#));
    }

    #[test]
    fn a_sample_has_both_ends() {
        for count in [1, 5, 100, 15_000] {
            let sample = sample(count);
            assert_eq!(
                (sample[0], sample[sample.len() - 1]),
                (Peer(0), Peer(count - 1))
            );
        }
    }
}
