//! `subnet.env`: what flanneld says about this node's subnet.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::{IpNet, Ipv4Net};

use crate::failure::{Code, Failure, note};
use crate::files;

/// This node's part of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// All networks of the cluster, IPv4 first; an old flanneld may name several.
    pub networks: Vec<IpNet>,
    /// This node's subnets, IPv4 first, host bits cleared.
    pub subnets: Vec<IpNet>,
    /// What a packet on the overlay may hold, in bytes.
    pub mtu: u32,
    /// Whether flanneld masquerades.
    pub ip_masq: bool,
}

/// The names of one family's variables.
struct Names {
    network: &'static str,
    subnet: &'static str,
}

const FAMILIES: [Names; 2] = [
    Names {
        network: "FLANNEL_NETWORK",
        subnet: "FLANNEL_SUBNET",
    },
    Names {
        network: "FLANNEL_IPV6_NETWORK",
        subnet: "FLANNEL_IPV6_SUBNET",
    },
];

impl SubnetEnv {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Code::TryAgainLater`] where it is missing or says too little, since flanneld may be about to
    /// write it; [`Code::Decode`] where a value is none; [`Code::Io`].
    pub fn read(path: &Path) -> Result<SubnetEnv, Failure> {
        let shown = path.display();
        let bytes = files::read(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Failure::new(
                Code::TryAgainLater,
                format!("{shown} does not exist: flanneld on this node has not written it (yet)"),
            )
            .advise("see that flanneld runs and what its log says; its -subnet-file and the plugin's \"subnetFile\" must name the same file"),
            _ => Failure::new(Code::Io, format!("{shown} cannot be read: {error}")),
        })?;
        // Somebody's comment in another encoding is no reason to fail.
        parse(&String::from_utf8_lossy(&bytes)).map_err(|failure| Failure {
            msg: format!("{shown}: {}", failure.msg),
            ..failure
        })
    }
}

impl SubnetEnv {
    /// Returns a subnet that no node has, for a DEL while the file is missing.
    pub fn placeholder() -> SubnetEnv {
        let documentation = Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24);
        SubnetEnv {
            networks: Vec::new(),
            subnets: vec![documentation.into()],
            mtu: 1450,
            ip_masq: false,
        }
    }
}

fn parse(text: &str) -> Result<SubnetEnv, Failure> {
    // As a shell would: the last line of a name counts. An empty value is as good as none.
    let value = |name: &str| {
        text.lines()
            .filter_map(|line| line.trim().split_once('='))
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value.trim_matches(['"', '\'', ' ']))
            .next_back()
            .filter(|value| !value.is_empty())
    };
    // One family is enough, and half a family is none, as with upstream.
    let has =
        |name: fn(&Names) -> &'static str| FAMILIES.iter().any(|one| value(name(one)).is_some());
    let mut missing = Vec::new();
    if !has(|names| names.network) {
        missing.push("FLANNEL_NETWORK");
    }
    if !has(|names| names.subnet) {
        missing.push("FLANNEL_SUBNET");
    }
    let is_written = |name: &str| {
        text.lines()
            .filter_map(|line| line.trim().split_once('='))
            .any(|(key, _)| key == name)
    };
    missing.extend(value("FLANNEL_MTU").is_none().then_some("FLANNEL_MTU"));
    missing.extend((!is_written("FLANNEL_IPMASQ")).then_some("FLANNEL_IPMASQ"));
    if !missing.is_empty() {
        return Err(Failure::new(
            Code::TryAgainLater,
            format!("{} missing", missing.join(", ")),
        )
        .advise("flanneld writes all of them at once: the file is not flanneld's, or was cut off; restart flanneld to have it written again"));
    }

    let bad = |name: &str, value: &str, what: &str| {
        Failure::new(Code::Decode, format!("{name}={value} is not {what}"))
            .advise("restart flanneld to have the file written again")
    };
    let (mut networks, mut subnets) = (Vec::new(), Vec::new());
    for names in &FAMILIES {
        match (value(names.network), value(names.subnet)) {
            (None, None) => continue,
            (Some(_), Some(_)) => {}
            // A route without an address of its family would fail; an address without a route does no harm.
            (Some(_), None) => {
                note(format_args!(
                    "{} without {}: left out",
                    names.network, names.subnet
                ));
                continue;
            }
            (None, Some(_)) => note(format_args!(
                "{} without {}: no route to the network",
                names.subnet, names.network
            )),
        }
        // Of whichever family, as with upstream: the delegate gets it as it is.
        let nets = |name: &'static str, what: &'static str| {
            let value = value(name).unwrap_or_default();
            value
                .split(',')
                .map(move |one| match one.trim().parse::<IpNet>() {
                    Ok(net) => Ok(net.trunc()),
                    Err(_) => Err(bad(name, value, what)),
                })
        };
        if value(names.network).is_some() {
            for net in nets(names.network, "a network") {
                networks.push(net?);
            }
        }
        let mut own = nets(names.subnet, "one subnet");
        match (own.next(), own.next()) {
            (Some(net), None) => subnets.push(net?),
            _ => {
                let value = value(names.subnet).unwrap_or_default();
                return Err(bad(names.subnet, value, "one subnet"));
            }
        }
    }
    let mtu = value("FLANNEL_MTU").unwrap_or_default();
    let masq = value("FLANNEL_IPMASQ").unwrap_or_default();
    Ok(SubnetEnv {
        networks,
        subnets,
        mtu: mtu
            .parse()
            .map_err(|_| bad("FLANNEL_MTU", mtu, "a number of bytes"))?,
        // All that Go's flags print or take for a boolean.
        ip_masq: match masq {
            "true" | "True" | "TRUE" | "t" | "T" | "1" => true,
            "false" | "False" | "FALSE" | "f" | "F" | "0" => false,
            // As upstream. The delegate then masquerades, which does no harm where flanneld does, too.
            _ => {
                note(format_args!(
                    "FLANNEL_IPMASQ={masq} is neither true nor false: taken for false"
                ));
                false
            }
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET=172.30.80.1/24\n";
    const V6: &str = "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\n";
    const REST: &str = "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    fn nets(text: &str) -> Vec<IpNet> {
        text.split(' ').map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn each_family_and_both() {
        for (text, networks, subnets) in [
            (format!("{V4}{REST}"), "172.30.0.0/16", "172.30.80.0/24"),
            (format!("{V6}{REST}"), "fd00::/48", "fd00:0:0:1::/64"),
            (
                format!("{V6}{V4}{REST}"),
                "172.30.0.0/16 fd00::/48",
                "172.30.80.0/24 fd00:0:0:1::/64",
            ),
            (
                format!("{V4}{REST}FLANNEL_IPV6_NETWORK=\nFLANNEL_IPV6_SUBNET=\n"),
                "172.30.0.0/16",
                "172.30.80.0/24",
            ),
            (
                format!("{V4}FLANNEL_NETWORK=\"10.0.0.0/8,172.30.1.0/16\"\n{REST}"),
                "10.0.0.0/8 172.30.0.0/16",
                "172.30.80.0/24",
            ),
            (
                format!("{REST}FLANNEL_NETWORK=fd00::/48\nFLANNEL_SUBNET=fd00:0:0:1::1/64\n"),
                "fd00::/48",
                "fd00:0:0:1::/64",
            ),
        ] {
            let env = parse(&text).unwrap();
            assert_eq!(env.networks, nets(networks), "{text}");
            assert_eq!(env.subnets, nets(subnets), "{text}");
            assert_eq!((env.mtu, env.ip_masq), (1450, true));
        }
    }

    #[test]
    fn all_that_is_missing_is_named_at_once() {
        for (text, missing) in [
            (
                "",
                "FLANNEL_NETWORK, FLANNEL_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ missing",
            ),
            (V4, "FLANNEL_MTU, FLANNEL_IPMASQ missing"),
            (V6, "FLANNEL_MTU, FLANNEL_IPMASQ missing"),
            (
                "FLANNEL_SUBNET=172.30.80.1/24\nFLANNEL_MTU=1\nFLANNEL_IPMASQ=true",
                "FLANNEL_NETWORK missing",
            ),
            (
                "FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUB",
                "FLANNEL_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ missing",
            ),
        ] {
            let failure = parse(text).unwrap_err();
            assert_eq!(failure.msg, missing);
            assert_eq!(failure.code, Code::TryAgainLater);
        }
    }

    #[test]
    fn half_a_family_is_none_and_masquerading_is_true_or_false() {
        for (line, networks, subnets, masq) in [
            ("FLANNEL_IPV6_NETWORK=fd00::/48", 1, 1, true),
            ("FLANNEL_IPV6_SUBNET=fd00::1/64", 1, 2, true),
            ("FLANNEL_IPMASQ=yes", 1, 1, false),
            ("FLANNEL_IPMASQ=", 1, 1, false),
            ("FLANNEL_IPMASQ=TRUE", 1, 1, true),
        ] {
            let env = parse(&format!("{V4}{REST}{line}\n")).unwrap();
            let found = (env.networks.len(), env.subnets.len(), env.ip_masq);
            assert_eq!(found, (networks, subnets, masq), "{line}");
        }
    }

    #[test]
    fn a_bad_value_is_named() {
        for (line, named) in [
            ("FLANNEL_SUBNET=10.1.0.1", "FLANNEL_SUBNET=10.1.0.1"),
            ("FLANNEL_SUBNET=10.1.0.1/24,10.2.0.1/24", "FLANNEL_SUBNET="),
            ("FLANNEL_NETWORK=10.0.0.0/8,", "FLANNEL_NETWORK=10.0.0.0/8,"),
            ("FLANNEL_MTU=-1", "FLANNEL_MTU=-1"),
        ] {
            let failure = parse(&format!("{V4}{REST}{line}\n")).unwrap_err();
            assert!(failure.msg.contains(named), "{}", failure.msg);
            assert_eq!(failure.code, Code::Decode);
        }
    }

    #[test]
    fn fuzzed_files() {
        let whole = [V4, V6, REST].concat();
        fuzz::run("subnet.env of the plugin", &[whole.as_bytes()], |input| {
            let read = parse(&String::from_utf8_lossy(input));
            read.map(|env| (env.networks.len(), env.subnets.len(), env.ip_masq))
                .map_err(|failure| failure.msg.len())
        });
    }
}
