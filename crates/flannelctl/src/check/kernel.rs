//! What the kernel can do, and the programs that write rules: tried in a network namespace that is
//! thrown away, rather than guessed from versions. (What the kernel has as modules is loaded by it.)

use std::time::Duration;

use dataplane::rules::{Mode, RulesKeeper};
use dataplane::{Dataplane, Kernel, Outcome};
use model::object::{Beneath, Link, LinkKind, Vxlan};
use model::{BackendType, Family, IfName, Mac, NetConfig, Object, Op, SubnetKey, TrafficRules};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use super::report::Report;
use super::settings::Settings;

const KERNEL: &str = "kernel";
const RULES: &str = "rules";

/// Why nothing was tried.
enum Untried {
    NotAllowed,
    Failed(String),
}

impl<E: ToString> From<E> for Untried {
    fn from(why: E) -> Untried {
        Untried::Failed(why.to_string())
    }
}

/// What a trial told.
struct Trial {
    next_hops: bool,
    /// Each device that was tried, and why it could not be made.
    devices: Vec<(String, Result<(), String>)>,
    /// Which program writes the rules; or why none can.
    rules: Result<Vec<String>, String>,
}

/// Tries what `config` needs, or what most need where there is none.
pub(crate) fn check(report: &mut Report, settings: &Settings, config: Option<&NetConfig>) {
    let kind = config.map_or(BackendType::Vxlan, |config| config.backend.kind.clone());
    let families: Vec<Family> = match config {
        Some(config) => config.families().collect(),
        None => vec![Family::V4],
    };
    let mode = match config.is_some_and(|config| config.nftables) {
        true => Mode::Nftables,
        false => Mode::Iptables,
    };
    let rules = config
        .and_then(any_subnet)
        .map(|(config, key)| TrafficRules::new(config, &key, settings.options.traffic.rules))
        .unwrap_or_default();
    let worker = std::thread::spawn(move || trial(&kind, &families, mode, rules));
    match worker.join() {
        Ok(Ok(trial)) => tell(report, trial),
        Ok(Err(Untried::NotAllowed)) => report.skip(
            KERNEL,
            "cannot test kernel features: creating a network namespace was denied (CAP_SYS_ADMIN is missing)",
            "to test them, run this command as root on the host itself; a pod of flannel does not have that right",
        ),
        Ok(Err(Untried::Failed(why))) => report.fail(
            KERNEL,
            format!("cannot test kernel features in a network namespace: {why}"),
            "report this as a bug, with the version of the kernel (uname -r)",
        ),
        Err(_) => report.fail(KERNEL, "the trial ended by itself", "report this as a bug"),
    }
}

/// Rules need some subnet to be about.
fn any_subnet(config: &NetConfig) -> Option<(&NetConfig, SubnetKey)> {
    let nets = config
        .pools
        .map(|_, pool| ipnet::IpNet::new(pool.min, pool.subnet_len).unwrap_or(pool.network));
    Some((config, SubnetKey::new(nets)?))
}

fn trial(
    kind: &BackendType,
    families: &[Family],
    mode: Mode,
    rules: TrafficRules,
) -> Result<Trial, Untried> {
    // This thread alone; it ends with the function, and the namespace with it.
    match unshare(CloneFlags::CLONE_NEWNET) {
        Err(Errno::EPERM | Errno::EACCES) => return Err(Untried::NotAllowed),
        unshared => unshared?,
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut kernel = Kernel::open(false)?;
        let mut devices = Vec::new();
        if *kind == BackendType::Vxlan {
            for family in families {
                let made = kernel.apply(&[Op::Put(vxlan(*family)?)]).await;
                let refusal = made.iter().find_map(Outcome::refusal);
                let made = refusal.map_or(Ok(()), |error| Err(error.reason.clone()));
                devices.push((format!("vxlan over {family}"), made));
            }
        }
        let rules = match rules.is_empty() {
            true => Ok(Vec::new()),
            false => {
                let mut keeper = RulesKeeper::new(mode, rules, Duration::from_secs(60));
                let ensured = keeper.ensure().await;
                ensured
                    .map(|change| change.notes)
                    .map_err(|e| e.to_string())
            }
        };
        Ok(Trial {
            next_hops: kernel.features().next_hops,
            devices,
            rules,
        })
    })
}

fn vxlan(family: Family) -> Result<Object, String> {
    let name = |text: &str| text.parse::<IfName>().map_err(|e| e.to_string());
    let (device, local) = match family {
        Family::V4 => ("trial4", std::net::Ipv4Addr::LOCALHOST.into()),
        Family::V6 => ("trial6", std::net::Ipv6Addr::LOCALHOST.into()),
    };
    let tunnel = Vxlan {
        vni: 1,
        port: 8472,
        local,
        // The loopback's, in every network namespace.
        beneath: Beneath {
            index: 1,
            name: Some(name("lo")?),
        },
        learning: false,
        gbp: false,
        tx_checksum: Some(false),
    };
    let link = Link {
        kind: LinkKind::Vxlan(tunnel),
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        mtu: 1450,
        up: false,
        mark: None,
        enslaved: false,
    };
    Ok(Object::Link(name(device)?, link))
}

fn tell(report: &mut Report, trial: Trial) {
    for (what, made) in trial.devices {
        match made {
            Ok(()) => report.ok(KERNEL, format!("{what}: a device can be made")),
            Err(why) => report.fail(
                KERNEL,
                format!("{what}: the kernel makes no such device: {why}"),
                "load the module (modprobe vxlan). If there is none, install the package that has it (Ubuntu on a \
                 Raspberry Pi: linux-modules-extra-raspi; minimal cloud kernels: linux-modules-extra-$(uname -r), \
                 kernel-modules-extra), or use a kernel with CONFIG_VXLAN",
            ),
        }
    }
    match trial.next_hops {
        true => report.ok(KERNEL, "next-hop objects"),
        false => report.warn(
            KERNEL,
            "no next-hop objects: many routes are slower to write",
            "a kernel from 5.3 on has them; below a thousand nodes it makes no difference",
        ),
    }
    match trial.rules {
        Ok(notes) if notes.is_empty() => report.ok(RULES, "can be written, or none are asked for"),
        Ok(notes) => report.ok(RULES, format!("can be written: {}", notes.join("; "))),
        Err(why) => report.fail(
            RULES,
            format!("cannot be written: {why}"),
            "install the package that is named (iptables or nftables), or switch EnableNFTables \
             to what this host has",
        ),
    }
}
