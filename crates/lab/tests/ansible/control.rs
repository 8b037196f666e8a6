//! The control machine: Ansible, certificates, and what is to be installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Our own files, from which nothing is built: only run from a checkout.
pub(crate) const CHECKOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// The control machine's files; removed when dropped.
pub(crate) struct Control {
    pub(crate) dir: PathBuf,
    /// Where ansible-playbook is.
    pub(crate) bin: PathBuf,
}

impl Control {
    pub(crate) fn new() -> Control {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir =
            std::env::temp_dir().join(format!("flannel-ansible-{}-{next}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("ansible.cfg"), "[defaults]\n").unwrap();
        let mut control = Control {
            dir,
            bin: PathBuf::new(),
        };
        control.bin = control.tool("ansible");
        control
    }

    /// What a script of ours provides: the path that it prints.
    pub(crate) fn tool(&self, script: &str) -> PathBuf {
        let output = Command::new(format!("{CHECKOUT}/scripts/{script}"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "scripts/{script}: {said}");
        String::from_utf8_lossy(&output.stdout).trim().into()
    }

    /// A file of the control machine.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// One of Ansible's programs, with nothing of this machine's own settings.
    pub(crate) fn ansible(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        for (name, value) in [
            ("ANSIBLE_NOCOLOR", "1"),
            ("ANSIBLE_PIPELINING", "1"),
            (
                "ANSIBLE_ROLES_PATH",
                &format!("{CHECKOUT}/deploy/ansible/roles"),
            ),
            (
                "ANSIBLE_CONNECTION_PLUGINS",
                concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ansible"),
            ),
            // No __pycache__ in the work tree.
            ("PYTHONDONTWRITEBYTECODE", "1"),
        ] {
            command.env(name, value);
        }
        command.env("ANSIBLE_HOME", self.dir.join("home"));
        command.env("ANSIBLE_CONFIG", self.dir.join("ansible.cfg"));
        command
    }

    /// Under the names that the guide gives them.
    pub(crate) fn certificates(&self, from: &Path) {
        let certs = self.dir.join("certs");
        fs::create_dir_all(&certs).unwrap();
        for (name, to) in [
            ("ca.pem", "ca-etcd.pem"),
            ("flanneld.pem", "cert-etcd.pem"),
            ("flanneld-key.pem", "cert-etcd-key.pem"),
        ] {
            fs::copy(from.join(name), certs.join(to)).unwrap();
        }
        fs::write(certs.join("ca-etcd-key.pem"), "not needed by flanneld\n").unwrap();
    }

    /// The programs under test, without what only a debugger reads: machines' files are memory.
    pub(crate) fn programs(&self) {
        let programs = self.dir.join("programs");
        fs::create_dir_all(&programs).unwrap();
        let built = lab::flannel_bin_dir().unwrap();
        for name in ["flanneld", "flannelctl", "flannel"] {
            let strip = Command::new("strip")
                .arg("-o")
                .arg(programs.join(name))
                .arg(built.join(name))
                .output()
                .unwrap();
            assert!(
                strip.status.success(),
                "{}",
                String::from_utf8_lossy(&strip.stderr)
            );
        }
        let script = "mk-docker-opts.sh";
        fs::copy(format!("{CHECKOUT}/dist/{script}"), programs.join(script)).unwrap();
    }

    /// The package, of the same programs.
    pub(crate) fn package(&self) {
        let mut deb = Command::new(format!("{CHECKOUT}/dist/packages"));
        deb.arg("-o").arg(&self.dir).arg("deb");
        deb.env("BIN_DIR", self.dir.join("programs"));
        let output = deb.env("PACKAGE_COMPRESSION", "none").output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let made = String::from_utf8_lossy(&output.stdout);
        fs::rename(made.trim(), self.path("flannel.deb")).unwrap();
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
