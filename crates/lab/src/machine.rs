//! A whole machine on a node's network: a bare Debian with systemd as its first process, for what
//! only shows there: units, packages, whatever configures machines from afar.
//!
//! It has namespaces of its own of every kind but the network, which is its node's, and the user
//! one. Its files are an overlay in memory over a directory made once ([`debian_root`]).

mod root;

use std::fs;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub use root::{Debian, debian_root};

use crate::cgroup::Cgroup;
use crate::error::Doing;
use crate::process::Process;
use crate::{Error, Namespace, Node, privilege, programs, wait_for};

const ENTER: &str = include_str!("machine/enter.sh");
const BOOT: &str = include_str!("machine/boot.sh");

/// How long systemd may take to have started everything.
const BOOTED: Duration = Duration::from_secs(60);

/// A running Debian with systemd. It dereferences to its [`Namespace`]:
/// `machine.exec(["systemctl", "start", "flanneld"])`. Programs started so see the machine's files,
/// processes, host name and network, and none of this process's environment. Dropping it kills
/// all of it; so does the end of this process.
///
/// The lab's shared directory is at `/run/lab`, as on a node; so are the programs under test, in
/// `/run/lab/bin`. Everything else is Debian's and the machine's own, and may be changed.
#[derive(Debug)]
pub struct Machine {
    place: Namespace,
    // Dropped in this order: the processes before their cgroup.
    _init: Process,
    _cgroup: Cgroup,
}

impl Machine {
    /// Boots a machine with Debian 12 on the network of `node`, whose name it bears, and waits until systemd has
    /// started everything, without a failure.
    ///
    /// # Errors
    /// As [`Machine::boot_release`].
    pub fn boot(node: &Node) -> Result<Machine, Error> {
        Machine::boot_release(node, Debian::Bookworm)
    }

    /// Boots a machine as [`Machine::boot`] does, with that release of Debian.
    ///
    /// # Errors
    /// [`Error::Needs`]: not the computer's root, or something is missing. [`Error::Timeout`]
    /// names the units that failed or hang.
    pub fn boot_release(node: &Node, release: Debian) -> Result<Machine, Error> {
        if !nix::unistd::geteuid().is_root() || privilege::user_namespace() {
            return Err(Error::Needs(
                "a machine needs the computer's real root: systemd and dpkg want all users and groups".into(),
            ));
        }
        programs::require(&["unshare", "setpriv", "pivot_root"])?;
        let root = debian_root(release)?;
        let cgroup = Cgroup::new(node.name())?;
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                ENTER,
                "enter",
                BOOT,
            ])
            .arg(cgroup.path())
            .arg(&root)
            .arg(node.name());
        let name = format!("{}-machine", node.name());
        let log = node.shared_dir().join("log").join(&name);
        let init = Process::start(&name, node, &mut command, &log)?;
        let first = wait_for("systemd runs", BOOTED, || {
            init.must_run().map_err(|e| e.to_string())?;
            first_process(init.pid()).ok_or_else(|| init.log_tail(5))
        })?;
        let machine = Machine {
            place: Namespace::of_process(node.name(), first, node)?,
            _init: init,
            _cgroup: cgroup,
        };
        machine.wait_booted()?;
        Ok(machine)
    }

    fn wait_booted(&self) -> Result<(), Error> {
        wait_for("systemd has started everything", BOOTED, || {
            let state = self.output(["systemctl", "is-system-running"]);
            let state = state.map_err(|e| e.to_string())?;
            let state = String::from_utf8_lossy(&state.stdout).trim().to_string();
            if state == "running" {
                return Ok(());
            }
            crate::wait::pause(Duration::from_millis(50));
            let units = self.exec([
                "systemctl",
                "list-units",
                "--failed",
                "--plain",
                "--no-legend",
            ]);
            let jobs = self.exec(["systemctl", "list-jobs", "--plain", "--no-legend"]);
            Err(format!(
                "{state:?}; failed: {}; still to do: {}",
                units.unwrap_or_default(),
                jobs.unwrap_or_default()
            ))
        })
    }

    /// Reads a file of the machine.
    ///
    /// # Errors
    /// With the machine's and the file's name.
    pub fn read(&self, path: &str) -> Result<String, Error> {
        self.run(|| fs::read_to_string(path))?
            .doing(|| format!("{}: {path}", self.name()))
    }

    /// Writes a file of the machine, mode 0644, and its directory.
    ///
    /// # Errors
    /// With the machine's and the file's name.
    pub fn write(&self, path: &str, text: &str) -> Result<(), Error> {
        self.put(path, 0o644, &mut text.as_bytes())
    }

    /// Copies a file of this computer into the machine, with its mode; makes the directory.
    ///
    /// # Errors
    /// With the file's name.
    pub fn copy_in(&self, file: &Path, to: &str) -> Result<(), Error> {
        let mut source = fs::File::open(file).doing(|| file.display().to_string())?;
        let mode = source.metadata().doing(|| file.display().to_string())?;
        self.put(to, mode.permissions().mode() & 0o7777, &mut source)
    }

    fn put(&self, path: &str, mode: u32, from: &mut (impl io::Read + Send)) -> Result<(), Error> {
        let write = || {
            fs::create_dir_all(Path::new(path).parent().unwrap_or(Path::new("/")))?;
            let mut options = fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(mode);
            let mut file = options.open(path)?;
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            io::copy(from, &mut file).map(drop)
        };
        self.run(write)?
            .doing(|| format!("{}: {path}", self.name()))
    }

    /// What a unit wrote to the journal, as plain lines.
    ///
    /// # Errors
    /// `journalctl` failed.
    pub fn journal(&self, unit: &str) -> Result<String, Error> {
        self.exec(["journalctl", "--no-pager", "--output=cat", "--unit", unit])
    }
}

impl Deref for Machine {
    type Target = Namespace;
    fn deref(&self) -> &Namespace {
        &self.place
    }
}

/// The process id of the only child of `unshare`, once it has become systemd.
fn first_process(unshare: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
    let child: u32 = children.split_whitespace().next()?.parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
    (name.trim() == "systemd").then_some(child)
}
