//! Several members, several versions of etcd, and etcd behind its own proxy.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use store::{AnyStore, EtcdSettings, EtcdStore};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::etcd_server::Etcd;
use crate::node::{CONFIG, Node, key, local, value};
use crate::world::{PREFIX, World};

/// A program that ends with the value.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Process {
        let with_us = || {
            Ok(rustix::process::set_parent_process_death_signal(Some(
                Signal::KILL,
            ))?)
        };
        command.stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: between fork and exec there is one system call, and no memory is allocated.
        let child = unsafe { command.pre_exec(with_us) }.spawn();
        Process(child.expect("etcd cannot be run: install etcd-server"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns a directory with `etcd` and `etcdctl` of that version; none: those of the system.
fn programs(version: &str) -> Option<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/etcd");
    let output = Command::new(script).arg(version).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    match output.status.code() {
        Some(0) => Some(text.trim().into()),
        Some(2) => {
            let reason = String::from_utf8_lossy(&output.stderr);
            eprintln!("NOT RUN: etcd {version}: {}", reason.trim());
            None
        }
        _ => panic!("scripts/etcd: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// Three members on loopback.
struct Cluster {
    dir: TempDir,
    programs: PathBuf,
    clients: [u16; 3],
    peers: [u16; 3],
    running: [Option<Process>; 3],
}

impl Cluster {
    async fn start(programs: PathBuf) -> Cluster {
        // All at once, so that they differ.
        let listeners: Vec<_> = (0..6)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let port = |i: usize| listeners[i].local_addr().unwrap().port();
        let mut cluster = Cluster {
            dir: TempDir::new().unwrap(),
            programs,
            clients: [port(0), port(1), port(2)],
            peers: [port(3), port(4), port(5)],
            running: [None, None, None],
        };
        drop(listeners);
        for i in 0..3 {
            cluster.run(i, "new");
        }
        cluster
            .eventually(&["put", &format!("{PREFIX}/config"), CONFIG])
            .await;
        cluster
    }

    fn url(&self, i: usize) -> String {
        format!("http://127.0.0.1:{}", self.clients[i])
    }

    fn peer(&self, i: usize) -> String {
        format!("http://127.0.0.1:{}", self.peers[i])
    }

    fn run(&mut self, i: usize, state: &str) {
        let members: Vec<_> = (0..3).map(|i| format!("m{i}={}", self.peer(i))).collect();
        let mut command = Command::new(self.programs.join("etcd"));
        command
            .args(["--name", &format!("m{i}"), "--log-level", "error"])
            .args(["--logger", "zap"])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .args(["--listen-client-urls", &self.url(i)])
            .args(["--advertise-client-urls", &self.url(i)])
            .args(["--listen-peer-urls", &self.peer(i)])
            .args(["--initial-advertise-peer-urls", &self.peer(i)])
            .args(["--initial-cluster", &members.join(",")])
            .args(["--initial-cluster-state", state])
            .arg("--data-dir")
            .arg(self.dir.path().join(format!("m{i}")));
        self.running[i] = Some(Process::start(&mut command));
    }

    /// Runs `etcdctl` with all members that run; returns what it prints if it succeeds.
    fn ctl(&self, args: &[&str]) -> Option<String> {
        let urls: Vec<_> = (0..3)
            .filter(|i| self.running[*i].is_some())
            .map(|i| self.url(i))
            .collect();
        let output = Command::new(self.programs.join("etcdctl"))
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &urls.join(","), "--command-timeout", "3s"])
            .args(args)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success().then_some(text)
    }

    /// Repeats a command until it succeeds.
    async fn eventually(&self, args: &[&str]) -> String {
        let deadline = Instant::now() + Duration::from_secs(40);
        loop {
            if let Some(text) = self.ctl(args) {
                return text;
            }
            assert!(Instant::now() < deadline, "etcdctl {args:?} never succeeds");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Index of the leader, and each member's id.
    async fn leader(&self) -> usize {
        let status = self.eventually(&["endpoint", "status", "-w", "json"]).await;
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let leads = |member: &serde_json::Value| {
            member["Status"]["leader"] == member["Status"]["header"]["member_id"]
        };
        let member = status.as_array().unwrap().iter().find(|m| leads(m));
        let url = member.expect("no leader")["Endpoint"].as_str().unwrap();
        (0..3).find(|i| self.url(*i) == url).unwrap()
    }

    fn store(&self) -> AnyStore {
        EtcdStore::new(EtcdSettings {
            endpoints: [0, 1, 2].map(|i| self.url(i)).join(","),
            prefix: PREFIX.into(),
            ..EtcdSettings::default()
        })
        .unwrap()
        .into()
    }

    /// Writes a lease, and waits until the node knows it.
    async fn sees(&self, node: &mut Node<AnyStore>, n: u32) {
        let name = format!("10.20.{n}.0-24");
        let path = format!("{PREFIX}/subnets/{name}");
        self.eventually(&["put", &path, &value(n)]).await;
        let new = key(&name);
        node.until(&name, |node| node.complete && node.known.contains_key(&new))
            .await;
        assert_eq!(node.revoked, None);
    }
}

/// Leader killed, its return, a follower replaced by an empty one, the leader stopped dead.
async fn members_come_and_go(programs: PathBuf) {
    let mut cluster = Cluster::start(programs).await;
    let mut node = Node::start(cluster.store(), 1).await;
    node.until("own", |node| node.complete && node.own_key().is_some())
        .await;
    let own = node.own_key();
    cluster.sees(&mut node, 201).await;

    let leader = cluster.leader().await;
    cluster.running[leader] = None;
    cluster.sees(&mut node, 202).await;
    cluster.run(leader, "existing");
    cluster.sees(&mut node, 203).await;

    let lost = (cluster.leader().await + 1) % 3;
    let list = cluster.eventually(&["member", "list"]).await;
    let line = list.lines().find(|l| l.contains(&cluster.url(lost)));
    let id = line.unwrap().split(',').next().unwrap();
    cluster.running[lost] = None;
    cluster.eventually(&["member", "remove", id]).await;
    let data = cluster.dir.path().join(format!("m{lost}"));
    std::fs::remove_dir_all(data).unwrap();
    let peer = format!("--peer-urls={}", cluster.peer(lost));
    cluster
        .eventually(&["member", "add", &format!("m{lost}"), &peer])
        .await;
    cluster.run(lost, "existing");
    cluster.sees(&mut node, 204).await;

    // Cut off: its connections stay and nothing comes.
    let leader = cluster.leader().await;
    let pid = cluster.running[leader].as_ref().unwrap().0.id();
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, Signal::STOP).unwrap();
    cluster.sees(&mut node, 205).await;
    rustix::process::kill_process(pid, Signal::CONT).unwrap();
    cluster.sees(&mut node, 206).await;
    assert_eq!(node.own_key(), own);
}

#[test]
fn members_of_the_systems_etcd_come_and_go() {
    let path = std::env::var_os("PATH").unwrap();
    let dir = std::env::split_paths(&path).find(|dir| dir.join("etcd").exists());
    local(members_come_and_go(dir.expect("install etcd-server")));
}

#[test]
fn members_of_etcd_3_5_come_and_go() {
    if let Some(programs) = programs("3.5") {
        local(members_come_and_go(programs));
    }
}

#[test]
fn members_of_etcd_3_6_come_and_go() {
    if let Some(programs) = programs("3.6") {
        local(members_come_and_go(programs));
    }
}

/// How many watches etcd serves.
fn watchers(etcd: &Etcd) -> u64 {
    let metrics = etcd.metrics();
    let line = metrics
        .lines()
        .find(|line| line.starts_with("etcd_debugging_mvcc_watcher_total "));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

async fn behind_a_proxy(kind: &str, count: u32) {
    let etcd = <Etcd as World>::new();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let endpoint = format!("127.0.0.1:{}", etcd.port());
    let _proxy = Process::start(Command::new("etcd").args([
        kind,
        "start",
        &format!("--endpoints={endpoint}"),
        &format!("--listen-addr=127.0.0.1:{port}"),
    ]));
    let store = || -> AnyStore {
        EtcdStore::new(EtcdSettings {
            endpoints: format!("http://127.0.0.1:{port}"),
            prefix: PREFIX.into(),
            ..EtcdSettings::default()
        })
        .unwrap()
        .into()
    };
    let before = watchers(&etcd);
    let mut nodes = Vec::new();
    for n in 1..=count {
        nodes.push(Node::start(store(), n).await);
    }
    let all = count as usize;
    for node in &mut nodes {
        node.until("all", |node| node.complete && node.known.len() == all)
            .await;
    }
    let calls = etcd.calls();
    let began = Instant::now();
    for node in &mut nodes {
        node.follow(Duration::from_secs(10).saturating_sub(began.elapsed()))
            .await;
    }
    let calls = crate::etcd::calls_since(&etcd, &calls);
    let watchers = watchers(&etcd) - before;
    eprintln!("{count} nodes behind {kind}: {watchers} watches at etcd; idle for 10 s: {calls:?}");
    assert!(!calls.contains_key("Range"), "{calls:?}");
    if kind == "grpc-proxy" {
        // The proxy's own included; the number of nodes does not matter.
        assert!(watchers <= 3, "{watchers}");
    }
    // What is written reaches all of them.
    etcd.put("/coreos.com/network/subnets/10.20.250.0-24", &value(1000));
    let new = key("10.20.250.0-24");
    for node in &mut nodes {
        node.until("the new one", |node| node.known.contains_key(&new))
            .await;
        assert_eq!(node.revoked, None);
    }
}

#[test]
fn nodes_behind_a_grpc_proxy_share_its_watches() {
    let count = std::env::var("STORE_TESTS_PROXY_NODES");
    let count = count.ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    local(behind_a_proxy("grpc-proxy", count));
}

#[test]
fn nodes_behind_a_gateway_are_served() {
    local(behind_a_proxy("gateway", 5));
}
