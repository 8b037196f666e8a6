//! A node with a kubelet: every namespace and every path of it is its own, so that the programs
//! and manifests that people use run unchanged.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;

use super::access::Who;
use super::images::{BOX_IMAGE, BUSYBOX};
use crate::cgroup::Cgroup;
use crate::error::Doing;
use crate::process::Process;
use crate::{Error, KUBE_BIN_DIR, KUBE_DIR, Namespace, privilege, programs, wait_for};

const HOLD: &str = include_str!("node/hold.sh");
const ENTER: &str = include_str!("node/enter.sh");
const BOOT: &str = include_str!("node/boot.sh");
const JOIN: &str = include_str!("node/join.sh");

/// How long a step may take on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(60);

const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// containerd and kubelet of one node. Dropping it kills them and every pod.
#[derive(Debug)]
pub struct Kubelet {
    place: Namespace,
    log: PathBuf,
    ips: Vec<IpAddr>,
    // Dropped in this order: what runs before what it runs in.
    kubelet: Mutex<Option<Process>>,
    containerd: Mutex<Option<Process>>,
    _init: Process,
    _cgroup: Cgroup,
}

/// Whether kubelets can run here, before anything is built for them.
///
/// # Errors
/// [`Error::Needs`]: what is missing, and what to do.
pub fn check_kubelets() -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() || privilege::user_namespace() {
        let why = "kubelets need the machine's real root: cgroups, overlay mounts, devices";
        return Err(Error::Needs(why.into()));
    }
    programs::require(&["unshare", "containerd", "ctr", "runc"])?;
    for (file, package) in [
        (BUSYBOX, "busybox-static"),
        ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ] {
        if !Path::new(file).exists() {
            return Err(Error::Needs(format!(
                "{file} is not there: `make install-tools` does it, or: apt-get install {package}"
            )));
        }
    }
    Ok(())
}

impl Kubelet {
    /// Makes a whole machine of the node `wires`: host name, processes, cgroups, files. Nothing runs in it yet.
    pub(crate) fn boot(
        wires: &Namespace,
        log: &Path,
        ips: Vec<IpAddr>,
    ) -> Result<(Namespace, Kubelet), Error> {
        let cgroup = Cgroup::kept_by(HOLD, wires.name())?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c", ENTER])
            .args(["enter", BOOT, cgroup.path(), wires.name()]);
        let name = format!("{}-boot", wires.name());
        let init = Process::start(&name, wires, &mut command, &log.join(&name))?;
        let first = wait_for(&format!("{} has booted", wires.name()), PATIENCE, || {
            if let Err(e) = init.must_run() {
                return Ok(Err(e));
            }
            first_process(init.pid())
                .map(Ok)
                .ok_or_else(|| init.log_tail(5))
        })??;
        let place = Namespace::of_process(wires.name(), first, wires)?;
        let kubelet = Kubelet {
            place: place.clone(),
            log: log.into(),
            ips,
            kubelet: Mutex::default(),
            containerd: Mutex::default(),
            _init: init,
            _cgroup: cgroup,
        };
        kubelet.write("/etc/kubernetes/kubelet.yaml", &kubelet.config())?;
        kubelet.write("/etc/containerd/config.toml", &containerd_config())?;
        Ok((place, kubelet))
    }

    /// Starts containerd, gives it the images of tests, and starts kubelet.
    pub(crate) fn start(&self, images: &[PathBuf]) -> Result<(), Error> {
        self.start_containerd()?;
        images.iter().try_for_each(|image| self.import(image))?;
        self.start_kubelet()
    }

    /// Starts containerd and waits until it answers.
    ///
    /// # Errors
    /// It cannot be started, or ends.
    pub fn start_containerd(&self) -> Result<(), Error> {
        let config = "--config=/etc/containerd/config.toml";
        let process = self.run("containerd", &["containerd", config])?;
        wait_for(
            &format!("{}: containerd answers", self.place.name()),
            PATIENCE,
            || {
                if let Err(e) = process.must_run() {
                    return Ok(Err(e));
                }
                match self.place.run(|| UnixStream::connect(CONTAINERD)) {
                    Ok(Ok(_)) => Ok(Ok(())),
                    Ok(Err(e)) => Err(format!("{CONTAINERD}: {e}")),
                    Err(e) => Err(e.to_string()),
                }
            },
        )??;
        *lock(&self.containerd) = Some(process);
        Ok(())
    }

    /// Starts kubelet. That its Node is there shows in the API.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_kubelet(&self) -> Result<(), Error> {
        let name = self.place.name();
        let ips: Vec<String> = self.ips.iter().map(IpAddr::to_string).collect();
        let argv = [
            &format!("{KUBE_BIN_DIR}/kubelet"),
            "--config=/etc/kubernetes/kubelet.yaml",
            &format!(
                "--kubeconfig={KUBE_DIR}/{}",
                Who::Kubelet(name.into()).file()
            ),
            &format!("--hostname-override={name}"),
            &format!("--node-ip={}", ips.join(",")),
            "--v=2",
        ];
        *lock(&self.kubelet) = Some(self.run("kubelet", &argv)?);
        Ok(())
    }

    /// `SIGKILL` for containerd, and a new one, which reads its configuration again; the pods run on.
    ///
    /// # Errors
    /// As [`Kubelet::start_containerd`], or the system refused it.
    pub fn restart_containerd(&self) -> Result<(), Error> {
        if let Some(process) = lock(&self.containerd).take() {
            process.kill9()?;
        }
        self.start_containerd()
    }

    /// `SIGKILL` for kubelet; containerd and the pods run on.
    ///
    /// # Errors
    /// The system refused it.
    pub fn kill_kubelet(&self) -> Result<(), Error> {
        match lock(&self.kubelet).take() {
            Some(process) => process.kill9().map(drop),
            None => Ok(()),
        }
    }

    /// Gives containerd an image: an archive as `docker save` or `ctr images export` writes it.
    ///
    /// # Errors
    /// The file cannot be read, or containerd refuses it.
    pub fn import(&self, file: &Path) -> Result<(), Error> {
        let archive = File::open(file).doing(|| file.display().to_string())?;
        let mut command = Command::new("ctr");
        command
            .args(["--namespace=k8s.io", "images", "import", "-"])
            .stdin(archive)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = self.place.spawn(&mut command)?;
        let output = child.wait_with_output().doing(|| "wait for ctr".into())?;
        match output.status.success() {
            true => Ok(()),
            false => Err(Error::Command {
                place: self.place.name().into(),
                command: format!("ctr images import {}", file.display()),
                status: output.status.to_string(),
                output: String::from_utf8_lossy(&output.stderr).into_owned(),
            }),
        }
    }

    /// What `kubelet` or `containerd` has written so far.
    pub fn log(&self, program: &str) -> String {
        let file = self.log.join(format!("{}-{program}", self.place.name()));
        String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()
    }

    /// The network namespace of a pod's container on this node, by the pod's UID. Programs that are started in it
    /// see the node's files.
    ///
    /// # Errors
    /// No process of such a pod runs here.
    pub(crate) fn pod(&self, name: &str, uid: &str) -> Result<Namespace, Error> {
        // Its files, our process numbers.
        let cgroups = Path::new("/sys/fs/cgroup");
        let process = self
            .place
            .run(|| pod_process(cgroups, &format!("pod{uid}")))?;
        let lacks = || Error::Bad(format!("{}: no process of pod {name}", self.place.name()));
        let net = format!("/proc/{}/ns/net", process.ok_or_else(lacks)?);
        let net = File::open(&net).doing(|| format!("pod {name}: {net}"))?;
        let pod = self.place.with_network(name, net.into());
        // For pings without the right to send any packet whatsoever.
        pod.sysctl(&[("net/ipv4/ping_group_range", "0 0")])?;
        Ok(pod)
    }

    fn run(&self, name: &str, argv: &[&str]) -> Result<Process, Error> {
        let mut command = Command::new("sh");
        command.args(["-c", JOIN, "join"]).args(argv);
        let name = format!("{}-{name}", self.place.name());
        Process::start(&name, &self.place, &mut command, &self.log.join(&name))
    }

    fn write(&self, path: &str, text: &str) -> Result<(), Error> {
        let write = || {
            fs::create_dir_all(Path::new(path).parent().unwrap_or(Path::new("/")))?;
            fs::write(path, text)
        };
        self.place
            .run(write)?
            .doing(|| format!("{}: {path}", self.place.name()))
    }

    fn config(&self) -> String {
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
            "address": if self.ips.iter().any(IpAddr::is_ipv6) { "::" } else { "0.0.0.0" },
            "healthzBindAddress": "127.0.0.1",
            "readOnlyPort": 0,
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "enforceNodeAllocatable": [],
            "failSwapOn": false,
            "resolvConf": "/etc/kubernetes/resolv.conf",
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        });
        format!("{config:#}\n")
    }
}

fn containerd_config() -> String {
    format!(
        r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{BOX_IMAGE}"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd/opt"
"#
    )
}

/// A process below the cgroup of that name.
fn pod_process(dir: &Path, cgroup: &str) -> Option<u32> {
    let below: Vec<PathBuf> = fs::read_dir(dir)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    let found = |path: &PathBuf| path.file_name().is_some_and(|name| name == cgroup);
    match below.iter().find(|path| found(path)) {
        Some(pod) => any_process(pod),
        None => below.iter().find_map(|path| pod_process(path, cgroup)),
    }
}

fn any_process(dir: &Path) -> Option<u32> {
    let processes = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let own = processes.lines().find_map(|pid| pid.parse().ok());
    own.or_else(|| {
        let below = fs::read_dir(dir).ok()?.flatten();
        below
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .find_map(|entry| any_process(&entry.path()))
    })
}

/// The process id of the only child of `unshare`, once it does nothing but wait.
fn first_process(unshare: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
    let child: u32 = children.split_whitespace().next()?.parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
    (name.trim() == "sleep").then_some(child)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
