//! The control plane: etcd, kube-apiserver, kube-controller-manager, and the scheduler where there
//! are kubelets; all in the fabric.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use rustls::ClientConfig;
use serde_json::{Value, json};

use super::access::{self, Who};
use super::api::{Api, trust};
use super::audit::{self, Request};
use super::networks::Networks;
use super::servers::{self, PORT};
use crate::certs::{Authority, Use, write_signing_key};
use crate::error::Doing;
use crate::fabric::{GATEWAY4, GATEWAY6};
use crate::ground::Ground;
use crate::process::Process;
use crate::{Error, Etcd, KUBE_BIN_DIR, KUBE_DIR, Namespace, wait_for};

/// How long a program may take to start or to stop, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Kubernetes control plane.
#[derive(Debug)]
pub struct Kube {
    place: Namespace,
    /// The directory of its files, by a path for this process; the lab knows it as [`KUBE_DIR`].
    dir: PathBuf,
    log: PathBuf,
    networks: Networks,
    /// With kubelets all controllers run, and the scheduler; else only what gives Nodes their subnets.
    kubelets: bool,
    server: SocketAddr,
    tls: Arc<ClientConfig>,
    ca_pem: String,
    admin: Api,
    etcd: Etcd,
    /// kube-apiserver; `None` when stopped.
    apiserver: Mutex<Option<Process>>,
    /// What needs the API server, and retries by itself while that is unreachable.
    others: Mutex<Vec<Process>>,
}

impl Kube {
    /// Starts all of it and waits until Nodes can be made.
    pub(crate) fn new(
        fabric: &Namespace,
        ground: &Ground,
        networks: Networks,
        kubelets: bool,
    ) -> Result<Kube, Error> {
        let (dir, log) = (ground.dir().join("kube"), ground.dir().join("log"));
        fs::create_dir_all(&dir).doing(|| dir.display().to_string())?;
        let etcd = Etcd::new(fabric, ground, false, "/registry")?;
        let services = networks.service_addresses();
        // The service's addresses lead to the fabric by the nodes' default route, and end here.
        let lines = services.iter().map(|ip| format!("addr add {ip} dev lo"));
        fabric.ip_batch(&lines.collect::<Vec<_>>())?;

        let authority = Authority::new(&dir)?;
        let mut hosts: Vec<String> = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
            "127.0.0.1",
        ]
        .map(String::from)
        .into();
        hosts.extend([GATEWAY4.to_string(), GATEWAY6.to_string()]);
        hosts.extend(services.iter().map(IpAddr::to_string));
        authority.issue("apiserver", Use::Server, &hosts)?;
        write_signing_key(&dir, "service-account")?;
        let address = match networks.first_is_ipv4() {
            true => GATEWAY4.into(),
            false => GATEWAY6.into(),
        };
        let server = SocketAddr::new(address, PORT);
        access::write(&dir, server, &authority.pem())?;
        audit::write_policy(&dir)?;

        let tls = trust(authority.der())?;
        let admin = Api::new(fabric, server, &tls, "admin", &Who::Admin.token());
        let kube = Kube {
            place: fabric.clone(),
            dir,
            log,
            networks,
            kubelets,
            server,
            tls,
            ca_pem: authority.pem(),
            admin,
            etcd,
            apiserver: Mutex::default(),
            others: Mutex::default(),
        };
        kube.start()?;
        kube.start_others()?;
        // With kubelets whoever uses the lab applies the manifest, as in any other cluster.
        if !kubelets {
            kube.apply(&super::flannel_role())?;
        }
        Ok(kube)
    }

    /// Starts the API server and waits until it is ready.
    ///
    /// # Errors
    /// It cannot be started, or ends, or is not ready in time.
    pub fn start(&self) -> Result<(), Error> {
        let mut running = lock(&self.apiserver);
        if running.is_some() {
            return Err(Error::Bad("kube-apiserver runs already".into()));
        }
        let mut command = servers::apiserver(&self.networks, self.server);
        let process = self.run("kube-apiserver", &mut command)?;
        wait_for("kube-apiserver is ready", PATIENCE, || {
            if let Err(e) = process.must_run() {
                return Ok(Err(e));
            }
            match self.admin.request("GET", "/readyz", "", None) {
                Ok(answer) if answer.status == 200 => Ok(Ok(())),
                Ok(answer) => Err(format!("{} {}", answer.status, answer.body)),
                Err(e) => Err(format!("{e}; its log ends with:\n{}", process.log_tail(10))),
            }
        })??;
        *running = Some(process);
        Ok(())
    }

    fn start_others(&self) -> Result<(), Error> {
        let admin = self.kubeconfig(&Who::Admin);
        let mut manager = servers::controller_manager(&self.networks, &admin, self.kubelets);
        let mut others = vec![self.run("kube-controller-manager", &mut manager)?];
        if self.kubelets {
            others.push(self.run("kube-scheduler", &mut servers::scheduler(&admin))?);
        }
        *lock(&self.others) = others;
        Ok(())
    }

    fn run(&self, name: &str, command: &mut Command) -> Result<Process, Error> {
        Process::start(name, &self.place, command, &self.log.join(name))
    }

    /// Stops the API server with `SIGTERM`, and waits for the end. etcd and the others run on.
    ///
    /// # Errors
    /// It did not end.
    pub fn stop(&self) -> Result<(), Error> {
        match lock(&self.apiserver).take() {
            Some(process) => process
                .signal(Signal::SIGTERM)
                .and_then(|()| process.wait(PATIENCE))
                .map(drop),
            None => Ok(()),
        }
    }

    /// `SIGKILL` for the API server.
    ///
    /// # Errors
    /// The system refused it.
    pub fn kill9(&self) -> Result<(), Error> {
        match lock(&self.apiserver).take() {
            Some(process) => process.kill9().map(drop),
            None => Ok(()),
        }
    }

    /// `SIGSTOP`: the API server takes connections and answers none until [`Kube::thaw`].
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
        match &*lock(&self.apiserver) {
            Some(process) => process.signal(signal),
            None => Err(Error::Bad("kube-apiserver is not running".into())),
        }
    }

    /// The place of all its programs, the fabric: where a client of one's own can be run.
    pub fn place(&self) -> &Namespace {
        &self.place
    }

    /// The API server's address.
    pub fn server(&self) -> SocketAddr {
        self.server
    }

    /// The certificate of the authority that vouches for the API server, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The API server as the administrator sees it.
    pub fn api(&self) -> &Api {
        &self.admin
    }

    /// The API server as somebody else sees it.
    pub fn api_as(&self, who: &Who) -> Api {
        Api::new(
            &self.place,
            self.server,
            &self.tls,
            &who.user(),
            &who.token(),
        )
    }

    /// The path, in every place of the lab, of somebody's kubeconfig file.
    pub fn kubeconfig(&self, who: &Who) -> String {
        format!("{KUBE_DIR}/{}", who.file())
    }

    /// A kubeconfig file's text for the bearer of `token`.
    pub fn kubeconfig_with_token(&self, token: &str) -> String {
        access::kubeconfig(self.server, &self.ca_pem, token)
    }

    /// The etcd behind the API server.
    pub fn etcd(&self) -> &Etcd {
        &self.etcd
    }

    /// Runs `kubectl` as the administrator; returns what it wrote to standard output.
    ///
    /// # Errors
    /// It fails: with what it said.
    pub fn kubectl<S: AsRef<str>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> Result<String, Error> {
        let mut argv = vec![
            format!("{KUBE_BIN_DIR}/kubectl"),
            format!("--kubeconfig={}", self.kubeconfig(&Who::Admin)),
            // What it has learnt of the server, kept with the lab.
            format!("--cache-dir={KUBE_DIR}/kubectl"),
        ];
        argv.extend(args.into_iter().map(|arg| arg.as_ref().to_string()));
        self.place.exec(argv)
    }

    /// `kubectl apply` of YAML or JSON text.
    ///
    /// # Errors
    /// It fails: with what it said.
    pub fn apply(&self, text: &str) -> Result<String, Error> {
        let name = format!("apply-{:?}.yaml", std::thread::current().id());
        let path = self.dir.join(&name);
        fs::write(&path, text).doing(|| path.display().to_string())?;
        let done = self.kubectl(["apply", "-f", &format!("{KUBE_DIR}/{name}")]);
        let _ = fs::remove_file(&path);
        done
    }

    /// A new token of a service account, good for `seconds` (the server's least is 600), as kubelets
    /// put it into pods.
    ///
    /// # Errors
    /// There is no such service account.
    pub fn service_account_token(
        &self,
        namespace: &str,
        name: &str,
        seconds: u64,
    ) -> Result<String, Error> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds},
        });
        let answer = self.admin.create(&path, &request)?;
        let token = answer.pointer("/status/token").and_then(Value::as_str);
        token
            .map(String::from)
            .ok_or_else(|| Error::Bad(format!("POST {path}: no token in {answer}")))
    }

    /// Every request that flanneld (service account `flannel` of `kube-flannel`) has made so far, in order of their
    /// answers; a watch is there from its beginning.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn requests(&self) -> Result<Vec<Request>, Error> {
        audit::read(&self.dir)
    }

    /// How often the API server was asked for what, by whomever: `LIST nodes`, `WATCH nodes`, `PATCH nodes/status`, …
    ///
    /// # Errors
    /// It does not answer.
    pub fn request_counts(&self) -> Result<BTreeMap<String, u64>, Error> {
        let answer = self.admin.request("GET", "/metrics", "", None)?;
        Ok(audit::counts(answer.body.as_str().unwrap_or_default()))
    }

    /// The network config that flannelds read, as the ConfigMap would give it to them.
    pub(crate) fn put_config(&self, text: &str) -> Result<(), Error> {
        let (path, half) = (self.dir.join(NET_CONF), self.dir.join(".net-conf"));
        fs::write(&half, text)
            .and_then(|()| fs::rename(&half, &path))
            .doing(|| path.display().to_string())
    }

    pub(crate) fn delete_config(&self) -> Result<(), Error> {
        let path = self.dir.join(NET_CONF);
        fs::remove_file(&path).doing(|| path.display().to_string())
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn log_dir(&self) -> &Path {
        &self.log
    }

    pub(super) fn networks(&self) -> &Networks {
        &self.networks
    }

    /// What a flanneld outside of any pod must be told; and `NODE_NAME`, which the lab always sets.
    pub fn flanneld_args(&self) -> Vec<String> {
        vec![
            "--kube-subnet-mgr".into(),
            format!("--kubeconfig-file={}", self.kubeconfig(&Who::Flannel)),
            format!("--net-config-path={KUBE_DIR}/{NET_CONF}"),
        ]
    }

    /// What one of its programs has written so far: `kube-apiserver`, `kube-controller-manager`, `kube-scheduler`.
    pub fn log(&self, program: &str) -> String {
        let text = fs::read(self.log.join(program)).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// The network config's file, in [`KUBE_DIR`].
const NET_CONF: &str = "net-conf.json";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
