//! Tests of `iface`.

use dataplane::host::{Address, AddressState, DefaultRoute, Path};

use super::*;

fn iface(name: &str, index: u32, nets: &[&str]) -> Interface {
    let address = |net: &&str| Address {
        net: net.parse().unwrap(),
        link_local: false,
        temporary: net.starts_with("fd00:77"),
        state: AddressState::Valid,
    };
    Interface {
        name: name.parse().unwrap(),
        alt_names: Vec::new(),
        index,
        mtu: 1500,
        kind: String::new(),
        up: true,
        running: true,
        loopback: false,
        addrs: nets.iter().map(address).collect(),
    }
}

fn default_route(index: u32, metric: u32, via: &str) -> DefaultRoute {
    let via: IpAddr = via.parse().unwrap();
    DefaultRoute {
        family: Family::of(&via),
        index,
        metric,
        via: Some(via),
        source: None,
    }
}

fn loopback() -> Interface {
    Interface {
        loopback: true,
        ..iface("lo", 1, &["127.0.0.1/8", "::1/128"])
    }
}

fn view() -> View {
    View {
        interfaces: vec![
            loopback(),
            iface(
                "eth0",
                2,
                &[
                    "169.254.7.7/16",
                    "192.168.0.5/24",
                    "fe80::1/64",
                    "fd00:77::9/64",
                    "fd00:78::5/64",
                ],
            ),
            iface("eth1", 3, &["10.9.0.5/16", "10.9.0.6/16"]),
            iface("wg0", 4, &[]),
        ],
        default_routes: vec![
            default_route(2, 100, "192.168.0.254"),
            default_route(3, 1024, "fe80::99"),
        ],
        reach: Some(Path {
            iface: "eth1".parse().unwrap(),
            source: Some("10.9.0.6".parse().unwrap()),
            via: None,
        }),
    }
}

fn config(json: &str) -> NetConfig {
    NetConfig::from_json(json).unwrap()
}

fn chosen(args: &[&str], json: &str) -> Result<(String, Dual<String>), String> {
    chosen_in(&view(), args, json)
}

fn chosen_in(view: &View, args: &[&str], json: &str) -> Result<(String, Dual<String>), String> {
    let given = crate::flags::parse(args.iter().map(|s| (*s).to_owned()), |_| None).unwrap();
    let options = crate::options::Options::from_flags(&given).unwrap();
    let choice = choose(&options.iface, &options.public_ip, &config(json), view)
        .map_err(|e| e.to_string())?;
    let host = choice.host(&options.public_ip, LinkRoutes::default());
    Ok((
        host.iface.to_string(),
        host.public_ip.map(|_, ip| ip.to_string()),
    ))
}

fn v4(name: &str, ip: &str) -> Result<(String, Dual<String>), String> {
    let ips = Dual {
        v4: Some(ip.to_owned()),
        v6: None,
    };
    Ok((name.to_owned(), ips))
}

fn v6(name: &str, ip: &str) -> Result<(String, Dual<String>), String> {
    let ips = Dual {
        v4: None,
        v6: Some(ip.to_owned()),
    };
    Ok((name.to_owned(), ips))
}

/// The host chosen in `view` without flags.
fn host_in(view: &View, json: &str) -> Host {
    let choice = IfaceChoice::default();
    let found = choose(&choice, &Dual::default(), &config(json), view).unwrap();
    found.host(&Dual::default(), LinkRoutes::default())
}

/// The address chosen again in `view`, or why there is none.
fn again_in(view: &View, before: &Host, args: &[&str], json: &str) -> Result<Dual<IpAddr>, String> {
    let given = crate::flags::parse(args.iter().map(|s| (*s).to_owned()), |_| None).unwrap();
    let options = crate::options::Options::from_flags(&given).unwrap();
    let found = again(
        before,
        &options.iface,
        &options.public_ip,
        &config(json),
        view,
    );
    found.map(|choice| choice.addr).map_err(|e| e.to_string())
}

const V4: &str = r#"{"Network":"10.244.0.0/16"}"#;
const V6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd10::/48"}"#;
const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd10::/48"}"#;

#[test]
fn flags_choose_in_their_order() {
    for (args, name, ip) in [
        (&[][..], "eth0", "192.168.0.5"),
        (&["-iface=eth1"], "eth1", "10.9.0.5"),
        (&["-iface=10.9.0.6"], "eth1", "10.9.0.6"),
        (
            &["-iface=none", "-iface=wg0", "-iface=eth1"],
            "eth1",
            "10.9.0.5",
        ),
        (&["-iface-regex=^10\\.9\\."], "eth1", "10.9.0.5"),
        (
            &["-iface-regex=^eth1$", "-iface=eth0"],
            "eth0",
            "192.168.0.5",
        ),
        (&["-iface-regex=wg", "-iface-regex=th1"], "eth1", "10.9.0.5"),
        (&["-iface-can-reach=10.9.3.3"], "eth1", "10.9.0.6"),
        (&["-public-ip=203.0.113.9"], "eth0", "203.0.113.9"),
        (&["-public-ip=10.9.0.6"], "eth1", "10.9.0.6"),
        (&["-public-ip=127.0.0.1"], "eth0", "127.0.0.1"),
        (&["-public-ip=10.9.0.6", "-iface=eth0"], "eth0", "10.9.0.6"),
        // Nothing behind the equals sign is nothing given.
        (&["-iface="], "eth0", "192.168.0.5"),
        (
            &[
                "-iface=",
                "-iface-regex=",
                "-iface-can-reach=",
                "-public-ip=",
            ],
            "eth0",
            "192.168.0.5",
        ),
        (&["-iface=", "-iface=eth1"], "eth1", "10.9.0.5"),
        // A class of characters that "lo" matches, and everything.
        (&["-iface-regex=[eno|ens|enp]"], "eth0", "192.168.0.5"),
        (&["-iface-regex=.*"], "eth0", "192.168.0.5"),
        (&["-iface-regex=1.*"], "eth0", "192.168.0.5"),
        (&["-iface=lo"], "lo", "127.0.0.1"),
    ] {
        assert_eq!(chosen(args, V4), v4(name, ip), "{args:?}");
    }
}

#[test]
fn dual_stack_needs_both_families_of_one_interface() {
    let both = Dual {
        v4: Some("192.168.0.5".to_owned()),
        v6: Some("fd00:78::5".to_owned()),
    };
    assert_eq!(
        chosen(&["-iface=eth0"], DUAL),
        Ok(("eth0".to_owned(), both))
    );
    let error = chosen(&[], DUAL).unwrap_err();
    assert!(error.contains("eth0 (IPv4) and eth1 (IPv6)"), "{error}");
    let error = chosen(&["-iface=eth1"], DUAL).unwrap_err();
    assert!(
        error.contains("-iface eth1") && error.contains("no IPv6 address"),
        "{error}"
    );
}

#[test]
fn a_default_route_counts_only_if_packets_can_leave_by_it() {
    let mut view = view();
    view.default_routes.push(default_route(3, 50, "10.9.0.254"));
    assert_eq!(chosen_in(&view, &[], V4), v4("eth1", "10.9.0.5"));
    view.interfaces[2].running = false;
    assert_eq!(
        chosen_in(&view, &[], V4),
        v4("eth0", "192.168.0.5"),
        "no carrier"
    );
    // A DHCP client put one on our own device.
    view.interfaces
        .push(iface("flannel.1", 9, &["192.168.50.2/24"]));
    view.default_routes
        .push(default_route(9, 0, "192.168.50.1"));
    assert_eq!(chosen_in(&view, &[], V4), v4("eth0", "192.168.0.5"));
    let error = chosen_in(&view, &["-iface=flannel.1"], V4).unwrap_err();
    assert!(
        error.contains("flannel.1 is a device of flannel's own"),
        "{error}"
    );
    assert_eq!(
        chosen_in(&view, &["-iface-regex=^192.168.50", "-iface=eth1"], V4),
        v4("eth1", "10.9.0.5")
    );
}

#[test]
fn of_equal_routes_those_count_that_both_families_have() {
    let mut view = view();
    view.interfaces[2]
        .addrs
        .push(iface("x", 3, &["fd00:79::5/64"]).addrs[0]);
    view.default_routes
        .push(default_route(3, 100, "10.9.0.254"));
    assert_eq!(
        chosen_in(&view, &[], V4),
        v4("eth0", "192.168.0.5"),
        "the kernel's first"
    );
    assert_eq!(chosen_in(&view, &[], DUAL).unwrap().0, "eth1");
    // One family has no route for now: the other one's interface has the address.
    view.default_routes
        .retain(|route| route.family == Family::V4);
    assert_eq!(chosen_in(&view, &[], DUAL).unwrap().0, "eth0");
}

#[test]
fn the_address_is_the_one_that_an_administrator_would_take() {
    let mut view = view();
    // A service's address that came first, and one of another network.
    view.interfaces[1] = iface(
        "eth0",
        2,
        &["192.168.0.100/32", "10.77.0.5/16", "192.168.0.5/24"],
    );
    assert_eq!(
        chosen_in(&view, &[], V4),
        v4("eth0", "192.168.0.5"),
        "the gateway's network"
    );
    view.default_routes[0].via = None;
    assert_eq!(
        chosen_in(&view, &[], V4),
        v4("eth0", "10.77.0.5"),
        "the first but the service's"
    );
    view.default_routes[0].source = Some("192.168.0.100".parse().unwrap());
    assert_eq!(
        chosen_in(&view, &[], V4),
        v4("eth0", "192.168.0.100"),
        "the preferred source"
    );
    view.interfaces[1] = iface("eth0", 2, &["169.254.7.7/16"]);
    assert_eq!(
        chosen_in(&view, &[], V4),
        v4("eth0", "169.254.7.7"),
        "nothing else"
    );
}

#[test]
fn of_ipv6_addresses_the_oldest_lasting_one_counts() {
    let mut view = view();
    let of = |nets: &[&str]| vec![loopback(), iface("eth0", 2, nets)];
    view.default_routes = vec![default_route(2, 1024, "fe80::1")];
    // The kernel shows the newest first; fd00:77:: are temporary ones.
    view.interfaces = of(&[
        "fd00:78::53/64",
        "fd00:77::9/64",
        "fd00:78::5/64",
        "fe80::5/64",
    ]);
    assert_eq!(chosen_in(&view, &[], V6), v6("eth0", "fd00:78::5"));
    view.interfaces[1].addrs[2].state = AddressState::Deprecated;
    assert_eq!(chosen_in(&view, &[], V6), v6("eth0", "fd00:78::53"));
    view.interfaces[1].addrs[0].state = AddressState::Tentative;
    let choose = |view: &View| {
        let choice = IfaceChoice::default();
        let found = super::choose(&choice, &Dual::default(), &config(V6), view);
        found.map(|found| (found.addr.v6.unwrap().to_string(), found.may_improve))
    };
    assert_eq!(
        choose(&view),
        Ok(("fd00:78::53".to_owned(), true)),
        "waited for"
    );
    view.interfaces[1].addrs[0].state = AddressState::Duplicate;
    assert_eq!(choose(&view), Ok(("fd00:77::9".to_owned(), true)));
    view.interfaces[1].addrs.remove(1);
    assert_eq!(
        choose(&view),
        Ok(("fd00:78::5".to_owned(), true)),
        "deprecated"
    );
    view.interfaces[1].addrs.remove(1);
    assert!(choose(&view).is_err(), "a duplicate and a link-local one");
    view.interfaces[1].addrs[0].state = AddressState::Valid;
    assert_eq!(choose(&view), Ok(("fd00:78::53".to_owned(), false)));
}

#[test]
fn the_chosen_interface_stays_and_its_address_too() {
    let mut view = view();
    let before = host_in(&view, V4);
    view.default_routes.clear();
    let other = Address {
        net: "192.168.0.4/24".parse().unwrap(),
        ..view.interfaces[1].addrs[1]
    };
    view.interfaces[1].addrs.insert(0, other);
    assert_eq!(again_in(&view, &before, &[], V4), Ok(before.addr));
    view.interfaces[1]
        .addrs
        .retain(|a| a.net.addr() != before.addr.v4.unwrap());
    let moved = again_in(&view, &before, &[], V4).unwrap();
    assert_eq!(moved.v4, Some("192.168.0.4".parse().unwrap()));
    view.interfaces.remove(1);
    let gone = again_in(&view, &before, &[], V4).unwrap_err();
    assert_eq!(gone, "interface eth0 is gone");
}

fn choice(args: &[&str]) -> IfaceChoice {
    let given = crate::flags::parse(args.iter().map(|s| (*s).to_owned()), |_| None).unwrap();
    crate::options::Options::from_flags(&given).unwrap().iface
}

#[test]
fn one_family_without_an_address_leaves_the_other_chosen() {
    let at_least_one = |view: &View, args: &[&str]| {
        let (choice, none) = (choice(args), Dual::default());
        let found = choose_at_least_one(&choice, &none, &config(DUAL), view);
        found.map(|found| (found.addr, found.may_improve))
    };
    let mut view = view();
    view.default_routes[1] = default_route(2, 1024, "fe80::99");
    let before = host_in(&view, DUAL);
    let both = before.addr;
    let alone = |family: Family| Dual::from_fn(|f| both.get(f).copied().filter(|_| f == family));
    assert_eq!(at_least_one(&view, &[]), Ok((both, false)));
    let whole = view.interfaces[1].addrs.clone();
    for family in Family::ALL {
        let other = if family == Family::V4 {
            Family::V6
        } else {
            Family::V4
        };
        let keep = |a: &Address| Family::of_net(&a.net) == other;
        view.interfaces[1].addrs = whole.iter().filter(|a| keep(a)).copied().collect();
        for args in [&[][..], &["-iface=eth0"]] {
            let found = at_least_one(&view, args);
            assert_eq!(found, Ok((alone(other), true)), "{family} {args:?}");
        }
        // Later the former address is kept, and what is wrong is known.
        let found = again(
            &before,
            &choice(&[]),
            &Dual::default(),
            &config(DUAL),
            &view,
        )
        .unwrap();
        assert_eq!(found.addr, both);
        assert_eq!(found.lost.clone().map(|lost| lost.family), Some(family));
        // The working family is followed all the same.
        let renumbered = if other == Family::V4 {
            "192.168.0.99/24"
        } else {
            "fd00:78::99/64"
        };
        view.interfaces[1].addrs = iface("eth0", 2, &[renumbered]).addrs;
        let found = again(
            &before,
            &choice(&[]),
            &Dual::default(),
            &config(DUAL),
            &view,
        )
        .unwrap();
        let new: ipnet::IpNet = renumbered.parse().unwrap();
        assert_eq!(found.addr.get(other), Some(&new.addr()));
        assert_eq!(found.addr.get(family), both.get(family));
    }
    view.interfaces[1].addrs.clear();
    assert!(at_least_one(&view, &[]).is_err());
    assert!(again_in(&view, &before, &[], DUAL).is_err());
}

#[test]
fn an_address_that_stops_working_is_given_up() {
    let mut view = view();
    let before = host_in(&view, V4);
    let (used, spare) = (before.addr.v4.unwrap(), "192.168.0.4".parse().unwrap());
    let set = |view: &mut View, state| view.interfaces[1].addrs[1].state = state;
    set(&mut view, AddressState::Deprecated);
    assert_eq!(
        again_in(&view, &before, &[], V4).unwrap().v4,
        Some(used),
        "no other"
    );
    let other = Address {
        net: "192.168.0.4/24".parse().unwrap(),
        state: AddressState::Valid,
        ..view.interfaces[1].addrs[1]
    };
    view.interfaces[1].addrs.push(other);
    assert_eq!(again_in(&view, &before, &[], V4).unwrap().v4, Some(spare));
    let named = [format!("-iface={used}")];
    let named: Vec<&str> = named.iter().map(String::as_str).collect();
    assert_eq!(
        again_in(&view, &before, &named, V4).unwrap().v4,
        Some(used),
        "named"
    );
    set(&mut view, AddressState::Duplicate);
    assert_eq!(
        again_in(&view, &before, &named, V4).unwrap().v4,
        Some(spare)
    );
}

#[test]
fn what_cannot_be_found_is_named() {
    let error = chosen(&["-iface=nope", "-iface-regex=^zz"], V4).unwrap_err();
    assert!(
        error.contains("-iface nope") && error.contains("-iface-regex ^zz"),
        "{error}"
    );
    let mut view = view();
    view.default_routes.clear();
    let none = choose(
        &IfaceChoice::default(),
        &Dual::default(),
        &config(V4),
        &view,
    );
    assert_eq!(none.unwrap_err(), NoIface::NoDefaultRoute(Family::V4));
}

/// A router that speaks BGP: its links have no address, the loopback has the host's.
fn bgp_view() -> View {
    let mut view = view();
    view.interfaces[0] = Interface {
        loopback: true,
        mtu: 65_536,
        ..iface(
            "lo",
            1,
            &["127.0.0.1/8", "10.0.0.1/32", "::1/128", "fd99::1/128"],
        )
    };
    view.interfaces[1] = iface("eth0", 2, &["fe80::1/64"]);
    view.interfaces[2] = iface("eth1", 3, &["169.254.1.1/16", "fe80::2/64"]);
    let route = |index, family| DefaultRoute {
        family,
        ..default_route(index, 20, "fe80::99")
    };
    view.default_routes = vec![
        route(2, Family::V4),
        route(3, Family::V4),
        route(2, Family::V6),
    ];
    view
}

#[test]
fn an_address_of_the_loopback_is_the_whole_hosts() {
    let mut view = bgp_view();
    for args in [
        &[][..],
        &["-public-ip=10.0.0.1"],
        &["-iface=10.0.0.1"],
        &["-iface=eth0"],
        &["-iface-regex=^eth"],
    ] {
        assert_eq!(
            chosen_in(&view, args, V4),
            v4("eth0", "10.0.0.1"),
            "{args:?}"
        );
    }
    assert_eq!(chosen_in(&view, &[], V6), v6("eth0", "fd99::1"));
    assert_eq!(
        chosen_in(&view, &["-iface=eth1"], V4),
        v4("eth1", "10.0.0.1"),
        "before 169.254"
    );
    // Named, it is taken; its MTU says nothing of the links.
    assert_eq!(chosen_in(&view, &["-iface=lo"], V4), v4("lo", "10.0.0.1"));
    view.interfaces[1].mtu = 9000;
    let host = |args: &[&str], view: &View| {
        let none = Dual::default();
        let found = choose(&choice(args), &none, &config(V4), view).unwrap();
        found.host(&none, LinkRoutes::default())
    };
    assert_eq!(host(&["-iface=lo"], &view).mtu, 1500);
    // It is kept, and one that moves is followed.
    let before = host(&[], &view);
    assert_eq!(again_in(&view, &before, &[], V4), Ok(before.addr));
    view.interfaces[0].addrs[1].net = "10.0.0.2/32".parse().unwrap();
    let moved = again_in(&view, &before, &[], V4).unwrap();
    assert_eq!(moved.v4, Some("10.0.0.2".parse().unwrap()));
    // A virtual address beside the interface's own is a service's, unless the route prefers it.
    view.interfaces[1] = iface("eth0", 2, &["192.168.0.5/24"]);
    assert_eq!(
        chosen_in(&view, &["-iface=eth0"], V4),
        v4("eth0", "192.168.0.5")
    );
    view.default_routes[0].source = Some("10.0.0.2".parse().unwrap());
    assert_eq!(
        chosen_in(&view, &["-iface=eth0"], V4),
        v4("eth0", "10.0.0.2")
    );
    // Without any default route, too.
    view.default_routes.clear();
    assert_eq!(
        chosen_in(&view, &["-public-ip=10.0.0.2"], V4),
        v4("lo", "10.0.0.2")
    );
    assert!(chosen_in(&view, &["-public-ip=127.0.0.1"], V4).is_err());
}

#[test]
fn the_address_that_all_nodes_can_reach_may_be_this_hosts() {
    let mut view = view();
    view.reach = Some(Path {
        iface: "lo".parse().unwrap(),
        source: Some("10.9.0.6".parse().unwrap()),
        via: None,
    });
    let reach = |view: &View, ip: &str| chosen_in(view, &[&format!("-iface-can-reach={ip}")], V4);
    assert_eq!(reach(&view, "10.9.0.6"), v4("eth1", "10.9.0.6"));
    view.interfaces = bgp_view().interfaces;
    assert_eq!(reach(&view, "10.0.0.1"), v4("eth0", "10.0.0.1"));
}

#[test]
fn a_next_hop_whose_link_is_down_does_not_hide_the_others() {
    let mut view = view();
    view.default_routes = vec![
        default_route(2, 0, "192.168.0.254"),
        default_route(3, 0, "10.9.0.254"),
    ];
    assert_eq!(chosen_in(&view, &[], V4), v4("eth0", "192.168.0.5"));
    view.interfaces[1].up = false;
    assert_eq!(chosen_in(&view, &[], V4), v4("eth1", "10.9.0.5"));
}

#[test]
fn an_interface_may_be_named_by_another_name() {
    let mut view = view();
    view.interfaces[2].alt_names = vec!["enp7s0f1np1-the-long-one".into(), "eth0".into()];
    let long = ["-iface=enp7s0f1np1-the-long-one"];
    assert_eq!(chosen_in(&view, &long, V4), v4("eth1", "10.9.0.5"));
    assert_eq!(
        chosen_in(&view, &["-iface=eth0"], V4),
        v4("eth0", "192.168.0.5")
    );
    let alias = chosen_in(&view, &["-iface=eth0:1"], V4).unwrap_err();
    assert!(alias.contains("eth0:1 is an alias of eth0"), "{alias}");
}

#[test]
fn a_regular_expression_means_bridges_of_containers_last() {
    let mut view = view();
    let mut bridges = Vec::new();
    for (i, name) in ["docker0", "br-0123456789ab", "virbr0"]
        .into_iter()
        .enumerate()
    {
        bridges.push(iface(name, 10 + i as u32, &["172.17.0.1/16"]));
    }
    view.interfaces.splice(1..1, bridges);
    assert_eq!(
        chosen_in(&view, &["-iface-regex=.*"], V4),
        v4("eth0", "192.168.0.5")
    );
    assert_eq!(
        chosen_in(&view, &["-iface-regex=^172"], V4),
        v4("docker0", "172.17.0.1")
    );
    view.interfaces
        .iter_mut()
        .find(|i| i.name.as_str() == "eth0")
        .unwrap()
        .running = false;
    assert_eq!(
        chosen_in(&view, &["-iface-regex=.*"], V4),
        v4("eth1", "10.9.0.5")
    );
}

#[test]
fn an_interface_with_another_name_is_the_same() {
    let mut view = view();
    let before = host_in(&view, V4);
    view.interfaces[1].name = "lan0".parse().unwrap();
    let none = Dual::default();
    let renamed = |view: &View| {
        let found = again(&before, &IfaceChoice::default(), &none, &config(V4), view);
        found
            .map(|found| found.iface.name.to_string())
            .map_err(|e| e.to_string())
    };
    assert_eq!(renamed(&view), Ok("lan0".into()));
    // Another one that got its number is not.
    view.interfaces[1].addrs.clear();
    assert_eq!(renamed(&view), Err("interface eth0 is gone".into()));
}
