//! What each backend writes for a node and two peers, as the commands that would do the same, in
//! `golden/*.txt`. After a change that is meant: `UPDATE_GOLDEN=1 cargo test -p backend`, and read
//! the difference that git shows.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

mod nodes;

use std::fmt::Write;
use std::path::Path;

use backend::Identity;
use model::object::LinkKind;
use model::{Family, Object, Op, WgSecret};
use nodes::{config, host, identity, identity_of, lease};

/// Name, and the options of `Backend`.
const BACKENDS: [(&str, &str); 16] = [
    ("vxlan", r#""Type":"vxlan""#),
    ("vxlan-direct", r#""Type":"vxlan","DirectRouting":true"#),
    (
        "vxlan-options",
        r#""Type":"vxlan","VNI":4096,"Port":4789,"GBP":true,"Learning":true,"MTU":1400,"TxChecksumOffload":"off","Foo":1"#,
    ),
    ("host-gw", r#""Type":"host-gw""#),
    ("ipip", r#""Type":"ipip""#),
    (
        "ipip-direct",
        r#""Type":"ipip","DirectRouting":true,"MTU":1400"#,
    ),
    ("wireguard", r#""Type":"wireguard""#),
    (
        "wireguard-auto",
        r#""Type":"wireguard","Mode":"auto","ListenPort":4500,"MTU":1400,"PSK":"CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=","PersistentKeepaliveInterval":25"#,
    ),
    (
        "wireguard-kernel",
        r#""Type":"wireguard","PersistentKeepaliveInterval":25"#,
    ),
    (
        "ipsec",
        r#""Type":"ipsec","PSK":"012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345""#,
    ),
    (
        "ipsec-options",
        r#""Type":"ipsec","UDPEncap":true,"ESPProposal":"aes256gcm16-ecp384","PSK":"012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345""#,
    ),
    ("udp", r#""Type":"udp""#),
    ("udp-options", r#""Type":"udp","Port":9000,"MTU":1400"#),
    ("alloc", r#""Type":"alloc""#),
    (
        "extension",
        r#""Type":"extension","PreStartupCommand":"/opt/net pre","PostStartupCommand":"/opt/net post $SUBNET","SubnetAddCommand":"/opt/net  add","SubnetRemoveCommand":"/opt/net remove","CommandTimeout":10"#,
    ),
    // As in upstream's manual, for a shell.
    (
        "extension-shell",
        r#""Type":"extension","SubnetAddCommand":"export A=1; ip route add \"$SUBNET\" via \"$PUBLIC_IP\" | cat","SubnetRemoveCommand":"  ""#,
    ),
];

const FAMILIES: [(&str, &[Family]); 3] = [
    ("v4", &[Family::V4]),
    ("v6", &[Family::V6]),
    ("dual", &[Family::V4, Family::V6]),
];

#[test]
fn plans_are_as_written_down() {
    let mut differences = String::new();
    for (name, options) in BACKENDS {
        for (suffix, families) in FAMILIES {
            let file = format!("{name}-{suffix}.txt");
            let path = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/golden")
                .join(&file);
            let plan = plan(options, families, name.ends_with("-kernel"));
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(&path, &plan).unwrap();
            }
            let golden = std::fs::read_to_string(&path).unwrap_or_default();
            if golden != plan {
                writeln!(differences, "{file}:\n{}", difference(&golden, &plan)).unwrap();
            }
        }
    }
    assert!(
        differences.is_empty(),
        "plans changed (- was, + is; UPDATE_GOLDEN=1 accepts):\n{differences}"
    );
}

/// The plan of node 1 with two peers: node 2 on its link, node 3 behind a router.
fn plan(options: &str, families: &[Family], kernel: bool) -> String {
    let (config, host) = (config(options, families), host(1, families));
    let mut identity = identity_of(options, 1);
    if let Identity::WgKey {
        preshared,
        in_kernel,
        ..
    } = &mut identity
    {
        *in_kernel = kernel;
        *preshared = kernel.then_some(WgSecret([9; 32]));
    }
    let mut backend = match backend::new(&config, &host, &identity, None) {
        Ok(backend) => backend,
        Err(error) => return format!("refused: {error}\n"),
    };
    backend.set_own(&nodes::key(1, families));
    let mut text = format!("# {} on {}\n", backend.kind(), host.iface);
    for warning in backend.warnings() {
        writeln!(text, "warning: {warning}").unwrap();
    }
    for (family, error) in backend.missing() {
        writeln!(text, "no {family}: {error}").unwrap();
    }
    writeln!(text, "FLANNEL_MTU={}", backend.mtu()).unwrap();
    writeln!(text, "lease: {}", backend.publish().to_json()).unwrap();
    writeln!(text, "\n# node").unwrap();
    let objects = backend.node(&lease(1, options, families), &host);
    let links = objects.iter().filter_map(|object| match object {
        Object::Link(name, link) => Some((*name, link.kind.name().to_owned())),
        _ => None,
    });
    let owned = backend.devices().into_iter();
    let owned = owned.map(|own| (own.name, own.kind.to_owned()));
    assert_eq!(links.collect::<Vec<_>>(), owned.collect::<Vec<_>>());
    for object in objects {
        writeln!(text, "{}", Op::Put(object)).unwrap();
    }
    for n in [2, 3] {
        let peer = lease(n, options, families);
        writeln!(text, "\n# peer {}", peer.key).unwrap();
        let plan = backend.peer(&peer, &host);
        for object in plan.objects {
            writeln!(text, "{}", Op::Put(object)).unwrap();
        }
        for fault in plan.faults {
            writeln!(text, "refused: lease {}: {fault}", peer.key).unwrap();
        }
    }
    text
}

/// The lines that differ, with those around them: a longest common subsequence.
fn difference(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let mut common = vec![vec![0u32; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = match old[i] == new[j] {
                true => common[i + 1][j + 1] + 1,
                false => common[i + 1][j].max(common[i][j + 1]),
            };
        }
    }
    let (mut i, mut j, mut text) = (0, 0, String::new());
    while i < old.len() || j < new.len() {
        let (mark, line) = if i < old.len() && j < new.len() && old[i] == new[j] {
            (i, j) = (i + 1, j + 1);
            (' ', old[i - 1])
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            i += 1;
            ('-', old[i - 1])
        } else {
            j += 1;
            ('+', new[j - 1])
        };
        writeln!(text, "{mark} {line}").unwrap();
    }
    text
}

#[test]
fn checksum_offload_follows_option_and_underlay() {
    let wanted = |option: &str, kind: &str| {
        let options = format!(r#""Type":"vxlan"{option}"#);
        let (config, mut host) = (config(&options, FAMILIES[2].1), host(1, FAMILIES[2].1));
        host.kind = kind.to_owned();
        let backend = backend::new(&config, &host, &identity(1), None).unwrap();
        let objects = backend.node(&lease(1, &options, FAMILIES[2].1), &host);
        let links = objects.into_iter().filter_map(|object| match object {
            Object::Link(_, link) => match link.kind {
                LinkKind::Vxlan(vxlan) => Some(vxlan.tx_checksum),
                other => panic!("{other:?}"),
            },
            _ => None,
        });
        let links: Vec<Option<bool>> = links.collect();
        assert!(links.len() == 2 && links[0] == links[1], "{links:?}");
        links[0]
    };
    let auto = r#","TxChecksumOffload":"auto""#;
    for option in ["", auto] {
        assert_eq!(wanted(option, ""), None);
        assert_eq!(wanted(option, "vlan"), None);
        assert_eq!(wanted(option, "wireguard"), Some(false));
    }
    for kind in ["", "wireguard"] {
        assert_eq!(wanted(r#","TxChecksumOffload":"on""#, kind), Some(true));
        assert_eq!(wanted(r#","txchecksumoffload":"off""#, kind), Some(false));
    }
}

#[test]
fn differences_are_readable() {
    assert_eq!(
        difference("a\nb\nc\n", "a\nx\nc\nd\n"),
        "  a\n- b\n+ x\n  c\n+ d\n"
    );
}
