//! A real etcd of the test's own: on loopback, with its data in a temporary directory, gone with
//! the value.

#![allow(unsafe_code, reason = "what a child does between fork and exec")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

/// A running etcd server, or a stopped one.
pub struct Etcd {
    child: Option<Child>,
    /// Where its programs are.
    programs: PathBuf,
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
        Etcd::start_as(crate::programs::system(), extra, tls)
    }

    /// Starts another version of it.
    pub fn start_from(programs: PathBuf, extra: &[&str]) -> Etcd {
        Etcd::start_as(programs, extra, None)
    }

    fn start_as(programs: PathBuf, extra: &[&str], tls: Option<Tls>) -> Etcd {
        let extra: Vec<String> = extra.iter().map(|s| s.to_string()).collect();
        for _ in 0..5 {
            let mut etcd = Etcd {
                child: None,
                programs: programs.clone(),
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
        let peer = self.peer_url();
        let mut command = Command::new(self.programs.join("etcd"));
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

    /// Kills it, and starts it with the data of the backup, restored with `flags`. Nobody else can reach it before
    /// `meanwhile` is over.
    pub fn restore(&mut self, flags: &[&str], meanwhile: impl FnOnce(&Etcd)) {
        self.lose_data();
        let (backup, data) = (self.dir.path().join("backup"), self.dir.path().join("data"));
        let peer = self.peer_url();
        let newer = Some(self.programs.join("etcdutl")).filter(|program| program.exists());
        let program = newer.unwrap_or_else(|| self.programs.join("etcdctl"));
        let restored = Command::new(program)
            .env("ETCDCTL_API", "3")
            .args(["snapshot", "restore", backup.to_str().unwrap()])
            .args(["--name", "test", "--data-dir", data.to_str().unwrap()])
            .args(["--initial-cluster", &format!("test={peer}")])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(flags)
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

    /// Where other members reach it.
    pub fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer_port)
    }

    fn get(&self, path: &str) -> Option<String> {
        self.ask(&format!("GET {path} HTTP/1.0\r\n\r\n"))
    }

    /// Sends JSON to etcd's gateway.
    pub fn post(&self, path: &str, json: &str) -> String {
        let length = json.len();
        let head = format!("POST {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n");
        self.ask(&(head + json)).unwrap()
    }

    fn ask(&self, request: &str) -> Option<String> {
        let mut tcp = TcpStream::connect(("127.0.0.1", self.client_port)).ok()?;
        tcp.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        tcp.write_all(request.as_bytes()).ok()?;
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
        let result = self.try_ctl(args, input);
        result.unwrap_or_else(|why| panic!("etcdctl {args:?}: {why}"))
    }

    /// Runs `etcdctl`; returns what it prints, or its errors if it fails.
    pub fn try_ctl(&self, args: &[&str], input: &str) -> Result<String, String> {
        self.try_ctl_at(&self.url(), args, input)
    }

    /// The same on another member.
    pub fn try_ctl_at(&self, url: &str, args: &[&str], input: &str) -> Result<String, String> {
        let mut command = Command::new(self.programs.join("etcdctl"));
        command.env("ETCDCTL_API", "3").args(["--endpoints", url]);
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
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into())
        }
    }

    /// Its present revision.
    pub fn revision(&self) -> i64 {
        let status = self.ctl(&["endpoint", "status", "-w", "json"]);
        let revision = status.split("\"revision\":").nth(1).unwrap();
        revision.split(',').next().unwrap().parse().unwrap()
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

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
