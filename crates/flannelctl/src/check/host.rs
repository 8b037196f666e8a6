//! What this host does with packets that are not its own.

use std::fs;

use dataplane::guard;
use model::{Family, Host, NetConfig};

use super::report::Report;

const ABOUT: &str = "forwarding";

/// Returns a switch of the kernel; `None` if there is no such one.
pub(crate) fn sysctl(key: &str) -> Option<String> {
    let value = fs::read_to_string(format!("/proc/sys/{key}")).ok()?;
    Some(value.trim().to_owned())
}

/// The switches of the kernel. `devices` are flannel's, as far as they are there.
pub(crate) fn check(
    report: &mut Report,
    config: Option<&NetConfig>,
    host: Option<&Host>,
    devices: &[String],
) {
    let families: Vec<Family> = match config {
        Some(config) => config.families().collect(),
        None => vec![Family::V4],
    };
    for family in &families {
        forwarding(report, *family, host);
    }
    bridge_filter(report, &families);
    if families.contains(&Family::V4) {
        reverse_path(report, host, devices);
    }
    advertisements(report, config, devices);
}

/// Router advertisements that come out of the tunnel are forged.
fn advertisements(report: &mut Report, config: Option<&NetConfig>, devices: &[String]) {
    const ABOUT: &str = "accept_ra";
    let of = |device: &str, key: &str| sysctl(&format!("net/ipv6/conf/{device}/{key}"));
    let believes = |device: &&String| match of(device, "accept_ra").as_deref() {
        Some("2") => true,
        Some("1") => of(device, "forwarding").as_deref() == Some("0"),
        _ => false,
    };
    let believing: Vec<&String> = devices.iter().filter(believes).collect();
    let network = config.and_then(|config| config.pools.iter().next());
    let guarded = network.is_some_and(|(_, pool)| guard::exists(&pool.network).unwrap_or(false));
    if believing.is_empty() || guarded {
        if !devices.is_empty() {
            report.ok(
                ABOUT,
                "router advertisements out of the tunnel are not believed",
            );
        }
        return;
    }
    for device in believing {
        report.warn(
            ABOUT,
            format!(
                "{device} accepts router advertisements: whoever reaches the tunnel's port can give this node a default route"
            ),
            format!("sysctl -w net/ipv6/conf/{device}/accept_ra=0; a running flanneld drops them by a table of its own (nftables)"),
        );
    }
}

fn forwarding(report: &mut Report, family: Family, host: Option<&Host>) {
    let keys = match family {
        Family::V4 => vec!["net/ipv4/ip_forward".to_owned()],
        Family::V6 => {
            let of_iface = host.map(|host| format!("net/ipv6/conf/{}/forwarding", host.iface));
            let all = Some("net/ipv6/conf/all/forwarding".to_owned());
            all.into_iter().chain(of_iface).collect()
        }
    };
    for key in keys {
        let dotted = key.replace('/', ".");
        match sysctl(&key).as_deref() {
            Some("0") => report.fail(
                ABOUT,
                format!("{dotted} is 0: this host forwards no {family} packets, so its containers reach no other node"),
                format!("sysctl -w {dotted}=1, and the same line in /etc/sysctl.d/99-flannel.conf"),
            ),
            Some(_) => report.ok(ABOUT, format!("{dotted} is on")),
            None => report.fail(
                ABOUT,
                format!("there is no {dotted}: this kernel has no {family}"),
                format!("switch {family} on (boot option ipv6.disable), or take it out of the network configuration"),
            ),
        }
    }
}

/// Whether traffic between containers of one bridge passes through the rules of services.
fn bridge_filter(report: &mut Report, families: &[Family]) {
    const ABOUT: &str = "bridge";
    for family in families {
        let key = match family {
            Family::V4 => "net/bridge/bridge-nf-call-iptables",
            Family::V6 => "net/bridge/bridge-nf-call-ip6tables",
        };
        let dotted = key.replace('/', ".");
        match sysctl(key).as_deref() {
            Some("0") => report.warn(
                ABOUT,
                format!("{dotted} is 0: a service does not work from a container to another one on the same node"),
                format!("sysctl -w {dotted}=1, if this node runs kube-proxy"),
            ),
            Some(_) => report.ok(ABOUT, format!("{dotted} is on")),
            None => report.warn(
                ABOUT,
                format!("there is no {dotted}: br_netfilter is not loaded"),
                "modprobe br_netfilter, and the word br_netfilter in /etc/modules-load.d/flannel.conf; without kube-proxy it is not needed",
            ),
        }
    }
}

/// Strict reverse-path filtering drops what comes in by another way than it would go out.
fn reverse_path(report: &mut Report, host: Option<&Host>, devices: &[String]) {
    const ABOUT: &str = "rp_filter";
    let of = |name: &str| sysctl(&format!("net/ipv4/conf/{name}/rp_filter"));
    let number = |text: Option<String>| text.and_then(|t| t.parse::<u8>().ok()).unwrap_or(0);
    let all = number(of("all"));
    let underlay = host.map(|host| host.iface.to_string());
    let mut strict: Vec<String> = Vec::new();
    for name in devices.iter().chain(&underlay) {
        // The larger of the two counts.
        if all.max(number(of(name))) == 1 {
            strict.push(name.clone());
        }
    }
    match strict.is_empty() {
        true => report.ok(ABOUT, "not strict on the devices that carry the network"),
        false => report.warn(
            ABOUT,
            format!(
                "strict on {}: packets are dropped that come in by another way than answers go out (several interfaces, DirectRouting)",
                strict.join(", ")
            ),
            "sysctl -w net.ipv4.conf.all.rp_filter=2 (loose)",
        ),
    }
}
