//! A real etcd of the test's own: on loopback, with its data in a temporary directory, gone with
//! the value.

#![allow(unsafe_code, reason = "what a child does between fork and exec")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

/// A running etcd server, or a stopped one.
pub struct Etcd {
    child: Option<Child>,
    dir: TempDir,
    client_port: u16,
    peer_port: u16,
    extra: Vec<String>,
    tls: Option<Tls>,
}

/// Files with which the server speaks TLS.
#[derive(Clone)]
pub struct Tls {
    pub cert: String,
    pub key: String,
    pub ca: String,
    /// It asks its clients for a certificate.
    pub mutual: bool,
}

impl Etcd {
    pub fn start() -> Etcd {
        Etcd::start_with(&[], None)
    }

    pub fn start_with(extra: &[&str], tls: Option<Tls>) -> Etcd {
        let extra: Vec<String> = extra.iter().map(|s| s.to_string()).collect();
        for _ in 0..5 {
            let mut etcd = Etcd {
                child: None,
                dir: TempDir::new().unwrap(),
                client_port: free_port(),
                peer_port: free_port(),
                extra: extra.clone(),
                tls: tls.clone(),
            };
            // Somebody else may have got hold of the port meanwhile.
            if etcd.try_run() {
                return etcd;
            }
        }
        panic!("etcd does not start");
    }

    /// Starts it again, with the data that it had.
    pub fn run(&mut self) {
        assert!(self.try_run(), "etcd does not start again");
    }

    // There is no runtime here that a sleep could block.
    #[allow(clippy::disallowed_methods)]
    fn try_run(&mut self) -> bool {
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let mut command = Command::new("etcd");
        command.args([
            "--name",
            "test",
            "--log-level",
            "error",
            "--logger",
            "zap",
            "--max-txn-ops",
            "20000",
        ]);
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        command.arg("--data-dir").arg(self.dir.path().join("data"));
        command.args([
            "--listen-client-urls",
            &self.url(),
            "--advertise-client-urls",
            &self.url(),
        ]);
        command.args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ]);
        command.args(["--initial-cluster", &format!("test={peer}")]);
        if let Some(tls) = &self.tls {
            command.args(["--cert-file", &tls.cert, "--key-file", &tls.key]);
            if tls.mutual {
                command.args(["--client-cert-auth", "--trusted-ca-file", &tls.ca]);
            }
            let metrics = format!("http://127.0.0.1:{}", free_port());
            command.args(["--listen-metrics-urls", &metrics]);
        }
        command
            .args(&self.extra)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // Should the tests be killed, it goes with them.
        let with_us = || {
            Ok(rustix::process::set_parent_process_death_signal(Some(
                Signal::KILL,
            ))?)
        };
        // SAFETY: between fork and exec there is one system call, and no memory is allocated.
        let child = unsafe { command.pre_exec(with_us) }.spawn();
        let mut child = child.expect("etcd cannot be run: install etcd-server");
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            if self.healthy() {
                self.child = Some(child);
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        false
    }

    fn healthy(&self) -> bool {
        match self.tls {
            Some(_) => TcpStream::connect(("127.0.0.1", self.client_port)).is_ok(),
            None => self
                .get("/health")
                .is_some_and(|body| body.contains("true")),
        }
    }

    /// Kills it, as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Kills it, and throws away all it knew.
    pub fn lose_data(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
    }

    /// Saves a backup, to which [`Etcd::restore`] goes back.
    pub fn back_up(&self) {
        let file = self.dir.path().join("backup");
        self.ctl(&["snapshot", "save", file.to_str().unwrap()]);
    }

    /// Kills it, and starts it with the data of the backup. Nobody else can reach it before `meanwhile` is over.
    pub fn restore(&mut self, meanwhile: impl FnOnce(&Etcd)) {
        self.lose_data();
        let (backup, data) = (self.dir.path().join("backup"), self.dir.path().join("data"));
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let restored = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["snapshot", "restore", backup.to_str().unwrap()])
            .args(["--name", "test", "--data-dir", data.to_str().unwrap()])
            .args(["--initial-cluster", &format!("test={peer}")])
            .args(["--initial-advertise-peer-urls", &peer])
            .output()
            .unwrap();
        assert!(restored.status.success(), "{restored:?}");
        let port = std::mem::replace(&mut self.client_port, free_port());
        self.run();
        meanwhile(self);
        self.kill();
        self.client_port = port;
        self.run();
    }

    pub fn port(&self) -> u16 {
        self.client_port
    }

    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client_port)
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut tcp = TcpStream::connect(("127.0.0.1", self.client_port)).ok()?;
        tcp.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(tcp, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// What it measures, as Prometheus reads it.
    pub fn metrics(&self) -> String {
        self.get("/metrics").unwrap()
    }

    /// How many gRPC calls it has begun to serve, by method.
    pub fn calls(&self) -> Vec<(String, u64)> {
        let metrics = self.metrics();
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with("grpc_server_started_total"));
        let call = |line: &str| {
            let method = line.split("grpc_method=\"").nth(1)?.split('"').next()?;
            let n: f64 = line.rsplit(' ').next()?.parse().ok()?;
            (n > 0.0).then(|| (method.to_string(), n as u64))
        };
        lines.filter_map(call).collect()
    }

    /// Runs `etcdctl`, which must succeed, and returns what it prints.
    pub fn ctl(&self, args: &[&str]) -> String {
        self.ctl_stdin(args, "")
    }

    pub fn ctl_stdin(&self, args: &[&str], input: &str) -> String {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url()]);
        if let Some(tls) = &self.tls {
            command.args(["--cacert", &tls.ca]);
            if tls.mutual {
                command.args(["--cert", &tls.cert, "--key", &tls.key]);
            }
        }
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .expect("etcdctl cannot be run: install etcd-client");
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {args:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn put(&self, key: &str, value: &str) {
        self.ctl_stdin(&["put", key], value);
    }

    /// The etcd leases there are.
    pub fn leases(&self) -> Vec<String> {
        let out = self.ctl(&["lease", "list"]);
        out.lines().skip(1).map(str::to_string).collect()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
