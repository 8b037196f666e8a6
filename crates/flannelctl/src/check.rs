//! `flannelctl check`: what a node needs, looked at before flannel starts or while it runs. Changes
//! nothing on the host.

mod args;
mod checksum;
mod clock;
mod cni;
mod container;
mod files;
pub(crate) mod firewall;
pub(crate) mod host;
pub(crate) mod icmp;
mod kernel;
mod peers;
mod port;
mod probe;
pub(crate) mod report;
pub(crate) mod scene;
pub(crate) mod settings;
mod store;
pub(crate) mod subnet;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use model::subnet::first;
use model::{BackendType, Family, IfName};

pub(crate) use args::CheckArgs;
use report::Report;
use scene::Scene;
use settings::Settings;
use subnet::SubnetEnv;

/// Runs the checks, prints what they found.
pub(crate) fn run(args: &CheckArgs) -> Result<ExitCode> {
    let settings = Settings::find(&args.flags, args.env_file.as_deref())?;
    let mut report = Report::default();
    report.ok("settings", settings.source.clone());
    match args.answer || args.probe.is_some() {
        true => checksums(&mut report, args, &settings)?,
        false => everything(&mut report, args, &settings)?,
    }
    report.print(args.json);
    Ok(match report.is_good() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(crate::status::FAILED),
    })
}

fn everything(report: &mut Report, args: &CheckArgs, settings: &Settings) -> Result<()> {
    match settings.daemon {
        Some(pid) => report.ok("flanneld", format!("runs, process {pid}")),
        None => report.ok(
            "flanneld",
            "does not run here; everything else is looked at",
        ),
    }
    files::check(report, &settings.options.store);
    clock::check(report);
    let scene = Scene::gather(report, settings)?;
    let config = scene.stored.config.as_ref();
    kernel::check(report, settings, config);
    let devices: Vec<String> = scene
        .standing_devices()
        .iter()
        .map(IfName::to_string)
        .collect();
    host::check(report, config, scene.host.as_ref(), &devices);
    let mut bridges = cni::check(report, args, settings);
    bridges.push("docker0".into());
    if let Some(config) = config.filter(|config| config.backend.kind == BackendType::Vxlan) {
        let port = match config.backend.u16("Port", vxlan_port(), 0..=u16::MAX)? {
            0 => vxlan_port(),
            port => port,
        };
        let families: Vec<Family> = config.families().collect();
        port::check(report, port, &families, &scene.devices(), &scene.interfaces);
    }
    let env = subnet::read(report, settings);
    if let Some(env) = &env {
        compare(report, &scene, env, &bridges);
        subnet::compare_blackholes(report, env, settings.options.traffic.blackhole);
    }
    if let Some(config) = config {
        let own = env.as_ref().map(|env| env.key);
        let question = firewall::Question {
            config,
            own,
            settings,
            devices: &scene.devices(),
            iface: scene.host.as_ref().map(|host| host.iface),
            bridge: bridges.iter().find(|name| scene.has(name)).cloned(),
        };
        firewall::check(report, &question)?;
    }
    ask_peers(report, args, &scene);
    Ok(())
}

fn vxlan_port() -> u16 {
    backend::vxlan::PORT
}

fn compare(report: &mut Report, scene: &Scene, env: &SubnetEnv, bridges: &[String]) {
    if let (Some(leases), Some(host)) = (&scene.stored.leases, &scene.host) {
        subnet::compare_lease(report, env, leases, host);
    }
    let networks = scene.stored.config.as_ref();
    let networks = networks
        .map(|c| c.pools.map(|_, pool| pool.network))
        .unwrap_or_default();
    subnet::compare_kernel(
        report,
        env,
        &scene.devices(),
        &scene.interfaces,
        bridges,
        &networks,
    );
}

fn ask_peers(report: &mut Report, args: &CheckArgs, scene: &Scene) {
    let (Some(config), Some(host), Some(backend), Some(leases)) = (
        &scene.stored.config,
        &scene.host,
        &scene.backend,
        &scene.stored.leases,
    ) else {
        return;
    };
    let own: Vec<_> = subnet::own_leases(leases, &host.public_ip)
        .iter()
        .map(|l| l.key)
        .collect();
    let peers: Vec<_> = leases.iter().filter(|l| !own.contains(&l.key)).collect();
    let question = peers::Question {
        config,
        mtu: backend.mtu(),
        devices: &scene.standing_devices(),
        most: args.peers,
    };
    peers::check(report, &question, &peers);
}

/// `--probe` and `--answer`.
fn checksums(report: &mut Report, args: &CheckArgs, settings: &Settings) -> Result<()> {
    let mut aside = Report::default();
    let scene = Scene::gather(&mut aside, settings)?;
    let (Some(config), Some(host), Some(leases)) =
        (&scene.stored.config, &scene.host, &scene.stored.leases)
    else {
        *report = aside;
        return Ok(());
    };
    if config.backend.kind != BackendType::Vxlan {
        bail!(
            "backend {}: only vxlan leaves checksums to others",
            config.backend.kind
        );
    }
    let own = subnet::own_leases(leases, &host.public_ip);
    let own = own
        .first()
        .context("this node has no lease: start flanneld first")?;
    let device = |family| {
        let vni = backend::vxlan::vni(config)?;
        backend::vxlan::device(vni, family)
    };
    let Some(peer) = args.probe else {
        let family = config.families().next().context("no address family")?;
        let net = own
            .key
            .nets()
            .get(family)
            .context("the lease has no subnet")?;
        let at = SocketAddr::new(first(net).addr(), args.port);
        let network = config.pools.get(family).context("no network")?.network;
        let time = Duration::from_secs(args.seconds);
        crate::output::progress(&format!("answering at {at} for {} s", args.seconds));
        return probe::answer(report, &device(family)?, at, &network, time)
            .with_context(|| format!("answer at {at}"));
    };
    let theirs = leases.iter().find(|lease| {
        let public = lease
            .attrs
            .as_ref()
            .is_ok_and(|a| a.public_ip.iter().any(|(_, ip)| *ip == peer));
        public || lease.key.nets().iter().any(|(_, net)| net.contains(&peer))
    });
    let theirs = theirs.with_context(|| format!("--probe {peer}: no node has that address"))?;
    // The families of tunnel and containers are the same; the answer is on the first of them.
    let family = config.families().next().context("no address family")?;
    let nets = own
        .key
        .nets()
        .get(family)
        .zip(theirs.key.nets().get(family));
    let (ours, theirs) = nets.context("the two nodes have no address family in common")?;
    let to = SocketAddr::new(first(theirs).addr(), args.port);
    probe::probe(report, &device(family)?, first(ours).addr(), to)
        .with_context(|| format!("probe {to}"))
}
