//! `subnet.env`, the lease and the kernel: three accounts of one subnet.

use std::fs;
use std::net::IpAddr;

use dataplane::host::{Interface, blackholes};
use flanneld::subnet_file;
use ipnet::IpNet;
use model::{Dual, Family, Host, IfName, SubnetKey};
use store::ListedLease;

use super::report::Report;
use super::settings::Settings;

const ABOUT: &str = "subnet";

/// What the file says, as far as it can be read.
pub(crate) struct SubnetEnv {
    pub(crate) key: SubnetKey,
    mtu: Option<u32>,
}

/// Reads the file.
pub(crate) fn read(report: &mut Report, settings: &Settings) -> Option<SubnetEnv> {
    let path = &settings.options.subnet_file;
    let shown = path.display();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) => {
            let text = format!("{shown}: {e}");
            match settings.daemon {
                Some(_) => report.fail(
                    ABOUT,
                    format!("{text}, though flanneld runs: it still waits for something"),
                    "its log and its /readyz say for what; the other lines here, too",
                ),
                None => report.warn(
                    ABOUT,
                    format!("{text}: no container starts before flanneld has run"),
                    "start flanneld (systemctl start flanneld)",
                ),
            }
            return None;
        }
    };
    let Some(key) = subnet_file::previous(path) else {
        report.fail(
            ABOUT,
            format!("{shown} names no subnet"),
            "restart flanneld, which writes it anew",
        );
        return None;
    };
    let value = |name: &str| {
        let line = text.lines().find_map(|l| l.trim().strip_prefix(name));
        line.and_then(|l| l.strip_prefix('='))
    };
    let mtu = value("FLANNEL_MTU").and_then(|v| v.trim().parse().ok());
    report.ok(ABOUT, format!("{shown}: {key}"));
    Some(SubnetEnv { key, mtu })
}

/// Compares it with the lease that carries our public addresses.
pub(crate) fn compare_lease(
    report: &mut Report,
    env: &SubnetEnv,
    leases: &[ListedLease],
    host: &Host,
) {
    let ours = own_leases(leases, &host.public_ip);
    let keys: Vec<String> = ours.iter().map(|lease| lease.key.to_string()).collect();
    match ours.as_slice() {
        [] => report.fail(
            ABOUT,
            format!("no lease has this node's public address, though subnet.env says {}", env.key),
            "restart flanneld: it takes the subnet again if it is still free",
        ),
        [one] if one.key == env.key => report.ok(ABOUT, format!("the lease is {} too", one.key)),
        [one] => report.fail(
            ABOUT,
            format!("the lease is {}, but subnet.env says {}", one.key, env.key),
            "restart flanneld, then the containers",
        ),
        _ => report.fail(
            ABOUT,
            format!("several leases have this node's public address: {}", keys.join(", ")),
            "give one of the nodes another address (-public-ip), or delete the lease of a node that is gone",
        ),
    }
}

/// The leases that carry one of these addresses.
pub(crate) fn own_leases<'a>(
    leases: &'a [ListedLease],
    public_ip: &Dual<IpAddr>,
) -> Vec<&'a ListedLease> {
    let ours = |lease: &&ListedLease| {
        let attrs = lease.attrs.as_ref();
        attrs.is_ok_and(|attrs| {
            Family::ALL.into_iter().any(|family| {
                let theirs = attrs.public_ip.get(family);
                theirs.is_some() && theirs == public_ip.get(family)
            })
        })
    };
    leases.iter().filter(ours).collect()
}

/// Compares it with the devices: the tunnel's and the containers' bridges.
pub(crate) fn compare_kernel(
    report: &mut Report,
    env: &SubnetEnv,
    devices: &[IfName],
    interfaces: &[Interface],
    bridges: &[String],
    network: &Dual<IpNet>,
) {
    for name in devices {
        match interfaces.iter().find(|i| i.name == *name) {
            None => report.fail(
                ABOUT,
                format!("there is no device {name}, though subnet.env is written"),
                "start flanneld; a running one makes it anew at once: its log says what hinders it",
            ),
            Some(device) if !device.up => report.fail(
                ABOUT,
                format!("{name} is down"),
                format!("ip link set {name} up; a running flanneld does so by itself"),
            ),
            Some(device) => {
                let small = env.mtu.filter(|mtu| device.mtu < *mtu);
                match small {
                    None => report.ok(ABOUT, format!("{name} is up, MTU {}", device.mtu)),
                    Some(mtu) => report.fail(
                        ABOUT,
                        format!(
                            "{name} has MTU {}, but subnet.env tells containers {mtu}",
                            device.mtu
                        ),
                        "restart flanneld, then the containers",
                    ),
                }
            }
        }
    }
    for bridge in interfaces
        .iter()
        .filter(|i| bridges.contains(&i.name.to_string()))
    {
        compare_bridge(report, env, bridge, network);
    }
}

/// A bridge that was set up for an older lease sends nobody's answers home, and the plugin `bridge` refuses every
/// container where the bridge's address is not exactly the one that it would set.
fn compare_bridge(report: &mut Report, env: &SubnetEnv, bridge: &Interface, network: &Dual<IpNet>) {
    let name = bridge.name;
    let mut good = true;
    for address in bridge.addrs.iter().filter(|a| !a.link_local) {
        let family = Family::of_net(&address.net);
        let ip = address.net.addr();
        let flannels = network.get(family).is_some_and(|net| net.contains(&ip));
        let own = env.key.nets().get(family);
        let inside = own.is_some_and(|net| net.contains(&ip));
        let other_length = own.is_some_and(|net| net.prefix_len() != address.net.prefix_len());
        let fault = if flannels && !inside {
            format!("{name} still has {} of an older lease", address.net)
        } else if inside && other_length {
            format!(
                "{name} has {}, of another length than the lease",
                address.net
            )
        } else {
            continue;
        };
        good = false;
        report.fail(
            ABOUT,
            format!("{fault}; the lease is {}", env.key),
            format!(
                "move the containers away and `ip link del {name}`, or \"repairBridge\": true in the CNI configuration; for docker restart it with the new options"
            ),
        );
    }
    if good {
        report.ok(ABOUT, format!("{name} suits the subnet"));
    }
}

/// Looks for routes that drop packets to this node's own containers. `wanted`: `-ip-blackhole-route` is set, and
/// flanneld keeps one for the whole subnet that any other route comes before.
pub(crate) fn compare_blackholes(report: &mut Report, env: &SubnetEnv, wanted: bool) {
    let routes = match blackholes() {
        Ok(routes) => routes,
        Err(error) => {
            return report.skip(ABOUT, error.to_string(), "run this command as root");
        }
    };
    for (net, metric) in routes {
        let own = env.key.nets().get(Family::of_net(&net));
        let Some(own) = own.filter(|own| own.contains(&net)) else {
            continue;
        };
        let route = match metric {
            0 => format!("blackhole {net}"),
            metric => format!("blackhole {net} metric {metric}"),
        };
        let command = match net {
            IpNet::V4(_) => "ip route del",
            IpNet::V6(_) => "ip -6 route del",
        };
        let cure = format!("{command} {route}");
        if net != *own {
            report.fail(
                ABOUT,
                format!("the route {route} drops packets to containers of this node: it lies in the own subnet {own}"),
                cure,
            );
        } else if !wanted {
            report.warn(
                ABOUT,
                format!("the route {route} is left over: -ip-blackhole-route is not set; containers are unreachable where it comes before the bridge's route"),
                cure,
            );
        }
    }
}
