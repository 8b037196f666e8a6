//! What we wrote, as `ip` and `bridge` see it.

use dataplane::Dataplane;
use model::object::*;
use model::{Object, Op};
use serde_json::Value;

use crate::objects::*;
use crate::script::sorted;
use crate::worlds::{Real, World, in_namespace, sh};

fn json(command: &str) -> Vec<Value> {
    serde_json::from_str(&sh(command)).unwrap()
}

fn with(next_hops: bool) {
    in_namespace(move || async move {
        let world = Real::new(next_hops);
        let mut kernel = world.plane();
        kernel.set_scope(scope(&[OURS]));
        let mut all = mesh(next_hops);
        all.push(route("10.244.1.0/24", RouteTo::Blackhole));
        all.push(route("10.244.4.0/24", RouteTo::Dev(dev(OURS))));
        for outcome in kernel.apply(&puts(&all)).await {
            assert!(outcome.is_done(), "{outcome:?}");
        }

        let links = json("ip -j -d link show flannel.1");
        let (link, data) = (&links[0], &links[0]["linkinfo"]["info_data"]);
        assert_eq!(link["address"], "0e:00:00:00:00:01");
        assert_eq!(link["mtu"], 1450);
        assert!(link["flags"].as_array().unwrap().contains(&"UP".into()));
        assert_eq!(link["linkinfo"]["info_kind"], "vxlan");
        assert_eq!((&data["id"], &data["port"]), (&1.into(), &8472.into()));
        assert_eq!(
            (&data["link"], &data["local"]),
            (&"eth0".into(), &"192.168.7.1".into())
        );
        assert_eq!(data["learning"], false);
        assert_eq!(link["ifalias"], "flannel 10.244.0.0/16");

        let addrs = json("ip -j address show dev flannel.1 scope global");
        let addrs = addrs[0]["addr_info"].as_array().unwrap();
        // What the scope leaves out, `ip` shows as an empty object.
        let addrs: Vec<&Value> = addrs.iter().filter(|a| a.get("local").is_some()).collect();
        let is = |a: &Value, local: &str, len: u32| a["local"] == local && a["prefixlen"] == len;
        assert_eq!(addrs.len(), 2);
        assert!(is(addrs[0], "10.244.1.0", 32) && is(addrs[1], "fd44:0:0:1::", 128));
        assert_eq!(addrs[1]["nodad"], true);
        assert_eq!(addrs[1].get("tentative"), None);

        for (family, ip) in [("-4", "10.244.2.0"), ("-6", "fd44:0:0:2::")] {
            let neighs = json(&format!("ip -j {family} neigh show dev flannel.1"));
            assert_eq!(neighs.len(), 1);
            assert_eq!(
                (&neighs[0]["dst"], &neighs[0]["lladdr"]),
                (&ip.into(), &"0e:00:00:00:00:02".into())
            );
            assert_eq!(neighs[0]["state"][0], "PERMANENT");
        }

        let fdb = json("bridge -j fdb show dev flannel.1");
        assert_eq!(fdb.len(), 1);
        assert_eq!(
            (&fdb[0]["mac"], &fdb[0]["dst"]),
            (&"0e:00:00:00:00:02".into(), &"192.168.7.2".into())
        );
        assert_eq!(fdb[0]["state"], "permanent");
        assert_eq!(fdb[0]["flags"].as_array().unwrap(), &["self"]);

        for (dst, gateway) in [
            ("10.244.2.0/24", "10.244.2.0"),
            ("fd44:0:0:2::/64", "fd44:0:0:2::"),
        ] {
            let family = if dst.contains(':') { "-6" } else { "-4" };
            let routes = json(&format!("ip -j {family} route show {dst}"));
            assert_eq!(routes.len(), 1);
            assert_eq!(
                (&routes[0]["gateway"], &routes[0]["dev"]),
                (&gateway.into(), &OURS.into())
            );
            assert_eq!(routes[0]["protocol"], "241");
            assert!(
                routes[0]["flags"]
                    .as_array()
                    .unwrap()
                    .contains(&"onlink".into())
            );
            assert_eq!(routes[0].get("nhid").is_some(), next_hops);
        }
        let hops = json("ip -j nexthop show");
        assert_eq!(hops.len(), if next_hops { 2 } else { 0 });
        assert_eq!(
            json("ip -j route show 10.244.1.0/24")[0]["type"],
            "blackhole"
        );
        assert_eq!(json("ip -j route show 10.244.4.0/24")[0]["scope"], "link");
    });
}

#[test]
fn a_device_of_ours_believes_no_router() {
    in_namespace(|| async {
        let mut kernel = Real::new(true).plane();
        kernel.set_scope(scope(&[OURS]));
        for outcome in kernel.apply(&puts(&mesh(true))).await {
            assert!(outcome.is_done(), "{outcome:?}");
        }
        assert_eq!(
            json("ip -j -d link show flannel.1")[0]["inet6_addr_gen_mode"],
            "none"
        );
        assert!(!sh("ip -6 address show dev flannel.1").contains("fe80"));
        for switch in [
            "ipv6/conf/flannel.1/accept_ra",
            "ipv6/conf/flannel.1/accept_redirects",
        ] {
            assert_eq!(
                sh(&format!("cat /proc/sys/net/{switch}")).trim(),
                "0",
                "{switch}"
            );
        }

        // Believed before we came, by a device that somebody else made.
        sh("ip -6 route add default via fe80::bad dev flannel.1 proto ra metric 1024");
        let mut seen = Vec::new();
        kernel
            .observe(&mut |object| seen.push(object))
            .await
            .unwrap();
        let learnt = seen
            .into_iter()
            .find(|o| matches!(o, Object::Route(key, _) if key.dst.prefix_len() == 0));
        for outcome in kernel.apply(&[Op::Del(learnt.unwrap())]).await {
            assert!(outcome.is_done(), "{outcome:?}");
        }
        assert_eq!(sh("ip -6 route show default"), "");
    });
}

#[test]
fn with_next_hop_objects() {
    with(true);
}

#[test]
fn with_plain_routes() {
    with(false);
}

#[test]
fn options_of_a_vxlan_device() {
    in_namespace(|| async {
        let world = Real::new(true);
        let mut kernel = world.plane();
        let name = "flannel-v6.7";
        kernel.set_scope(scope(&[name]));
        let local = "fd07::1".parse().unwrap();
        let vxlan = Vxlan {
            vni: 7,
            port: 4789,
            local,
            beneath: beneath(),
            learning: true,
            gbp: true,
            tx_checksum: Some(false),
        };
        let made = Link {
            kind: LinkKind::Vxlan(vxlan),
            mac: Some(mac(3)),
            mtu: 1430,
            up: false,
            mark: Mark::parse("flannel 10.244.0.0/16"),
            enslaved: false,
        };
        let made_by = kernel.apply(&[Op::Put(link(name, made.clone()))]).await;
        assert!(made_by[0].is_done(), "{made_by:?}");
        let links = json(&format!("ip -j -d link show {name}"));
        let data = &links[0]["linkinfo"]["info_data"];
        assert_eq!(data["local6"], "fd07::1");
        assert_eq!(
            (&data["learning"], &data["gbp"]),
            (&true.into(), &true.into())
        );
        assert_eq!(data["port"], 4789);
        assert!(!links[0]["flags"].as_array().unwrap().contains(&"UP".into()));
        let mut seen = Vec::new();
        kernel
            .observe(&mut |object| seen.push(object))
            .await
            .unwrap();
        assert_eq!(sorted(&seen), sorted(&[link(name, made)]));
    });
}

#[test]
fn an_operation_prints_as_the_command_that_does_it() {
    in_namespace(|| async {
        let world = Real::new(true);
        let mut kernel = world.plane();
        kernel.set_scope(scope(&[OURS]));
        let mut all: Vec<Object> = mesh(true);
        all.push(route("10.244.1.0/24", RouteTo::Blackhole));
        all.push(via("10.244.3.0/24", "10.244.3.0"));
        for object in &all {
            sh(&Op::Put(object.clone()).to_string());
        }
        let mut seen = Vec::new();
        kernel
            .observe(&mut |object| seen.push(object))
            .await
            .unwrap();
        assert_eq!(sorted(&seen), sorted(&all));
        for object in all.iter().rev() {
            sh(&Op::Del(object.clone()).to_string());
        }
        seen.clear();
        kernel
            .observe(&mut |object| seen.push(object))
            .await
            .unwrap();
        assert_eq!(seen, []);
    });
}
