//! A real etcd in the fabric, on an address that every node reaches.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::error::Doing;
use crate::fabric::{GATEWAY4, GATEWAY6};
use crate::ground::Ground;
use crate::http::http_get;
use crate::process::Process;
use crate::{Error, Namespace, SHARED_DIR, certs, wait_for};

/// Where etcd tells its health and its figures, without TLS, on the fabric's 127.0.0.1.
const METRICS_PORT: u16 = 2381;

/// How long etcd may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(20);

/// An etcd server of one member.
#[derive(Debug)]
pub struct Etcd {
    place: Namespace,
    dir: PathBuf,
    tls: bool,
    prefix: String,
    /// Whether clients must show a certificate.
    client_certificates: AtomicBool,
    /// User and password for our own questions, once they are needed.
    login: Mutex<Option<String>>,
    process: Mutex<Option<Process>>,
}

impl Etcd {
    pub(crate) fn new(
        place: &Namespace,
        ground: &Ground,
        tls: bool,
        prefix: &str,
    ) -> Result<Etcd, Error> {
        let dir = ground.dir();
        if tls {
            let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(String::from).into();
            names.extend([GATEWAY4.to_string(), GATEWAY6.to_string()]);
            certs::write_for_etcd(&dir.join("tls"), &names)?;
        }
        let etcd = Etcd {
            place: place.clone(),
            dir,
            tls,
            prefix: prefix.into(),
            client_certificates: AtomicBool::new(true),
            login: Mutex::default(),
            process: Mutex::default(),
        };
        etcd.start()?;
        Ok(etcd)
    }

    /// Whether clients must show a certificate, from the next start on. With TLS they must, at first.
    pub fn ask_for_client_certificates(&self, ask: bool) {
        self.client_certificates.store(ask, Ordering::Relaxed);
    }

    /// Its address for clients, as `-etcd-endpoints` wants it.
    pub fn endpoint(&self) -> String {
        format!("{}://{GATEWAY4}:2379", self.scheme())
    }

    /// Where the network's keys are.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What a flanneld must be told.
    pub fn flanneld_args(&self) -> Vec<String> {
        let mut args = vec![
            format!("--etcd-endpoints={}", self.endpoint()),
            format!("--etcd-prefix={}", self.prefix),
        ];
        if self.tls {
            let file = |flag: &str, name: &str| format!("--etcd-{flag}={SHARED_DIR}/tls/{name}");
            args.push(file("cafile", "ca.pem"));
            args.push(file("certfile", "flanneld.pem"));
            args.push(file("keyfile", "flanneld-key.pem"));
        }
        args
    }

    /// Starts it and waits until it is healthy.
    ///
    /// # Errors
    /// It cannot be started, or ends, or is not healthy in time.
    pub fn start(&self) -> Result<(), Error> {
        let (scheme, data) = (self.scheme(), format!("{SHARED_DIR}/etcd"));
        let mut command = Command::new("etcd");
        let listen = format!("{scheme}://0.0.0.0:2379");
        for (flag, value) in [
            ("name", "lab"),
            ("data-dir", &data),
            ("listen-client-urls", &listen),
            ("advertise-client-urls", &self.endpoint()),
            ("listen-peer-urls", "http://127.0.0.1:2380"),
            ("initial-advertise-peer-urls", "http://127.0.0.1:2380"),
            ("initial-cluster", "lab=http://127.0.0.1:2380"),
            (
                "listen-metrics-urls",
                &format!("http://127.0.0.1:{METRICS_PORT}"),
            ),
            ("logger", "zap"),
            ("log-level", "warn"),
            // One member needs nobody's vote; the defaults make it wait for seconds.
            ("heartbeat-interval", "20"),
            ("election-timeout", "200"),
            ("bcrypt-cost", "4"),
        ] {
            command.arg(format!("--{flag}={value}"));
        }
        // Its files are in memory anyway.
        command.arg("--unsafe-no-fsync");
        if self.tls {
            let tls = format!("{SHARED_DIR}/tls");
            command.arg(format!("--cert-file={tls}/etcd.pem"));
            command.arg(format!("--key-file={tls}/etcd-key.pem"));
            if self.client_certificates.load(Ordering::Relaxed) {
                command.arg(format!("--trusted-ca-file={tls}/ca.pem"));
                command.arg("--client-cert-auth=true");
            }
        }
        let process = Process::start(
            "etcd",
            &self.place,
            &mut command,
            &self.dir.join("log/etcd"),
        )?;
        wait_for("etcd is healthy", PATIENCE, || {
            if let Err(e) = process.must_run() {
                return Ok(Err(e));
            }
            match http_get(&self.place, METRICS_PORT, "/health") {
                Ok((200, body)) if body.contains("true") => Ok(Ok(())),
                Ok((status, body)) => Err(format!(
                    "{status} {body}; its log ends with:\n{}",
                    process.log_tail(10)
                )),
                Err(e) => Err(format!("{e}; its log ends with:\n{}", process.log_tail(10))),
            }
        })??;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        Ok(())
    }

    /// `SIGTERM`, and waits for the end.
    ///
    /// # Errors
    /// It did not end.
    pub fn stop(&self) -> Result<(), Error> {
        match self
            .process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            Some(process) => process
                .signal(Signal::SIGTERM)
                .and_then(|()| process.wait(PATIENCE))
                .map(drop),
            None => Ok(()),
        }
    }

    /// `SIGKILL`.
    ///
    /// # Errors
    /// The system refused it.
    pub fn kill9(&self) -> Result<(), Error> {
        match self
            .process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            Some(process) => process.kill9().map(drop),
            None => Ok(()),
        }
    }

    /// `SIGSTOP`: it takes connections and answers none until [`Etcd::thaw`].
    ///
    /// # Errors
    /// It is stopped, or the system refused it.
    pub fn freeze(&self) -> Result<(), Error> {
        self.signal(Signal::SIGSTOP)
    }

    /// `SIGCONT`.
    ///
    /// # Errors
    /// It is stopped, or the system refused it.
    pub fn thaw(&self) -> Result<(), Error> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<(), Error> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        match &*process {
            Some(process) => process.signal(signal),
            None => Err(Error::Bad("etcd is not running".into())),
        }
    }

    /// Runs `etcdctl` with its address and certificates given.
    ///
    /// # Errors
    /// It fails.
    pub fn ctl(&self, args: &[&str]) -> Result<String, Error> {
        let mut argv: Vec<String> = ["env", "ETCDCTL_API=3", "etcdctl"].map(String::from).into();
        argv.push(format!("--endpoints={}", self.endpoint()));
        if self.tls {
            let tls = format!("{SHARED_DIR}/tls");
            argv.push(format!("--cacert={tls}/ca.pem"));
            argv.push(format!("--cert={tls}/flanneld.pem"));
            argv.push(format!("--key={tls}/flanneld-key.pem"));
        }
        if let Some(login) = &*self.login.lock().unwrap_or_else(PoisonError::into_inner) {
            argv.push(format!("--user={login}"));
        }
        argv.extend(args.iter().map(|a| a.to_string()));
        self.place.exec(argv)
    }

    /// Turns on password authentication: `root` and `user`, both with `password`; `user` may do
    /// anything below the prefix.
    ///
    /// # Errors
    /// etcd refuses.
    pub fn enable_auth(&self, user: &str, password: &str) -> Result<(), Error> {
        self.ctl(&["user", "add", &format!("root:{password}")])?;
        self.ctl(&["user", "grant-role", "root", "root"])?;
        self.ctl(&["user", "add", &format!("{user}:{password}")])?;
        self.ctl(&["role", "add", "flannel"])?;
        self.ctl(&[
            "role",
            "grant-permission",
            "flannel",
            "--prefix=true",
            "readwrite",
            &format!("{}/", self.prefix),
        ])?;
        self.ctl(&["user", "grant-role", user, "flannel"])?;
        self.ctl(&["auth", "enable"])?;
        *self.login.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(format!("root:{password}"));
        Ok(())
    }

    /// Forgets every older revision; returns the one that is kept.
    ///
    /// # Errors
    /// etcd refuses.
    pub fn compact(&self) -> Result<u64, Error> {
        let status = self.ctl(&["endpoint", "status", "--write-out=json"])?;
        let parsed: serde_json::Value = serde_json::from_str(&status).unwrap_or_default();
        let revision = parsed
            .pointer("/0/Status/header/revision")
            .and_then(serde_json::Value::as_u64);
        let revision = revision.ok_or_else(|| {
            Error::Bad(format!("etcdctl endpoint status: no revision in {status}"))
        })?;
        self.ctl(&["compact", &revision.to_string()])?;
        Ok(revision)
    }

    /// Requests answered or begun so far, by gRPC method: `Range`, `Txn`, `Watch`, `LeaseKeepAlive`, …
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn requests(&self) -> Result<BTreeMap<String, u64>, Error> {
        let (_, body) = http_get(&self.place, METRICS_PORT, "/metrics")?;
        let mut requests = BTreeMap::new();
        for line in body
            .lines()
            .filter(|l| l.starts_with("grpc_server_started_total{"))
        {
            let method = line
                .split_once("grpc_method=\"")
                .and_then(|(_, rest)| rest.split('"').next());
            let count = line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok());
            if let (Some(method), Some(count)) = (method, count)
                && count > 0.0
            {
                requests.insert(method.to_string(), count as u64);
            }
        }
        Ok(requests)
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        let log = fs::read(self.dir.join("log/etcd")).doing(|| "etcd's log".into());
        String::from_utf8_lossy(&log.unwrap_or_default()).into_owned()
    }

    fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}
