//! The lab with the daemon under test, and how its faults are made and its figures told.

use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use ipnet::IpNet;
use lab::{Error, Lab, LabBuilder, Namespace, Node, StoreKind, wait_for};
use model::Family;
use serde_json::{Value, json};

pub use crate::seen::{says, shows};

/// Long enough for anything that happens at all, also on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// Real etcd without certificates.
pub const ETCD: StoreKind = StoreKind::Etcd { tls: false };

/// A lab whose flanneld is the one just built.
pub fn lab() -> LabBuilder {
    let flanneld = Path::new(env!("CARGO_BIN_EXE_flanneld"));
    Lab::builder().bin_dir(flanneld.parent().unwrap())
}

/// Tests that load the machine take it alone; those that measure share it with each other only.
static MACHINE: RwLock<()> = RwLock::new(());

/// Held by a test that measures a latency.
pub fn measuring() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held by a test that would spoil what others measure.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Loads the module of TUN devices where nothing has yet: in a virtual machine that has just begun.
pub fn load_tun() {
    if !Path::new("/dev/net/tun").exists() {
        drop(std::process::Command::new("modprobe").arg("tun").output());
    }
}

/// Runs a script of `ip` and `bridge` command lines in `place`; several `ip` lines in a row are
/// one process, unless they have options.
pub fn run(place: &Namespace, script: &str) -> Result<(), Error> {
    let mut batch: Vec<String> = Vec::new();
    for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
        match line
            .strip_prefix("ip ")
            .filter(|rest| !rest.starts_with('-'))
        {
            Some(rest) => batch.push(rest.into()),
            None => {
                if !batch.is_empty() {
                    place.ip_batch(&std::mem::take(&mut batch))?;
                }
                place.exec(line.split_whitespace())?;
            }
        }
    }
    match batch.is_empty() {
        true => Ok(()),
        false => place.ip_batch(&batch),
    }
}

/// What `ip -j …` says, as JSON.
pub fn ip_json(place: &Namespace, args: &str) -> Value {
    let text = place
        .exec(format!("ip -j -d {args}").split_whitespace())
        .unwrap();
    match text.trim() {
        "" => Value::Array(Vec::new()),
        text => serde_json::from_str(text).unwrap_or_else(|e| panic!("ip {args}: {e}: {text}")),
    }
}

/// Waits until every node has a route to every other one's subnets, and all pods reach all. (A pod
/// that was plugged in just now may need a second until its bridge speaks IPv6.)
pub fn mesh(lab: &Lab) {
    let nodes: Vec<&Node> = lab.nodes().iter().collect();
    meshed(&nodes);
    lab.wait_mesh(SOON).unwrap();
}

/// Waits until each of `nodes` has a route to the subnets of the others.
pub fn meshed(nodes: &[&Node]) {
    let subnets: Vec<Vec<IpNet>> = nodes
        .iter()
        .map(|node| {
            let env = node.subnet_env().unwrap();
            env.subnet.iter().map(|(_, net)| net.trunc()).collect()
        })
        .collect();
    for (i, node) in nodes.iter().enumerate() {
        let others = subnets.iter().enumerate().filter(|(j, _)| *j != i);
        let wanted: Vec<String> = others
            .flat_map(|(_, nets)| nets.iter().map(|net| format!("route {net} via")))
            .collect();
        let look = || -> Result<(), String> {
            let picture = node.picture().map_err(|e| e.to_string())?;
            match wanted.iter().find(|route| !picture.has(&[route])) {
                None => Ok(()),
                Some(route) => Err(format!("no {route} in\n{picture}")),
            }
        };
        wait_for(&format!("{} has its peers", node.name()), SOON, look).unwrap();
    }
}

/// The device that carries `family` in the lab's default vxlan network.
pub fn device(family: Family) -> &'static str {
    match family {
        Family::V4 => "flannel.1",
        Family::V6 => "flannel-v6.1",
    }
}

/// What a node must hold for another one.
pub struct Peer {
    pub subnet: IpNet,
    /// The subnet's first address.
    pub gateway: String,
    /// Where the packets go.
    pub underlay: String,
    /// Of its tunnel device, if it has one.
    pub mac: String,
}

impl Peer {
    pub fn of(node: &Node, family: Family) -> Peer {
        let subnet = node.subnet_env().unwrap().cidr(family).unwrap();
        let links = ip_json(node, "link show");
        let own = |link: &&Value| link["ifname"] == device(family);
        let link = links.as_array().unwrap().iter().find(own);
        Peer {
            subnet,
            gateway: subnet.addr().to_string(),
            underlay: node.ip(family).to_string(),
            mac: link
                .map_or("", |link| link["address"].as_str().unwrap())
                .into(),
        }
    }
}

/// `median 1.2 ms, worst 3.4 ms of 15`
pub fn figure(mut samples: Vec<Duration>) -> (Duration, Duration, String) {
    samples.sort();
    let (median, worst) = (samples[samples.len() / 2], samples[samples.len() - 1]);
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let text = format!(
        "median {:5.1} ms, worst {:5.1} ms of {}",
        ms(median),
        ms(worst),
        samples.len()
    );
    (median, worst, text)
}

/// The key and value of a node's lease, found by its public address.
pub fn lease_of(lab: &Lab, node: &Node) -> (String, Value) {
    let leases = lab.leases().unwrap().into_iter();
    let parsed = leases.map(|(key, text)| (key, serde_json::from_str::<Value>(&text).unwrap()));
    let mut own = parsed.filter(|(_, value)| {
        value["PublicIP"] == json!(node.ipv4()) || value["PublicIPv6"] == json!(node.ipv6())
    });
    let found = own.next().expect("the node has a lease");
    assert!(own.next().is_none(), "two leases of {}", node.name());
    found
}
