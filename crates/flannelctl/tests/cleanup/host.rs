//! A node with much on it that is not flannel's, and a witness who remembers all of it.

use std::time::Duration;

use lab::Node;
use serde_json::Value;

/// Long enough for anything that happens at all, also on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

const CTL: &str = env!("CARGO_BIN_EXE_flannelctl");

/// Where the tests' nodes keep lists of networks: `/etc` is the machine's own.
const CONF_DIR: &str = "--cni-conf-dir=/run/cni-conf";

/// Which programs the host's other rules are written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    Legacy,
    Nft,
}

impl Rules {
    fn suffix(self) -> &'static str {
        match self {
            Rules::Legacy => "legacy",
            Rules::Nft => "nft",
        }
    }
}

/// Devices, routes, rules and files of others, many of which look a little like flannel's.
const FOREIGN: &str = r#"
ip link add vxlan77 type vxlan id 77 local $IP dev eth0 dstport 4789 nolearning
ip link set vxlan77 up
ip addr add 10.77.0.1/24 dev vxlan77
bridge fdb append 02:00:00:00:00:77 dev vxlan77 dst 192.168.78.77 self permanent
ip neigh add 10.77.0.7 lladdr 02:00:00:00:00:77 dev vxlan77 nud permanent
ip route add 10.78.0.0/24 via 10.77.0.7 dev vxlan77 onlink
ip link add flannel.9 type bridge
ip link add flannel.8 type vxlan id 7 local $IP dev eth0 dstport 4790
ip link add br-theirs type bridge
ip addr add 172.30.240.1/24 dev br-theirs

ip route add 10.5.0.0/16 via 192.168.78.254 dev eth0
ip route add 172.30.241.0/24 via 192.168.78.254 dev eth0 proto static
ip route add 172.30.242.0/24 via 192.168.78.254 dev eth0 metric 7
ip route add 172.30.243.0/25 via 192.168.78.254 dev eth0
ip route add blackhole 172.30.244.0/24
ip route add 172.30.77.0/24 via 192.168.78.254 dev eth0 table 100
ip route add 172.30.78.0/24 via 192.168.78.254 dev eth0 table 100 proto 241
ip -6 route add fd00:30:0:77::/64 via fd78:78::fe dev eth0 table 100
ip rule add from 10.5.0.0/16 table 100 priority 77
ip nexthop add id 77 via 192.168.78.254 dev eth0 protocol static
ip route add 10.6.0.0/16 nhid 77

ip xfrm policy add src 10.9.1.0/24 dst 10.9.2.0/24 dir out tmpl src 192.168.78.1 dst 192.168.78.9 proto esp reqid 11 mode tunnel
ip xfrm policy add src 172.30.1.0/24 dst 172.30.2.0/24 dir out tmpl src 192.168.78.1 dst 192.168.78.9 proto esp reqid 12 mode tunnel

for i in iptables ip6tables; do
    $i-$V -t mangle -N KUBE-IPTABLES-HINT
    $i-$V -t nat -N THEIRS
    $i-$V -t nat -A POSTROUTING -m comment --comment "not flanneld's" -j THEIRS
    $i-$V -A FORWARD -m comment --comment "theirs" -i docker0 -j ACCEPT
done
nft -f - <<'END'
table inet flannel { chain forward { type filter hook forward priority 7; policy accept; ip saddr 172.30.0.0/16 accept; }
}
table ip theirs { chain postrtg { type nat hook postrouting priority 110; policy accept; ip saddr 10.5.0.0/16 masquerade; }
}
END

mkdir -p /run/cni-conf /var/lib/cni/networks/cbr0 /run/flannel-theirs
echo '{"name":"lo","type":"loopback"}' >/run/cni-conf/99-loopback.conf
echo '{"name":"flannel","plugins":[{"type":"bridge","bridge":"flannel"}]}' >/run/cni-conf/20-theirs.conflist
echo 'not json "type":"flannel"' >/run/cni-conf/30-broken.conflist
echo 'eth0' >/var/lib/cni/networks/cbr0/172.30.1.2
echo 'A=b' >/run/flannel-theirs/subnet.env
"#;

/// Lays it.
pub fn furnish(node: &Node, rules: Rules) {
    let script = format!("set -e; IP={} V={}\n{FOREIGN}", node.ipv4(), rules.suffix());
    node.exec(["sh", "-c", &script]).unwrap();
}

/// What is remembered of a host. Counters, handles and the order of tables are not, and neither are
/// the empty tables that the iptables programs make whenever they look.
const WITNESS: &str = r#"
ip -o link show type vxlan | sed 's/^[0-9]*: //'
ip route show table all; ip -6 route show table all | grep -v ' proto kernel '
ip rule; ip -6 rule; ip nexthop
ip xfrm policy; ip xfrm state
for i in iptables-legacy ip6tables-legacy iptables-nft ip6tables-nft; do
    echo "== $i"
    $i-save | sed '/^#/d; s/ \[[0-9:]*\]$//'
done
echo '== nft'
nft -j list tables
nft list table inet flannel; nft list table ip theirs
find /run /var/lib -path /run/lab -prune -o -type f -name xtables.lock -o -print | sort
"#;

/// Everything that the host holds.
pub fn witness(node: &Node) -> String {
    let text = node.exec(["sh", "-c", WITNESS]).unwrap();
    let (kernel, rest) = text.split_once("== iptables-legacy").unwrap();
    let (rules, rest) = rest.split_once("== nft\n").unwrap();
    let (tables, files) = rest.split_once('\n').unwrap();
    let mut kernel: Vec<&str> = kernel.lines().collect();
    kernel.sort_unstable();
    let empty = |line: &str| {
        [
            "*",
            "COMMIT",
            ":PREROUTING",
            ":INPUT",
            ":FORWARD",
            ":OUTPUT",
            ":POSTROUTING",
        ]
        .iter()
        .any(|start| line.starts_with(start))
    };
    let rules: Vec<&str> = rules.lines().filter(|line| !empty(line)).collect();
    let tables: Value = serde_json::from_str(tables).unwrap();
    let mut tables: Vec<String> = tables["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|object| object.get("table"))
        .map(|table| format!("{} {}", table["family"], table["name"]).replace('"', ""))
        .filter(|name| {
            !["nat", "filter", "mangle"]
                .iter()
                .any(|t| name.ends_with(&format!(" {t}")))
        })
        .collect();
    tables.sort();
    format!(
        "{}\n{}\n{}\n{}\n{files}",
        node.picture().unwrap(),
        kernel.join("\n"),
        rules.join("\n"),
        tables.join("\n"),
    )
}

/// What separates two testimonies.
pub fn difference(before: &str, after: &str) -> String {
    let lacks = |a: &str, b: &str, sign: &str| -> String {
        let there: Vec<&str> = b.lines().collect();
        let missing = a.lines().filter(|line| !there.contains(line));
        missing.map(|line| format!("{sign} {line}\n")).collect()
    };
    lacks(before, after, "-") + &lacks(after, before, "+")
}

/// Runs `flannelctl cleanup …`; checks the status, returns standard output and error.
pub fn cleanup(node: &Node, status: i32, args: &[&str]) -> (String, String) {
    let words = [&[CTL, "cleanup", CONF_DIR], args].concat();
    let output = node.output(words).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(
        output.status.code(),
        Some(status),
        "{args:?}:\n{out}\n{err}"
    );
    (out, err)
}

/// Shows, removes, and looks again: the host is as it was `before`. Returns what was shown.
pub fn cleans(node: &Node, before: &str, args: &[&str]) -> String {
    let with = witness(node);
    assert_ne!(before, with, "there is something to clean");
    let (shown, err) = cleanup(node, 3, args);
    assert!(err.contains("nothing was changed"), "{err}");
    assert_eq!(difference(&with, &witness(node)), "", "it only looked");
    let (json, _) = cleanup(node, 3, &[args, &["--json"]].concat());
    let json: Value = serde_json::from_str(&json).unwrap();
    let items = json["items"].as_array().unwrap();
    assert_eq!(items.len(), shown.lines().count(), "{shown}\n{json}");
    assert_eq!(json["removed"], false);

    let (removed, err) = cleanup(node, 0, &[args, &["--yes"]].concat());
    assert_eq!(removed, shown);
    assert!(err.contains("all of this is removed"), "{err}");
    assert_eq!(difference(before, &witness(node)), "", "after {removed}");

    for again in [&[][..], &["--yes"]] {
        let (out, err) = cleanup(node, 0, &[args, again].concat());
        assert!(
            out.is_empty() && err.contains("nothing of flannel's is here"),
            "{out}{err}"
        );
    }
    shown
}
