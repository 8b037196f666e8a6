//! Whatever `ip`, `bridge` and `ethtool` can set on flannel's objects is put right, or left alone as
//! docs/repair.md says; packets pass in either case. The table here is the table there.

use std::path::Path;

use lab::{Lab, Node, StoreKind, holds_for, wait_for};
use model::Family::{V4, V6};
use std::time::Duration;

use crate::scene::{self, Peer, mesh, run};

/// After this a setting counts as left alone.
const LATE: Duration = Duration::from_secs(4);

/// What becomes of a setting that somebody makes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Repaired,
    /// It stays, and packets pass. The script takes it back.
    Stays(&'static str),
}
use Then::{Repaired, Stays};

/// One setting: its name in the documentation, and the command lines that make it. `GW`, `NET`, `MAC`, `IP`
/// and `ID` are the other node's gateway, subnet, tunnel MAC, underlay address and next-hop object; `OWN` is
/// this node's address on the device. A `6` after them is the IPv6 one's.
const SETTINGS: &[(&str, &str, Then)] = &[
    // ip link
    ("link down", "ip link set flannel.1 down", Repaired),
    ("link mtu", "ip link set flannel.1 mtu 1200", Repaired),
    (
        "link address",
        "ip link set flannel.1 address 02:00:00:00:00:99",
        Repaired,
    ),
    ("link alias", "ip link set flannel.1 alias mine", Repaired),
    (
        "link master",
        "ip link add brx up type bridge\nip link set flannel.1 master brx",
        Repaired,
    ),
    (
        "link vrf",
        "ip link add vrfx up type vrf table 77\nip link set flannel.1 master vrfx",
        Repaired,
    ),
    (
        "link protodown",
        "ip link set flannel.1 protodown on",
        Repaired,
    ),
    ("link name", "ip link set flannel.1 name other0", Repaired),
    ("link delete", "ip link del flannel.1", Repaired),
    (
        "link type vxlan ttl",
        "ip link set flannel.1 type vxlan ttl 1",
        Repaired,
    ),
    (
        "link type vxlan tos",
        "ip link set flannel.1 type vxlan tos 8",
        Repaired,
    ),
    (
        "link type vxlan df",
        "ip link set flannel.1 type vxlan df set",
        Repaired,
    ),
    (
        "link type vxlan learning",
        "ip link set flannel.1 type vxlan learning",
        Repaired,
    ),
    (
        "link type vxlan remote",
        "ip link set flannel.1 type vxlan remote 192.168.78.77",
        Repaired,
    ),
    (
        "link type vxlan local",
        "ip link set flannel.1 type vxlan local 192.168.78.77",
        Repaired,
    ),
    (
        "link type vxlan ageing",
        "ip link set flannel.1 type vxlan ageing 77",
        Stays("ip link set flannel.1 type vxlan ageing 300"),
    ),
    (
        "link arp",
        "ip link set flannel.1 arp off",
        Stays("ip link set flannel.1 arp on"),
    ),
    (
        "link multicast",
        "ip link set flannel.1 multicast off",
        Stays("ip link set flannel.1 multicast on"),
    ),
    (
        "link allmulticast",
        "ip link set flannel.1 allmulticast on",
        Stays("ip link set flannel.1 allmulticast off"),
    ),
    (
        "link promisc",
        "ip link set flannel.1 promisc on",
        Stays("ip link set flannel.1 promisc off"),
    ),
    (
        "link dynamic",
        "ip link set flannel.1 dynamic on",
        Stays("ip link set flannel.1 dynamic off"),
    ),
    (
        "link trailers",
        "ip link set flannel.1 trailers off",
        Stays("ip link set flannel.1 trailers on"),
    ),
    (
        "link txqueuelen",
        "ip link set flannel.1 txqueuelen 77",
        Stays("ip link set flannel.1 txqueuelen 1000"),
    ),
    (
        "link group",
        "ip link set flannel.1 group 77",
        Stays("ip link set flannel.1 group 0"),
    ),
    (
        "link broadcast",
        "ip link set flannel.1 broadcast ff:ff:ff:ff:ff:fe",
        Stays("ip link set flannel.1 broadcast ff:ff:ff:ff:ff:ff"),
    ),
    (
        "link altname",
        "ip link property add dev flannel.1 altname tunnel",
        Stays("ip link property del dev flannel.1 altname tunnel"),
    ),
    (
        "link gso_max_size",
        "ip link set flannel.1 gso_max_size 30000",
        Stays("ip link set flannel.1 gso_max_size 65536"),
    ),
    (
        "link addrgenmode",
        "ip link set flannel.1 addrgenmode eui64",
        Stays("ip link set flannel.1 addrgenmode none"),
    ),
    // ip address
    ("address del", "ip addr del OWN/32 dev flannel.1", Repaired),
    (
        "address add",
        "ip addr add 192.0.2.1/24 dev flannel.1",
        Repaired,
    ),
    (
        "address del (IPv6)",
        "ip addr del OWN6/128 dev flannel-v6.1",
        Repaired,
    ),
    (
        "address valid_lft",
        "ip addr change OWN/32 dev flannel.1 valid_lft 3 preferred_lft 1",
        Repaired,
    ),
    (
        "address metric",
        "ip addr change OWN/32 dev flannel.1 metric 77",
        Stays("ip addr change OWN/32 dev flannel.1 metric 0"),
    ),
    // ip neigh
    ("neigh del", "ip neigh del GW dev flannel.1", Repaired),
    (
        "neigh lladdr",
        "ip neigh replace GW lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
        Repaired,
    ),
    (
        "neigh nud stale",
        "ip neigh replace GW lladdr 02:00:00:00:00:99 dev flannel.1 nud stale",
        Repaired,
    ),
    (
        "neigh nud noarp",
        "ip neigh replace GW lladdr 02:00:00:00:00:99 dev flannel.1 nud noarp",
        Repaired,
    ),
    (
        "neigh nud reachable",
        "ip neigh replace GW lladdr 02:00:00:00:00:99 dev flannel.1 nud reachable",
        Repaired,
    ),
    (
        "neigh add",
        "ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
        Repaired,
    ),
    (
        "neigh lladdr (IPv6)",
        "ip neigh replace GW6 lladdr 02:00:00:00:00:99 dev flannel-v6.1 nud permanent",
        Repaired,
    ),
    (
        "neigh nud noarp (IPv6)",
        "ip neigh replace GW6 lladdr 02:00:00:00:00:99 dev flannel-v6.1 nud noarp",
        Repaired,
    ),
    (
        "neigh router",
        "ip neigh replace GW lladdr MAC dev flannel.1 nud permanent router",
        Stays("ip neigh replace GW lladdr MAC dev flannel.1 nud permanent"),
    ),
    (
        "neigh proxy",
        "ip neigh add proxy 192.0.2.9 dev flannel.1",
        Stays("ip neigh del proxy 192.0.2.9 dev flannel.1"),
    ),
    // bridge fdb
    (
        "fdb del",
        "bridge fdb del MAC dev flannel.1 dst IP self",
        Repaired,
    ),
    (
        "fdb dst",
        "bridge fdb replace MAC dev flannel.1 dst 192.168.78.77 self permanent",
        Repaired,
    ),
    (
        "fdb port",
        "bridge fdb replace MAC dev flannel.1 dst IP port 9999 self permanent",
        Repaired,
    ),
    (
        "fdb vni",
        "bridge fdb replace MAC dev flannel.1 dst IP vni 77 self permanent",
        Repaired,
    ),
    (
        "fdb via",
        "bridge fdb replace MAC dev flannel.1 dst IP via lo self permanent",
        Repaired,
    ),
    (
        "fdb dynamic",
        "bridge fdb replace MAC dev flannel.1 dst 192.168.78.77 self dynamic",
        Repaired,
    ),
    (
        "fdb add",
        "bridge fdb add 02:00:00:00:00:98 dev flannel.1 dst 192.168.78.77 self permanent",
        Repaired,
    ),
    (
        "fdb default",
        "bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.168.78.77 self permanent",
        Stays("bridge fdb del 00:00:00:00:00:00 dev flannel.1 dst 192.168.78.77 self"),
    ),
    // ip nexthop
    ("nexthop del", "ip nexthop del id ID", Repaired),
    (
        "nexthop via",
        "ip nexthop replace id ID via 192.0.2.9 dev flannel.1 onlink",
        Repaired,
    ),
    (
        "nexthop dev",
        "ip nexthop replace id ID via 192.168.78.77 dev eth0",
        Repaired,
    ),
    (
        "nexthop blackhole",
        "ip nexthop replace id ID blackhole",
        Repaired,
    ),
    (
        "nexthop protocol",
        "ip nexthop replace id ID via GW dev flannel.1 onlink protocol 3",
        Repaired,
    ),
    // ip route
    ("route del", "ip route del NET", Repaired),
    (
        "route via",
        "ip route replace NET via 192.168.78.77 dev eth0",
        Repaired,
    ),
    (
        "route blackhole",
        "ip route replace blackhole NET",
        Repaired,
    ),
    (
        "route unreachable",
        "ip route replace unreachable NET",
        Repaired,
    ),
    ("route prohibit", "ip route replace prohibit NET", Repaired),
    (
        "route mtu",
        "ip route replace NET via GW dev flannel.1 onlink proto 241 mtu 600",
        Repaired,
    ),
    (
        "route src",
        "ip route replace NET via GW dev flannel.1 onlink proto 241 src 192.168.78.1",
        Repaired,
    ),
    (
        "route scope",
        "ip route replace NET dev flannel.1 scope link proto 241",
        Repaired,
    ),
    (
        "route realm",
        "ip route replace NET via GW dev flannel.1 onlink proto 241 realm 7",
        Repaired,
    ),
    (
        "route tos",
        "ip route add NET tos 8 via 192.168.78.77 dev flannel.1 onlink",
        Repaired,
    ),
    (
        "route metric",
        "ip route add NET metric 7 via 192.168.78.77 dev flannel.1 onlink",
        Repaired,
    ),
    (
        "route protocol",
        "ip route replace NET nhid ID proto static",
        Repaired,
    ),
    (
        "route multipath",
        "ip route replace NET proto 241 nexthop via GW dev flannel.1 onlink nexthop via 192.168.78.77 dev eth0",
        Repaired,
    ),
    ("route del (IPv6)", "ip route del NET6", Repaired),
    (
        "route unreachable (IPv6)",
        "ip route replace unreachable NET6 metric 1024",
        Repaired,
    ),
    (
        "route pref (IPv6)",
        "ip route replace NET6 via GW6 dev flannel-v6.1 onlink proto 241 pref high",
        Repaired,
    ),
    (
        "route expires (IPv6)",
        "ip route replace NET6 via GW6 dev flannel-v6.1 onlink proto 241 expires 60",
        Repaired,
    ),
    (
        "route table",
        "ip route add 192.0.2.0/24 dev flannel.1 table 77",
        Stays("ip route del 192.0.2.0/24 table 77"),
    ),
    // ethtool -K
    (
        "ethtool tso",
        "ethtool -K flannel.1 tso off",
        Stays("ethtool -K flannel.1 tso on"),
    ),
    (
        "ethtool gro",
        "ethtool -K flannel.1 gro off",
        Stays("ethtool -K flannel.1 gro on"),
    ),
];

/// What the tools show of flannel's objects, without what changes by itself.
fn shown(node: &Node) -> Vec<String> {
    let mut lines = Vec::new();
    for command in [
        "ip -d -o link show type vxlan",
        "ip -d -o addr show dev flannel.1",
        "ip -d -o addr show dev flannel-v6.1",
        "ip -d neigh show nud permanent",
        "ip neigh show proxy",
        "bridge -d fdb show",
        "ip -d nexthop show",
        "ip -d -4 route show table all type unicast",
        "ip -d -4 route show type blackhole",
        "ip -d -4 route show type unreachable",
        "ip -d -4 route show type prohibit",
        "ip -d -6 route show table all type unicast",
        "ip -d -6 route show type unreachable",
        "ethtool -k flannel.1",
    ] {
        let text = node.exec(command.split(' ')).unwrap_or_default();
        let about = |line: &&str| {
            command.starts_with("ethtool")
                || line.contains("172.30.")
                || line.contains("fd00:30:")
                || line.contains("flannel")
                || line.contains("192.0.2.")
                || line.contains("vxlan id 1 ")
        };
        let lines_of = text.lines().filter(about).filter(|line| {
            // The kernel's own, and what it learns.
            !line.contains("fe80:")
                && !line.contains("ff00::")
                && !line.contains(" extern_learn")
                && !line.contains("33:33:")
                && !line.contains("01:00:5e:")
        });
        for line in lines_of {
            // The number of a device that was made again is another one.
            let line = match line.split_once(": ") {
                Some((number, rest)) if number.bytes().all(|b| b.is_ascii_digit()) => rest,
                _ => line,
            };
            // A tunnel's carrier is unknown until somebody touches it.
            let line = line.replace(" state UP ", " state UNKNOWN ");
            lines.push(without_ids(&line));
        }
    }
    lines.sort();
    lines
}

/// The line without the number of its next-hop object: one that somebody else used meanwhile is not used
/// again.
fn without_ids(line: &str) -> String {
    let mut after_id = false;
    let words = line.split_whitespace().map(|word| {
        let word = if after_id { "N" } else { word };
        after_id = word == "nhid" || word == "id";
        word
    });
    words.collect::<Vec<_>>().join(" ")
}

fn differ(before: &[String], after: &[String]) -> String {
    let less = before
        .iter()
        .filter(|line| !after.contains(line))
        .map(|line| format!("- {line}"));
    let more = after
        .iter()
        .filter(|line| !before.contains(line))
        .map(|line| format!("+ {line}"));
    less.chain(more).collect::<Vec<_>>().join("\n")
}

fn next_hop(node: &Node, gateway: &str) -> String {
    let text = node.exec(["ip", "nexthop", "show"]).unwrap();
    let line = text
        .lines()
        .find(|line| line.contains(&format!("via {gateway} ")));
    let id = line.and_then(|line| line.split(' ').nth(1));
    id.unwrap_or("0").to_owned()
}

/// Fills in the other node's values.
fn filled(text: &str, lab: &Lab) -> String {
    let node = lab.node(1);
    let (peer, peer6) = (Peer::of(lab.node(2), V4), Peer::of(lab.node(2), V6));
    let (own, own6) = (Peer::of(node, V4), Peer::of(node, V6));
    let values = [
        ("GW6", peer6.gateway.clone()),
        ("NET6", peer6.subnet.to_string()),
        ("OWN6", own6.gateway),
        ("GW", peer.gateway.clone()),
        ("NET", peer.subnet.to_string()),
        ("MAC", peer.mac),
        ("IP", peer.underlay),
        ("OWN", own.gateway),
        ("ID", next_hop(node, &peer.gateway)),
    ];
    let mut words = Vec::new();
    for line in text.lines() {
        let line = line.split(' ').map(|word| {
            let (name, rest) = word
                .split_once('/')
                .map_or((word, None), |(a, b)| (a, Some(b)));
            let value = values.iter().find(|(key, _)| *key == name);
            let value = value.map_or(name, |(_, value)| value);
            rest.map_or(value.to_owned(), |rest| format!("{value}/{rest}"))
        });
        words.push(line.collect::<Vec<_>>().join(" "));
    }
    words.join("\n")
}

#[test]
fn every_setting_is_repaired_or_left_alone_as_documented() {
    let lab = scene::lab()
        .nodes(2)
        .dual()
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    lab.start().unwrap();
    mesh(&lab);
    let node = lab.node(1);
    let mut wrong = Vec::new();
    let before = shown(node);
    for (name, script, then) in SETTINGS {
        let script = filled(script, &lab);
        if let Err(error) = run(node, &script) {
            if error.to_string().contains("Unknown device type") {
                eprintln!("{name}: this kernel cannot");
                continue;
            }
            eprintln!("{name}: {script}: {error}");
            wrong.push(format!("{name}: {script}: {error}"));
            continue;
        }
        let differs = || match differ(&before, &shown(node)) {
            text if text.is_empty() => Err("as before".to_owned()),
            _ => Ok(()),
        };
        let as_before = || match differ(&before, &shown(node)) {
            text if text.is_empty() => Ok(()),
            text => Err(text),
        };
        let seen = match then {
            Repaired => wait_for("repaired", LATE, as_before),
            Stays(undo) => holds_for("it stays", Duration::from_millis(200), differs)
                .and_then(|()| lab.must_ping())
                .and_then(|()| run(node, &filled(undo, &lab)))
                .and_then(|()| wait_for("undone", LATE, as_before)),
        };
        if let Err(error) = seen.and_then(|()| wait_for("packets pass", LATE, || lab.must_ping())) {
            eprintln!("{name}, {then:?}: {error}");
            wrong.push(format!("{name}, {then:?}: {error}"));
            // The next setting begins from a good state.
            let _ = run(node, "ip link del other0");
            let _ = run(node, "ip link del flannel.1");
            let _ = wait_for("as before", LATE, as_before);
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\n\n{}",
        wrong.join("\n\n"),
        node.flanneld().log_tail(20)
    );
}

#[test]
fn the_documentation_has_the_same_table() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/repair.md");
    let page = std::fs::read_to_string(page).unwrap();
    for (name, _, then) in SETTINGS {
        let word = match then {
            Repaired => "repaired",
            Stays(_) => "left alone",
        };
        let row = format!("| `{name}` | {word} |");
        assert!(page.contains(&row), "docs/repair.md lacks the row {row}");
    }
}
