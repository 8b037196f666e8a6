//! Clusters of three members, of several versions of etcd.

#![allow(unsafe_code, reason = "what a child does between fork and exec")]

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use store::{AnyStore, EtcdSettings, EtcdStore};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::node::{CONFIG, Node, key, local, value};
use crate::programs::{Process, programs, system};
use crate::world::PREFIX;

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
    local(members_come_and_go(system()));
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
