//! Nodes of a small network, by number: 1 and 2 on one link, the others behind a router.
#![allow(dead_code)] // not every test needs all of it

use backend::Identity;
use ipnet::IpNet;
use model::{Dual, Family, Host, Lease, Mac, NetConfig, SubnetKey, WgKey, WgSecret};

pub fn config(options: &str, families: &[Family]) -> NetConfig {
    let (v4, v6) = (
        families.contains(&Family::V4),
        families.contains(&Family::V6),
    );
    let json = format!(
        r#"{{"EnableIPv4":{v4},"EnableIPv6":{v6},"Network":"172.30.0.0/16","IPv6Network":"fd00:30::/48","Backend":{{{options}}}}}"#
    );
    NetConfig::from_json(&json).unwrap()
}

pub fn host(n: u8, families: &[Family]) -> Host {
    let link = if n <= 2 { 1 } else { n };
    let addresses = [format!("10.0.{link}.{n}"), format!("fd78:0:0:{link}::{n}")];
    let [v4, v6] = addresses.map(|ip| Some(ip.parse().unwrap()));
    let only =
        |dual: Dual<_>| Dual::from_fn(|f| dual.get(f).copied().filter(|_| families.contains(&f)));
    let net = |text: String| text.parse::<IpNet>().unwrap();
    Host {
        iface: "eth0".parse().unwrap(),
        ifindex: 2,
        mtu: 1500,
        kind: String::new(),
        addr: only(Dual { v4, v6 }),
        public_ip: only(Dual { v4, v6 }),
        on_link: vec![
            net(format!("10.0.{link}.0/24")),
            net(format!("fd78:0:0:{link}::/64")),
        ],
        underlay: Vec::new(),
    }
}

pub fn identity(n: u8) -> Identity {
    let mac = |family| Mac([0x02, 0, 0, 0, family, n]);
    Identity::Macs(Dual {
        v4: Some(mac(4)),
        v6: Some(mac(6)),
    })
}

/// The identity of node `n` with these options.
pub fn identity_of(options: &str, n: u8) -> Identity {
    if options.contains("PreStartupCommand") {
        Identity::Data(format!("02:00:00:00:04:{n:02x}\n\"second line\"").into())
    } else if options.contains("wireguard") {
        Identity::WgKey {
            private: WgSecret([n; 32]),
            public: WgKey([100 + n; 32]),
            preshared: None,
            in_kernel: false,
        }
    } else {
        identity(n)
    }
}

pub fn key(n: u8, families: &[Family]) -> SubnetKey {
    let v4: IpNet = format!("172.30.{n}.0/24").parse().unwrap();
    let v6: IpNet = format!("fd00:30:0:{n}::/64").parse().unwrap();
    let net = |family| if family == Family::V4 { v4 } else { v6 };
    SubnetKey::new(Dual::from_fn(|f| families.contains(&f).then(|| net(f)))).unwrap()
}

/// What node `n` publishes when it runs our backend too.
pub fn lease(n: u8, options: &str, families: &[Family]) -> Lease {
    let own = host(n, families);
    let backend = backend::new(
        &config(options, families),
        &own,
        &identity_of(options, n),
        None,
    )
    .unwrap();
    Lease {
        key: key(n, families),
        attrs: backend.publish(),
        seniority: u64::from(n),
    }
}
