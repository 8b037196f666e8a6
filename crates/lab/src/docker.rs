//! A real docker on a node: its daemon with containerd and shims, images, containers.
//!
//! It has a mount namespace of its own over all its restarts, in which `/proc` shows the lab's
//! processes and `/sys/fs/cgroup` is cgroup v2, whatever the machine uses. All that it starts is in
//! one cgroup, which ends it: containers and shims survive their daemon.

use std::fs::File;
use std::net::IpAddr;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::ground::Ground;
use crate::process::Process;
use crate::{Error, Namespace, programs, wait_for};

/// How long the daemon may take to answer, or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// `$1`: the cgroup. `/etc/docker` is where some versions write a key.
const MOUNTS: &str = r#"
mount -t proc proc /proc
[ -d /sys/fs/cgroup ] && mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir "/sys/fs/cgroup$1/daemon"
[ ! -d /etc/docker ] || mount -t tmpfs tmpfs /etc/docker
mkdir /run/dockerd
echo '{}' >/run/dockerd/daemon.json
"#;

/// `$1`: the cgroup; then the daemon's arguments. It is not in the group itself, for only
/// groups without processes can limit those below them.
const START: &str = r#"
echo 0 >"/sys/fs/cgroup$1/daemon/cgroup.procs"
group=$1
shift
exec dockerd --cgroup-parent="$group" "$@"
"#;

/// `$1`: the image's name.
const IMPORT: &str = r#"
tree=/run/dockerd/busybox
mkdir -p $tree/bin $tree/tmp
busybox=$(command -v busybox)
cp "$busybox" $tree/bin/busybox
for applet in $("$busybox" --list); do
	[ "$applet" = busybox ] || ln -sf busybox $tree/bin/"$applet"
done
tar -C $tree -c . | docker import - "$1"
rm -r $tree
"#;

/// A docker, running or not. Dropping it ends its containers too.
#[derive(Debug)]
pub struct Docker {
    // Dropped in this order: the daemon, what it leaves, where they were.
    process: Mutex<Option<Process>>,
    cgroup: Cgroup,
    place: Namespace,
    node: Namespace,
    log: PathBuf,
}

impl Docker {
    pub(crate) fn new(node: &Namespace, ground: &Ground) -> Result<Docker, Error> {
        programs::require(&["dockerd", "docker", "containerd", "runc"])?;
        let cgroup = Cgroup::new(&format!("{}-docker", node.name()))?;
        let place = node.with_own_mounts(&format!("{}-docker", node.name()))?;
        place.exec(["sh", "-euc", MOUNTS, "sh", cgroup.path()])?;
        Ok(Docker {
            process: Mutex::default(),
            cgroup,
            log: ground.dir().join(format!("log/{}", place.name())),
            place,
            node: node.clone(),
        })
    }

    /// Starts the daemon with `args` after those that keep it inside the node, and waits until it
    /// answers. Without `--config-file` in `args`, it reads an empty one.
    ///
    /// # Errors
    /// It cannot be started, ends, or does not answer in time: with the end of its log.
    pub fn start<S: AsRef<str>>(&self, args: &[S]) -> Result<(), Error> {
        let mut command = Command::new("sh");
        command.args(["-euc", START, "sh", self.cgroup.path()]);
        command.args([
            "--data-root=/run/dockerd/data",
            "--exec-root=/run/dockerd/exec",
            "--pidfile=/run/dockerd/pid",
            "--host=unix:///run/docker.sock",
            "--storage-driver=vfs",
        ]);
        if !args.iter().any(|a| a.as_ref().starts_with("--config-file")) {
            command.arg("--config-file=/run/dockerd/daemon.json");
        }
        command.args(args.iter().map(AsRef::as_ref));
        let process = Process::start(self.place.name(), &self.place, &mut command, &self.log)?;
        let ended = wait_for("dockerd answers", PATIENCE, || {
            if let Err(e) = process.must_run() {
                return Ok(Err(e));
            }
            match self.ctl(["version"]) {
                Ok(_) => Ok(Ok(())),
                Err(e) => Err(format!("{e}; its log ends with:\n{}", process.log_tail(20))),
            }
        })?;
        *self.process() = Some(process);
        ended
    }

    /// `SIGTERM`, and waits for the end. With `--live-restore` the containers go on.
    ///
    /// # Errors
    /// It does not run or did not end.
    pub fn stop(&self) -> Result<ExitStatus, Error> {
        let process = self.process().take();
        let process = process.ok_or_else(|| self.not_running())?;
        process.signal(Signal::SIGTERM)?;
        process.wait(PATIENCE)
    }

    /// `SIGKILL` for the daemon alone.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill9(&self) -> Result<ExitStatus, Error> {
        let process = self.process().take();
        process.ok_or_else(|| self.not_running())?.kill9()
    }

    /// Runs the `docker` command; returns what it says.
    ///
    /// # Errors
    /// It fails.
    pub fn ctl<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<String, Error> {
        self.place.exec(
            [
                "env",
                "DOCKER_HOST=unix:///run/docker.sock",
                "DOCKER_CONFIG=/run/dockerd/client",
                "docker",
            ]
            .into_iter()
            .chain(args),
        )
    }

    /// Makes an image of the machine's own busybox, which must be a static one.
    ///
    /// # Errors
    /// There is no busybox, or docker refuses it.
    pub fn import_busybox(&self, image: &str) -> Result<(), Error> {
        programs::require(&["busybox", "tar"])?;
        let environment = "DOCKER_HOST=unix:///run/docker.sock";
        self.place
            .exec(["env", environment, "sh", "-euc", IMPORT, "sh", image])
            .map(drop)
    }

    /// Starts a container called `name`, with `options` of `docker run` before the image.
    ///
    /// # Errors
    /// docker refuses it, or it has no address.
    pub fn run(
        &self,
        name: &str,
        options: &[&str],
        image: &str,
        argv: &[&str],
    ) -> Result<Container, Error> {
        let mut args = vec!["run", "--detach", "--name", name];
        args.extend(options.iter().chain(&[image]).chain(argv));
        self.ctl(args)?;
        self.container(name)
    }

    /// The running container called `name`.
    ///
    /// # Errors
    /// There is none, or it has no address.
    pub fn container(&self, name: &str) -> Result<Container, Error> {
        let said = self.ctl(["inspect", "--format", "{{json .NetworkSettings}}", name])?;
        let network: Value = serde_json::from_str(&said).unwrap_or_default();
        let text = |key: &str| network[key].as_str().unwrap_or_default().to_string();
        let bad = || {
            Error::Bad(format!(
                "{name}: no running container with an address: {said}"
            ))
        };
        let ip = text("IPAddress").parse().map_err(|_| bad())?;
        let key = text("SandboxKey");
        let net: OwnedFd = self
            .place
            .run(|| File::open(&key))?
            .map_err(|_| bad())?
            .into();
        let full = format!("{}-{name}", self.node.name());
        Ok(Container {
            name: name.into(),
            ip,
            place: self.node.with_network(&full, net),
        })
    }

    /// Runs a program inside a container, with the container's files.
    ///
    /// # Errors
    /// It fails.
    pub fn exec(&self, container: &Container, argv: &[&str]) -> Result<String, Error> {
        let args = ["exec", &container.name].into_iter();
        self.ctl(args.chain(argv.iter().copied()))
    }

    /// The last `lines` of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        crate::process::tail(&self.log, lines)
    }

    fn not_running(&self) -> Error {
        Error::Bad(format!("{} is not running", self.place.name()))
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A container on docker's default bridge. It dereferences to its network with the *node's* files;
/// [`Docker::exec`] runs programs in it whole.
#[derive(Debug)]
pub struct Container {
    name: String,
    ip: IpAddr,
    place: Namespace,
}

impl Container {
    /// Its address on the bridge.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }
}

impl Deref for Container {
    type Target = Namespace;
    fn deref(&self) -> &Namespace {
        &self.place
    }
}
