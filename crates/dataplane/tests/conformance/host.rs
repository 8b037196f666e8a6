//! The snapshot of the host, against what `ip` shows.

use dataplane::host::{self, Address, AddressState, DefaultRoute, LinkRoutes, Path};
use dataplane::{Dataplane, Outcome};
use model::object::LinkKind;
use model::{Family, Op};

use crate::objects::*;
use crate::worlds::{Real, World, in_namespace, sh};

#[test]
fn interfaces_as_they_are() {
    in_namespace(|| async {
        Real::new(true);
        sh("ip address add 192.168.7.5/24 dev eth0");
        sh("ip route add 172.31.0.0/16 dev eth0 scope link");
        sh("ip link set eth1 mtu 1400");
        sh("ip link set peer1 down");
        sh("ip link property add dev eth1 altname enp7s0f1np1-the-long-one altname lan");
        let found = host::interfaces().unwrap();
        let named = |name: &str| found.iter().find(|i| i.name == dev(name)).unwrap();
        let json: Vec<serde_json::Value> = serde_json::from_str(&sh("ip -j link show")).unwrap();
        assert_eq!(found.len(), json.len());
        for one in &json {
            let ours = named(one["ifname"].as_str().unwrap());
            assert_eq!(
                (one["ifindex"].clone(), one["mtu"].clone()),
                (ours.index.into(), ours.mtu.into())
            );
        }
        let eth0 = named("eth0");
        assert!(eth0.up && eth0.running && !eth0.loopback);
        let global = |net: &str| Address {
            net: net.parse().unwrap(),
            link_local: false,
            temporary: false,
            state: AddressState::Valid,
        };
        assert_eq!(
            eth0.addrs[..2],
            [global("192.168.7.1/24"), global("192.168.7.5/24")]
        );
        assert!(eth0.addrs.contains(&global("fd07::1/64")));
        assert!(eth0.addrs.iter().any(|a| a.link_local));
        let on_link = host::link_routes(eth0.index).unwrap().on_link;
        for net in ["192.168.7.0/24", "172.31.0.0/16", "fd07::/64"] {
            assert!(
                on_link.contains(&net.parse().unwrap()),
                "{net}: {on_link:?}"
            );
        }
        assert!(!on_link.contains(&"192.168.8.0/24".parse().unwrap()));
        assert!(named("lo").loopback);
        assert_eq!(named("eth1").mtu, 1400);
        assert_eq!(named("eth1").alt_names, ["enp7s0f1np1-the-long-one", "lan"]);
        assert!(named("eth1").up && !named("peer1").up);
    });
}

#[test]
fn paths_and_default_routes() {
    in_namespace(|| async {
        Real::new(true);
        let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
        assert_eq!(host::route_to(ip("8.8.8.8")).unwrap(), None);
        assert_eq!(host::default_routes().unwrap(), []);
        sh("ip route add default via 192.168.8.9 metric 200");
        sh("ip route add default via 192.168.7.9 metric 100 src 192.168.7.1");
        sh("ip route add default via fd07::9");
        let found = host::interfaces().unwrap();
        let index = |name: &str| found.iter().find(|i| i.name == dev(name)).unwrap().index;
        let route = |family, iface, metric, via: &str, source: Option<&str>| DefaultRoute {
            family,
            index: index(iface),
            metric,
            via: Some(ip(via)),
            source: source.map(ip),
        };
        let on_eth0 = [
            route(Family::V4, "eth0", 100, "192.168.7.9", Some("192.168.7.1")),
            route(Family::V6, "eth0", 1024, "fd07::9", None),
        ];
        let on_eth1 = route(Family::V4, "eth1", 200, "192.168.8.9", None);
        assert_eq!(
            host::default_routes().unwrap(),
            [on_eth0[0], on_eth1, on_eth0[1]]
        );
        let of_eth0 = host::link_routes(index("eth0")).unwrap();
        assert_eq!(of_eth0.defaults, on_eth0);
        let direct = Path {
            iface: dev("eth1"),
            source: Some(ip("192.168.8.1")),
            via: None,
        };
        assert_eq!(host::route_to(ip("192.168.8.77")).unwrap(), Some(direct));
        let far = Path {
            iface: dev("eth0"),
            source: Some(ip("192.168.7.1")),
            via: Some(ip("192.168.7.9")),
        };
        assert_eq!(host::route_to(ip("8.8.8.8")).unwrap(), Some(far));
        let far = host::route_to(ip("2001:db8::1")).unwrap().unwrap();
        assert_eq!((far.iface, far.via), (dev("eth0"), Some(ip("fd07::9"))));
    });
}

#[test]
fn a_default_route_with_several_next_hops_is_one_for_each() {
    in_namespace(|| async {
        Real::new(true);
        let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
        sh(
            "ip route add default src 192.168.7.1 nexthop via 192.168.7.9 dev eth0 nexthop via inet6 fe80::9 dev eth1",
        );
        let found = host::interfaces().unwrap();
        let index = |name: &str| found.iter().find(|i| i.name == dev(name)).unwrap().index;
        let route = |iface, via: &str| DefaultRoute {
            family: Family::V4,
            index: index(iface),
            metric: 0,
            via: Some(ip(via)),
            source: Some(ip("192.168.7.1")),
        };
        let both = [route("eth0", "192.168.7.9"), route("eth1", "fe80::9")];
        assert_eq!(host::default_routes().unwrap(), both);
        let of_eth1 = host::link_routes(index("eth1")).unwrap();
        assert_eq!(of_eth1.defaults, both[1..]);
    });
}

#[test]
fn what_stands_under_a_name() {
    in_namespace(|| async {
        Real::new(true);
        assert_eq!(host::standing(&dev(OURS)).unwrap(), None);
        let eth0 = host::standing(&dev("eth0")).unwrap().unwrap();
        assert_eq!(eth0.kind, LinkKind::Foreign("veth".into()));
        assert_eq!(
            eth0.mac.unwrap().to_string(),
            sh("ip link show eth0 | sed -n 's,.*link/ether \\([^ ]*\\).*,\\1,p'").trim()
        );
        sh(
            "ip link add flannel.1 address 0e:00:00:00:00:01 type vxlan id 1 dev eth0 local 192.168.7.1 dstport 8472 nolearning",
        );
        let ours = host::standing(&dev(OURS)).unwrap().unwrap();
        assert_eq!((ours.kind, ours.mac), (vxlan(1).kind, Some(mac(1))));
    });
}

#[test]
fn a_host_without_any_ipv4_route_is_shown() {
    in_namespace(|| async {
        // With the loopback down the kernel has no IPv4 table at all, and says ENOENT.
        assert_eq!(host::default_routes().unwrap(), []);
        let lo = &host::interfaces().unwrap()[0];
        assert_eq!(host::link_routes(lo.index).unwrap(), LinkRoutes::default());
    });
}

/// Where no IPv4 address ever was and the loopback is down, the kernel has no IPv4 tables to ask for.
#[test]
fn a_host_that_never_had_ipv4() {
    in_namespace(|| async {
        sh(
            "ip link add eth0 type veth peer name peer0 && ip link set peer0 up && ip link set eth0 up
            ip address add fd07::1/64 dev eth0 nodad",
        );
        let found = host::interfaces().unwrap();
        let eth0 = found.iter().find(|i| i.name == dev("eth0")).unwrap();
        let routes = host::link_routes(eth0.index).unwrap();
        assert!(
            routes
                .on_link
                .iter()
                .all(|net| matches!(net, ipnet::IpNet::V6(_)))
        );
        assert!(host::default_routes().unwrap().is_empty());
        let mut kernel = dataplane::Kernel::open(false).unwrap();
        kernel.set_scope(scope(&[OURS]));
        let mut seen = Vec::new();
        kernel
            .observe(&mut |object| seen.push(object))
            .await
            .unwrap();
        assert_eq!(seen, []);
    });
}

/// The kernel finds devices by their alternative names too.
#[test]
fn a_device_with_our_name_as_an_alternative_one_is_left_alone() {
    in_namespace(|| async {
        let world = Real::new(true);
        sh("ip link property add dev eth0 altname flannel.1");
        let mut kernel = world.plane();
        kernel.set_scope(scope(&[OURS]));
        let mut seen = Vec::new();
        kernel
            .observe(&mut |object| seen.push(object))
            .await
            .unwrap();
        assert_eq!(seen, []);
        let ours = link(OURS, vxlan(1));
        for op in [Op::Put(ours.clone()), Op::Del(ours)] {
            if let [Outcome::Refused(error)] = &kernel.apply(&[op]).await[..] {
                let remedy = "flannel.1 is an alternative name of eth0: ip link property del";
                assert!(error.to_string().contains(remedy), "{error}");
            }
            assert!(sh("ip link show dev eth0").contains("altname flannel.1"));
        }
    });
}
