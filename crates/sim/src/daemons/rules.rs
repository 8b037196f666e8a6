//! What must hold: at every moment, and when all is well again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use dataplane::fake::FakeKernel;
use flanneld::node::Phase;
use ipnet::IpNet;
use model::object::{AddrKey, Link, LinkKind, NextHop, ROUTE_PROTOCOL, Route, RouteKey, RouteTo};
use model::{IfName, Object, Op, SubnetKey};

use super::daemon::{Daemon, PREFIX};
use super::etcd_server::EtcdServer;
use super::fleet::{SimNode, owner};
use super::plan::{Kind, Plan, VARIANTS};
use super::reach::{Tables, is_plain, obstacle};

/// How long two daemons may have one subnet after somebody has damaged their leases.
const CONFUSED: Duration = Duration::from_secs(60);
/// How many steps a daemon may do in a simulated second, and at once.
const STEPS_A_SECOND: u64 = 3_000;
const STEPS_AT_ONCE: u64 = 60_000;

/// The rules, and what they know of the moments before.
pub struct Rules {
    network: IpNet,
    /// What other programs have put into every kernel.
    foreign: Vec<Object>,
    /// Leases may be confused.
    may_confuse: bool,
    /// The network has been encrypted all the time.
    encrypts: bool,
    /// How much there may be in the log.
    nodes: usize,
    events: usize,
    shared_since: BTreeMap<SubnetKey, Duration>,
    steps: Vec<u64>,
    checked_at: Duration,
    /// The routes to other nodes when a node lost etcd.
    kept: BTreeMap<usize, Vec<IpNet>>,
}

impl Rules {
    /// Returns the rules for a plan, and puts objects of other programs into the kernels.
    ///
    /// # Errors
    /// The text of such an object is wrong.
    pub fn new(plan: &Plan, nodes: &[SimNode]) -> Result<Rules, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let network = "10.20.0.0/16".parse().map_err(|e| text(&e))?;
        let foreign = foreign().map_err(|e| text(&e))?;
        let has = |of: fn(Kind) -> bool| plan.steps.iter().any(|step| of(step.kind));
        let rules = Rules {
            network,
            foreign,
            may_confuse: has(Kind::confuses_leases),
            encrypts: VARIANTS[plan.variant].contains("wireguard")
                && !has(|kind| kind == Kind::Config),
            nodes: nodes.len(),
            events: plan.steps.len(),
            shared_since: BTreeMap::new(),
            steps: vec![0; nodes.len()],
            checked_at: Duration::ZERO,
            kept: BTreeMap::new(),
        };
        for node in nodes {
            rules.put_foreign(node.machine.kernel());
        }
        Ok(rules)
    }

    /// Puts objects of other programs into a kernel. One that it does not take is missed later.
    pub fn put_foreign(&self, kernel: &FakeKernel) {
        for object in &self.foreign {
            kernel.outside(&Op::Put(object.clone()));
        }
    }

    /// Returns a route of another program.
    pub fn route_of_another(&self) -> Route {
        let mut routes = self.foreign.iter().filter_map(|object| match object {
            Object::Route(_, route) => Some(*route),
            _ => None,
        });
        let nowhere = Route {
            to: RouteTo::Blackhole,
            protocol: 4,
        };
        routes.next_back().unwrap_or(nowhere)
    }

    /// Checks what must hold at every moment.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check(
        &mut self,
        nodes: &[SimNode],
        server: &EtcdServer,
        now: Duration,
    ) -> Result<(), String> {
        self.no_shared_subnet(nodes, now)?;
        let seconds = (now - self.checked_at).as_secs() + 1;
        self.checked_at = now;
        for (number, node) in nodes.iter().enumerate() {
            let named = |why: String| format!("node {number}: {why}");
            let tables = Tables::of(node.machine.kernel());
            self.routes_are_right(&tables, node).map_err(named)?;
            for object in &self.foreign {
                if !tables.objects().contains(object) {
                    return Err(named(format!(
                        "an object of another program is gone: {}",
                        Op::Put(object.clone())
                    )));
                }
            }
            self.nothing_is_deleted_alone(number, node, &tables, server)
                .map_err(named)?;
            let steps = node.daemon.as_ref().map_or(0, Daemon::steps);
            let done = steps.saturating_sub(self.steps[number]);
            self.steps[number] = steps;
            if done > STEPS_AT_ONCE.max(STEPS_A_SECOND * seconds) {
                return Err(named(format!("{done} steps in {seconds} s")));
            }
        }
        Ok(())
    }

    fn no_shared_subnet(&mut self, nodes: &[SimNode], now: Duration) -> Result<(), String> {
        let mut holders: BTreeMap<SubnetKey, Vec<usize>> = BTreeMap::new();
        for (number, node) in nodes.iter().enumerate() {
            let status = node.daemon.as_ref().map(|daemon| daemon.node().status());
            let status = status.filter(|status| status.phase == Phase::Announced);
            if let Some(lease) = status.and_then(|status| status.lease) {
                holders.entry(lease.key).or_default().push(number);
            }
        }
        holders.retain(|_, numbers| numbers.len() > 1);
        self.shared_since.retain(|key, _| holders.contains_key(key));
        let patience = if self.may_confuse {
            CONFUSED
        } else {
            Duration::ZERO
        };
        for (key, numbers) in holders {
            let since = *self.shared_since.entry(key).or_insert(now);
            if now - since >= patience {
                return Err(format!(
                    "nodes {numbers:?} have the subnet {key} for {:?}",
                    now - since
                ));
            }
        }
        Ok(())
    }

    fn routes_are_right(&self, tables: &Tables, node: &SimNode) -> Result<(), String> {
        let status = node.daemon.as_ref().map(|daemon| daemon.node().status());
        let own = status
            .filter(|status| status.phase == Phase::Announced)
            .and_then(|status| status.lease);
        for object in tables.objects() {
            let Object::Route(key, route) = object else {
                continue;
            };
            if route.protocol != ROUTE_PROTOCOL {
                continue;
            }
            let wrong = |why: &str| Err(format!("{why}: {}", Op::Put(object.clone())));
            if !self.network.contains(&key.dst) {
                return wrong("a route outside the network");
            }
            let own = own.as_ref().and_then(|lease| lease.key.nets().v4);
            if own.is_some_and(|own| own.contains(&key.dst)) && route.to != RouteTo::Blackhole {
                return wrong("a route into the node's own subnet");
            }
            let dev = tables.hop(&route.to).map(|(dev, _)| dev);
            if self.encrypts && dev.is_some_and(|dev| is_plain(tables, dev)) {
                return wrong("a route without encryption");
            }
        }
        Ok(())
    }

    /// While a node cannot reach etcd, its routes to others stay as long as their leases are there.
    fn nothing_is_deleted_alone(
        &mut self,
        number: usize,
        node: &SimNode,
        tables: &Tables,
        server: &EtcdServer,
    ) -> Result<(), String> {
        let routes = || {
            let routes = tables.objects().iter().filter_map(|object| match object {
                Object::Route(key, route) if route.protocol == ROUTE_PROTOCOL => Some(key.dst),
                _ => None,
            });
            routes.collect::<Vec<IpNet>>()
        };
        // What was under way then has arrived.
        let alone = |since: Duration| self.checked_at > since + Duration::from_secs(1);
        if !node.alone_since.is_some_and(alone) {
            self.kept.remove(&number);
            return Ok(());
        }
        let kept = self.kept.entry(number).or_insert_with(routes);
        let present = routes();
        let there = leases(server);
        let gone = kept
            .iter()
            .find(|dst| !present.contains(dst) && there.iter().any(|(net, _)| net == *dst));
        match gone {
            Some(dst) => Err(format!(
                "the route to {dst} is gone while etcd is unreachable"
            )),
            None => Ok(()),
        }
    }

    /// Checks whether every node is announced, has its lease in etcd and reaches every other node.
    ///
    /// # Errors
    /// What is missing.
    pub fn whole(&self, nodes: &[SimNode], server: &EtcdServer) -> Result<(), String> {
        let mut owns = Vec::new();
        let there = leases(server);
        for (number, node) in nodes.iter().enumerate() {
            let daemon = node.daemon.as_ref();
            let daemon = daemon.ok_or_else(|| format!("node {number} does not run"))?;
            let status = daemon.node().status();
            if status.phase != Phase::Announced || !status.problems.is_empty() {
                return Err(format!(
                    "node {number} is {:?}: {:?}",
                    status.phase, status.problems
                ));
            }
            let lease = status
                .lease
                .ok_or_else(|| format!("node {number} has no lease"))?;
            let net = lease.key.nets().v4.ok_or("a lease without IPv4")?;
            let published = there
                .iter()
                .find(|(of, _)| *of == net)
                .map(|(_, value)| value);
            let address = node.machine.address().to_string();
            if !published.is_some_and(|value| value.contains(&format!("\"{address}\""))) {
                return Err(format!(
                    "node {number}: the lease {net} in etcd does not name {address}: {published:?}"
                ));
            }
            owns.push(net);
        }
        let tables: Vec<Tables> = nodes
            .iter()
            .map(|node| Tables::of(node.machine.kernel()))
            .collect();
        for (from, own) in tables.iter().enumerate() {
            for (to, net) in owns.iter().enumerate().filter(|(to, _)| *to != from) {
                let pod = pod(net);
                let owner = |ip| owner(nodes, ip);
                if let Some(why) = obstacle(own, pod, (&tables[to], to), owner) {
                    return Err(format!(
                        "node {from} does not reach {pod} on node {to}: {why}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Checks what must hold when all has been well for a while.
    ///
    /// # Errors
    /// What does not hold.
    pub fn at_the_end(&self, nodes: &[SimNode], server: &EtcdServer) -> Result<(), String> {
        let there = leases(server);
        for (number, node) in nodes.iter().enumerate() {
            for object in node.machine.kernel().objects() {
                let Object::Route(key, route) = object else {
                    continue;
                };
                let is_subnet = key.dst.prefix_len() == 24;
                if route.protocol == ROUTE_PROTOCOL
                    && is_subnet
                    && !there.iter().any(|(net, _)| *net == key.dst)
                {
                    return Err(format!(
                        "node {number}: the route to {} stays, and the lease is gone",
                        key.dst
                    ));
                }
            }
        }
        Ok(())
    }

    /// Checks that the log does not grow without bounds.
    ///
    /// # Errors
    /// It does.
    pub fn lines(&self, lines: usize, simulated: Duration) -> Result<(), String> {
        let hours = usize::try_from(simulated.as_secs() / 3600).unwrap_or(0) + 1;
        let most = self.nodes * (60 * hours + 60 * self.events);
        if lines > most {
            return Err(format!("{lines} lines in the log, and {most} are enough"));
        }
        Ok(())
    }
}

/// Returns the subnets of all leases in etcd, and their values.
fn leases(server: &EtcdServer) -> Vec<(IpNet, String)> {
    let below = format!("{PREFIX}/subnets/");
    server.read(|data| {
        data.keys()
            .filter_map(|kv| {
                let name = String::from_utf8_lossy(&kv.key);
                let key: SubnetKey = name.strip_prefix(&below)?.parse().ok()?;
                let value = String::from_utf8_lossy(&kv.value).into_owned();
                Some((key.nets().v4?, value))
            })
            .collect()
    })
}

fn pod(net: &IpNet) -> IpAddr {
    match net {
        IpNet::V4(net) => {
            let [a, b, c, _] = net.network().octets();
            IpAddr::from([a, b, c, 77])
        }
        IpNet::V6(net) => net.network().into(),
    }
}

/// What other programs have on every host.
fn foreign() -> Result<Vec<Object>, Box<dyn std::error::Error>> {
    let dev: IfName = "eth1".parse()?;
    let link = Link {
        kind: LinkKind::Foreign("veth".into()),
        mac: None,
        mtu: 1500,
        up: true,
        mark: None,
        enslaved: false,
    };
    let through = |via: &str| -> Result<Route, Box<dyn std::error::Error>> {
        Ok(Route {
            to: RouteTo::Gateway(NextHop {
                via: via.parse()?,
                dev,
                onlink: false,
            }),
            protocol: 4,
        })
    };
    let addr = AddrKey {
        dev,
        net: "192.168.7.1/24".parse()?,
    };
    Ok(vec![
        Object::Link(dev, link),
        Object::Addr(addr, ()),
        Object::Route(
            RouteKey::to("192.168.9.0/24".parse()?),
            through("192.168.7.2")?,
        ),
        // Inside the network, and on no device of flannel's.
        Object::Route(
            RouteKey::to("10.20.200.0/24".parse()?),
            through("192.168.7.3")?,
        ),
    ])
}
