//! A fleet of nodes on one etcd: carries out a plan, and judges what follows.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dataplane::fake::fault;
use model::object::ROUTE_PROTOCOL;
use model::{IfName, Object, Op};
use tokio::time::sleep;

use super::daemon::{Daemon, PREFIX};
use super::etcd_data::EtcdData;
use super::etcd_server::EtcdServer;
use super::log::Log;
use super::machine::SimMachine;
use super::network::{Network, PathState, members};
use super::plan::{Kind, Plan, Step, VARIANTS};
use super::rules::Rules;

/// How long after the last event all is well.
pub const BOUND: Duration = Duration::from_secs(600);
/// How long it must stay so.
const STABLE: Duration = Duration::from_secs(300);
/// How long a machine takes to restart.
const REBOOT: Duration = Duration::from_secs(20);
/// How long after a write of its own everything that belongs to it is written, too.
const QUIET: Duration = Duration::from_secs(30);
/// How often the rules are checked.
const TICK: Duration = Duration::from_secs(1);

/// What came of a run that broke no rule.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// How long after the last event all was well.
    pub whole_after: Duration,
    /// How much time was simulated.
    pub simulated: Duration,
    /// How many lines the daemons logged.
    pub lines: usize,
    /// How many steps they did.
    pub steps: u64,
}

/// A node.
pub struct SimNode {
    /// Its machine.
    pub machine: Arc<SimMachine>,
    /// Its daemon, while it runs.
    pub daemon: Option<Daemon>,
    /// When the next daemon starts.
    start_at: Option<Duration>,
    /// Since when it can reach no member of etcd, while nobody has changed its kernel or host.
    pub alone_since: Option<Duration>,
    dir: PathBuf,
    /// The steps of earlier daemons.
    steps: u64,
}

/// A fleet.
pub struct Fleet<'a> {
    plan: &'a Plan,
    log: Log,
    server: EtcdServer,
    network: Network,
    nodes: Vec<SimNode>,
    backup: EtcdData,
    variant: usize,
    /// Effects that end, and when.
    ends: Vec<(Duration, Step)>,
    rules: Rules,
}

/// Carries out a plan, with the nodes' files below `dir`.
///
/// # Errors
/// The rule that is broken, and how.
pub async fn run(plan: &Plan, dir: &Path, log: Log) -> Result<Done, String> {
    let mut fleet = Fleet::new(plan, dir, log)?;
    let ended = fleet.live().await;
    for node in &mut fleet.nodes {
        if let Some(daemon) = node.daemon.take() {
            daemon.kill().await;
        }
    }
    ended
}

impl<'a> Fleet<'a> {
    fn new(plan: &'a Plan, dir: &Path, log: Log) -> Result<Fleet<'a>, String> {
        let server = EtcdServer::new();
        let network = Network::new(server.clone());
        let iface: IfName = "eth0".parse().map_err(|_| "eth0 is no name")?;
        let mut nodes = Vec::new();
        for number in 0..plan.nodes {
            let dir = dir.join(format!("node{number}"));
            std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
            // Every other kernel is an old one.
            let machine = SimMachine::new(iface, first_address(number), number.is_multiple_of(2));
            nodes.push(SimNode {
                machine: Arc::new(machine),
                daemon: None,
                start_at: Some(Duration::from_millis(fastrand::u64(..3000))),
                alone_since: None,
                dir,
                steps: 0,
            });
        }
        let mut fleet = Fleet {
            plan,
            log,
            backup: EtcdData::default(),
            rules: Rules::new(plan, &nodes)?,
            server,
            network,
            nodes,
            variant: plan.variant,
            ends: Vec::new(),
        };
        fleet.write_config();
        fleet.backup = fleet.server.read(EtcdData::clone);
        Ok(fleet)
    }

    async fn live(&mut self) -> Result<Done, String> {
        let began = self.server.now();
        let mut steps = self.plan.steps.iter().copied().peekable();
        while steps.peek().is_some() || !self.ends.is_empty() {
            let next = steps.peek().map(|step| step.at);
            let next = next
                .into_iter()
                .chain(self.ends.iter().map(|(at, _)| *at))
                .min();
            self.pass_until(next.unwrap_or_default()).await?;
            let now = self.server.now();
            while let Some(step) = steps.next_if(|step| step.at <= now) {
                self.log.say(format_args!("{step}"));
                self.begin(step).await;
            }
            let over: Vec<Step> = self
                .ends
                .extract_if(.., |(at, _)| *at <= now)
                .map(|(_, step)| step)
                .collect();
            for step in over {
                self.log.say(format_args!("the end of: {step}"));
                self.end(step);
            }
        }
        self.repair_config();
        for daemon in self.nodes.iter().filter_map(|node| node.daemon.as_ref()) {
            daemon.spare();
        }
        let last = self.server.now();
        let whole = loop {
            match self.whole() {
                Ok(()) => break self.server.now(),
                Err(why) if self.server.now() > last + BOUND => {
                    return Err(format!(
                        "not whole {} s after the last event: {why}",
                        BOUND.as_secs()
                    ));
                }
                Err(_) => {}
            }
            let next = self.server.now() + TICK;
            self.pass_until(next).await?;
        };
        self.log.say("all is well");
        // A change of the backend ends a while after everybody follows it, and leases that a restore has lost are kept
        // for a while.
        let ends_late = |step: &Step| matches!(step.kind, Kind::Config | Kind::Restore);
        let changes = self.plan.steps.iter().any(ends_late);
        self.pass_until(whole + QUIET).await?;
        let operations = self.operations();
        while self.server.now() < whole + STABLE {
            let next = self.server.now() + TICK * 5;
            self.pass_until(next).await?;
            self.whole()
                .map_err(|why| format!("it was whole, and is not any more: {why}"))?;
        }
        if !changes && self.operations() != operations {
            return Err("kernels are written to although nothing changes".into());
        }
        self.rules.at_the_end(&self.nodes, &self.server)?;
        let simulated = self.server.now() - began;
        self.rules.lines(self.log.lines(), simulated)?;
        let steps = self
            .nodes
            .iter()
            .map(|node| node.steps + node.daemon.as_ref().map_or(0, Daemon::steps));
        Ok(Done {
            whole_after: whole - last,
            simulated,
            lines: self.log.lines(),
            steps: steps.sum(),
        })
    }

    fn whole(&self) -> Result<(), String> {
        self.rules.whole(&self.nodes, &self.server)
    }

    fn operations(&self) -> usize {
        let kernels = self
            .nodes
            .iter()
            .filter_map(|node| node.machine.daemons_kernel());
        kernels.map(|kernel| kernel.counts().ops).sum()
    }

    /// Lets time pass, starts daemons that are to start, and checks the rules.
    async fn pass_until(&mut self, until: Duration) -> Result<(), String> {
        loop {
            self.reap().await?;
            let now = self.server.now();
            for (number, node) in self.nodes.iter_mut().enumerate() {
                if node.start_at.is_some_and(|at| at <= now) && node.daemon.is_none() {
                    node.start_at = None;
                    self.log.say(format_args!("node {number} starts"));
                    let dialer = self.network.dialer(number);
                    node.daemon = Some(Daemon::start(number, &node.machine, dialer, &node.dir));
                }
                let alone = self.network.is_cut_off(number);
                node.alone_since = node.alone_since.or(Some(now)).filter(|_| alone);
            }
            self.server.expire();
            let now = self.server.now();
            self.rules.check(&self.nodes, &self.server, now)?;
            if now >= until {
                return Ok(());
            }
            let starts = self.nodes.iter().filter_map(|node| node.start_at);
            let next = starts.min().unwrap_or(until).min(until).min(now + TICK);
            sleep(next.saturating_sub(now)).await;
        }
    }

    /// Takes in which daemons have ended: something starts them again, as an administrator's system does.
    async fn reap(&mut self) -> Result<(), String> {
        let now = self.server.now();
        for (number, node) in self.nodes.iter_mut().enumerate() {
            let Some(daemon) = node.daemon.take_if(|daemon| daemon.has_ended()) else {
                continue;
            };
            node.steps += daemon.steps();
            let why = daemon.end().await;
            if let Some(panic) = why.as_ref().filter(|why| why.starts_with("PANIC")) {
                return Err(format!("node {number}: {panic}"));
            }
            let wait = if why.is_some() { 1000 } else { 10 };
            let why = why.unwrap_or_else(|| "killed".into());
            self.log.say(format_args!("node {number} has ended: {why}"));
            node.start_at
                .get_or_insert(now + Duration::from_millis(wait));
        }
        Ok(())
    }

    fn config(&self) -> String {
        let backend = VARIANTS[self.variant];
        format!(
            r#"{{"Network":"10.20.0.0/16","SubnetMin":"10.20.1.0","SubnetMax":"10.20.40.0","Backend":{backend}}}"#
        )
    }

    /// Writes the configuration again if a backup that was restored held another one.
    fn repair_config(&self) {
        let key = format!("{PREFIX}/config");
        let is_right = self.server.read(|data| {
            let found = data.get(key.as_bytes());
            found.is_some_and(|kv| kv.value == self.config().as_bytes())
        });
        if !is_right {
            self.write_config();
        }
    }

    fn write_config(&self) {
        let json = self.config();
        self.server
            .change(|data| data.put(&format!("{PREFIX}/config"), &json));
    }

    /// Returns the key of a node's lease in etcd.
    fn key(&self, node: usize) -> Option<Vec<u8>> {
        let lease = self.nodes[node].daemon.as_ref()?.node().lease()?;
        Some(format!("{PREFIX}/subnets/{}", lease.key).into_bytes())
    }

    async fn begin(&mut self, step: Step) {
        let Step {
            kind,
            node,
            number,
            at,
        } = step;
        let count = usize::try_from(number).unwrap_or(0);
        let machine = self.nodes[node].machine.clone();
        let kernel = machine.kernel();
        let lasts = Duration::from_secs(number);
        let mut ends = |step| self.ends.push((at + lasts, step));
        match kind {
            Kind::Kill => {
                if let Some(daemon) = &self.nodes[node].daemon {
                    daemon.kill_after(number);
                }
            }
            Kind::Down => {
                let sim = &mut self.nodes[node];
                sim.start_at = Some(at + lasts);
                if let Some(daemon) = sim.daemon.take() {
                    sim.steps += daemon.steps();
                    daemon.kill().await;
                }
                ends(step);
            }
            Kind::Cut => self.network.cut(node),
            Kind::Silent => {
                self.network.set(node, None, PathState::Silent);
                ends(step);
            }
            Kind::HalfSilent => {
                self.network.set(node, members().next(), PathState::Silent);
                ends(step);
            }
            Kind::Refused => {
                self.network.set(node, None, PathState::Refused);
                ends(step);
            }
            Kind::Lossy => {
                self.network.set_losses(node, 33);
                ends(step);
            }
            Kind::NoQuorum => {
                self.server.set_quorum(false);
                ends(step);
            }
            Kind::Backup => self.backup = self.server.read(EtcdData::clone),
            Kind::Restore => {
                let (backup, now) = (self.backup.clone(), self.server.now());
                let ahead = i64::try_from(number).unwrap_or(0);
                self.server.change(|data| data.restore(&backup, ahead, now));
                // The members were stopped for it.
                (0..self.nodes.len()).for_each(|node| self.network.cut(node));
            }
            Kind::Compact => self.server.change(EtcdData::compact),
            Kind::KernelFaults => {
                if let Some(kernel) = machine.daemons_kernel() {
                    let seed = fastrand::u64(..);
                    kernel.set_faults(fault::random(seed, 20));
                    kernel.set_look_faults(fault::random_looks(seed, 30));
                    kernel.set_delays(fault::random_delays(seed, 6));
                }
                ends(step);
            }
            Kind::LoseNotices => {
                if let Some(kernel) = machine.daemons_kernel() {
                    kernel.lose_notices();
                }
            }
            Kind::DelRoute | Kind::ForeignRoute => {
                let objects = kernel.objects().into_iter();
                let ours: Vec<_> = objects
                    .filter_map(|object| match object {
                        Object::Route(key, route) if route.protocol == ROUTE_PROTOCOL => {
                            Some((key, route))
                        }
                        _ => None,
                    })
                    .collect();
                let elsewhere = self.rules.route_of_another();
                if let Some((key, route)) = ours.get(count % ours.len().max(1)) {
                    kernel.outside(&if kind == Kind::DelRoute {
                        Op::Del(Object::Route(*key, *route))
                    } else {
                        Op::Put(Object::Route(*key, elsewhere))
                    });
                }
            }
            Kind::DelEntry => {
                let objects = kernel.objects().into_iter();
                let ours: Vec<_> = objects
                    .filter(|object| match object {
                        Object::NextHop(..) | Object::Fdb(..) | Object::WgPeer(..) => true,
                        Object::Neigh(key, _) => is_flannels(&key.dev),
                        _ => false,
                    })
                    .collect();
                if let Some(object) = ours.get(count % ours.len().max(1)) {
                    kernel.outside(&Op::Del(object.clone()));
                }
            }
            Kind::DelDevice | Kind::DeviceDown => {
                for object in kernel.objects() {
                    let Object::Link(name, _) = &object else {
                        continue;
                    };
                    if is_flannels(name) && kind == Kind::DelDevice {
                        kernel.outside(&Op::Del(object));
                    } else if is_flannels(name) {
                        kernel.set_up(name, false);
                    }
                }
            }
            Kind::Flap => machine.flap(),
            Kind::Readdress => {
                let third = u8::try_from(number % 8).unwrap_or(0) + 20;
                let host = 10 * u8::try_from(node).unwrap_or(0) + third;
                machine.readdress(Ipv4Addr::new(10, 0, 1, host));
            }
            Kind::Mtu => {
                let mtu = u32::try_from(number).unwrap_or(1500);
                kernel.set_mtu(&machine.iface(), mtu);
            }
            Kind::DelKey | Kind::JunkKey | Kind::StealKey => {
                let Some(key) = self.key(node) else { return };
                let strangers = format!(r#"{{"PublicIP":"10.0.1.{}"}}"#, 240 + number);
                self.server.change(|data| match kind {
                    Kind::DelKey => data.delete(&key),
                    Kind::StealKey => data.rewrite(&key, &strangers),
                    _ => data.rewrite(&key, "{not JSON"),
                });
            }
            Kind::StrangeKey => {
                let (key, value) = (
                    format!("{PREFIX}/subnets/10.20.{}.0-24", 50 + number),
                    format!(r#"{{"PublicIP":"10.0.1.{}"}}"#, 200 + number),
                );
                self.server.change(|data| data.put(&key, &value));
            }
            Kind::NoConfig | Kind::JunkConfig => {
                let key = format!("{PREFIX}/config");
                self.server.change(|data| match kind {
                    Kind::NoConfig => data.delete(key.as_bytes()),
                    _ => data.put(&key, "{\"Network\""),
                });
                ends(step);
            }
            Kind::Reboot => {
                let sim = &mut self.nodes[node];
                if let Some(daemon) = sim.daemon.take() {
                    sim.steps += daemon.steps();
                    daemon.kill().await;
                }
                if count % 2 == 1 {
                    lose_files(&sim.dir);
                }
                let (address, iface) = (machine.address(), machine.iface());
                let machine = SimMachine::new(iface, address, node.is_multiple_of(2));
                self.rules.put_foreign(machine.kernel());
                sim.machine = Arc::new(machine);
                sim.start_at = sim.start_at.max(Some(at + REBOOT));
            }
            Kind::LoseFiles => lose_files(&self.nodes[node].dir),
            Kind::Config => {
                self.variant = count % VARIANTS.len();
                self.write_config();
            }
        }
        if !matches!(kind, Kind::Silent | Kind::Refused) {
            self.nodes[node].alone_since = None;
        }
    }

    fn end(&mut self, step: Step) {
        let Step { kind, node, .. } = step;
        match kind {
            Kind::Silent | Kind::HalfSilent | Kind::Refused => {
                self.network.set(node, None, PathState::Open);
            }
            Kind::Lossy => self.network.set_losses(node, 0),
            Kind::NoQuorum => self.server.set_quorum(true),
            Kind::KernelFaults => {
                if let Some(kernel) = self.nodes[node].machine.daemons_kernel() {
                    kernel.calm();
                }
            }
            Kind::NoConfig | Kind::JunkConfig => self.write_config(),
            _ => {}
        }
    }
}

/// Deletes a node's files. One that is being written comes back.
fn lose_files(dir: &Path) {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    for file in files {
        let _ = std::fs::remove_file(file.path());
    }
}

/// Whether a device is flannel's, by its name.
pub fn is_flannels(name: &IfName) -> bool {
    name.as_str().starts_with("flannel") || name.as_str().starts_with("flip")
}

fn first_address(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, u8::try_from(node + 1).unwrap_or(1))
}

/// Returns the node with an address of the underlay.
pub fn owner(nodes: &[SimNode], ip: IpAddr) -> Option<usize> {
    nodes.iter().position(|node| node.machine.address() == ip)
}
