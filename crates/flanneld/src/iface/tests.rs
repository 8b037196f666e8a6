//! Tests of `iface`.

use super::*;

fn iface(name: &str, index: u32, nets: &[&str]) -> Interface {
    let address = |net: &&str| Address {
        net: net.parse().unwrap(),
        link_local: false,
        temporary: net.starts_with("fd00:77"),
        unusable: false,
    };
    Interface {
        name: name.parse().unwrap(),
        index,
        mtu: 1500,
        kind: String::new(),
        up: true,
        running: true,
        loopback: false,
        addrs: nets.iter().map(address).collect(),
        on_link: nets.iter().map(|net| net.parse().unwrap()).collect(),
    }
}

fn view() -> View {
    View {
        interfaces: vec![
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
        default: Dual {
            v4: Some("eth0".parse().unwrap()),
            v6: Some("eth1".parse().unwrap()),
        },
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
    let given = crate::flags::parse(args.iter().map(|s| (*s).to_owned()), |_| None).unwrap();
    let options = crate::options::Options::from_flags(&given).unwrap();
    let host = choose(&options.iface, &options.public_ip, &config(json), &view())
        .map_err(|e| e.to_string())?;
    Ok((
        host.iface.to_string(),
        host.public_ip.map(|_, ip| ip.to_string()),
    ))
}

const V4: &str = r#"{"Network":"10.244.0.0/16"}"#;
const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd10::/48"}"#;

#[test]
fn flags_choose_in_their_order() {
    let v4 = |ip: &str| Dual {
        v4: Some(ip.to_owned()),
        v6: None,
    };
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
    ] {
        assert_eq!(chosen(args, V4), Ok((name.to_owned(), v4(ip))), "{args:?}");
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
fn the_chosen_interface_stays_and_its_address_too() {
    let mut view = view();
    let before = choose(
        &IfaceChoice::default(),
        &Dual::default(),
        &config(V4),
        &view,
    )
    .unwrap();
    view.default = Dual::default();
    let other = Address {
        net: "192.168.0.4/24".parse().unwrap(),
        ..view.interfaces[0].addrs[1]
    };
    view.interfaces[0].addrs.insert(0, other);
    assert_eq!(
        again(&before, &Dual::default(), &config(V4), &view)
            .unwrap()
            .addr,
        before.addr
    );
    view.interfaces[0]
        .addrs
        .retain(|a| a.net.addr() != before.addr.v4.unwrap());
    let moved = again(&before, &Dual::default(), &config(V4), &view).unwrap();
    assert_eq!(moved.public_ip.v4, Some("192.168.0.4".parse().unwrap()));
    view.interfaces.remove(0);
    let gone = again(&before, &Dual::default(), &config(V4), &view).unwrap_err();
    assert_eq!(gone.to_string(), "interface eth0 is gone");
}

#[test]
fn what_cannot_be_found_is_named() {
    let error = chosen(&["-iface=nope", "-iface-regex=^zz"], V4).unwrap_err();
    assert!(
        error.contains("-iface nope") && error.contains("-iface-regex ^zz"),
        "{error}"
    );
    let mut view = view();
    view.default = Dual::default();
    let none = choose(
        &IfaceChoice::default(),
        &Dual::default(),
        &config(V4),
        &view,
    )
    .unwrap_err();
    assert_eq!(none, NoIface::NoDefaultRoute(Family::V4));
}
