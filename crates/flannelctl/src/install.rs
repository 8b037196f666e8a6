//! `flannelctl install`: the CNI plugin goes to where container runtimes look for it. The image has
//! neither a shell nor `cp`, and a runtime must never find half a plugin.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use crate::output;

/// The plugin's name: what `"type": "flannel"` in a CNI configuration means.
const PLUGIN: &str = "flannel";

/// What is installed, and where.
#[derive(Args)]
pub(crate) struct Install {
    /// Where the container runtime looks for CNI plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub(crate) bin_dir: PathBuf,
    /// The plugin; otherwise the program `flannel` beside this one
    #[arg(long, value_name = "FILE")]
    pub(crate) plugin: Option<PathBuf>,
    /// A CNI configuration to remove if no network is up, so that the node does not claim to be
    /// ready for pods (flanneld puts it back in time)
    #[arg(long, value_name = "FILE")]
    pub(crate) withdraw_conf: Option<PathBuf>,
    /// Without this file no network is up
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/run/flannel/subnet.env",
        requires = "withdraw_conf"
    )]
    pub(crate) subnet_file: PathBuf,
}

/// Does what the command line says.
///
/// # Errors
/// A file cannot be read, written or removed; the message says which, and what to do.
pub(crate) fn run(what: &Install) -> Result<ExitCode> {
    let plugin = match &what.plugin {
        Some(path) => path.clone(),
        None => beside_this_program()?,
    };
    let target = what.bin_dir.join(PLUGIN);
    match put(&plugin, &target, 0o755)? {
        true => output::line(&format!("installed {}", target.display())),
        false => output::line(&format!("{} is up to date", target.display())),
    }
    if let Some(conf) = &what.withdraw_conf {
        withdraw(conf, &what.subnet_file)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn beside_this_program() -> Result<PathBuf> {
    let me = std::env::current_exe().context("cannot tell where flannelctl is: give --plugin")?;
    let plugin = me.with_file_name(PLUGIN);
    match plugin.is_file() {
        true => Ok(plugin),
        false => bail!("{} does not exist: give --plugin", plugin.display()),
    }
}

/// Puts a copy of `file` at `target` in one step, with these permissions, and returns whether it had to.
///
/// # Errors
/// A file cannot be read or written; the message names it.
pub(crate) fn put(file: &Path, target: &Path, mode: u32) -> Result<bool> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    if is_there(&bytes, target, mode) {
        return Ok(false);
    }
    let Some(dir) = target.parent() else {
        bail!("{} names no file", target.display());
    };
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    let write = || -> io::Result<()> {
        fs::create_dir_all(dir)?;
        // Not a name that a runtime could take for a plugin or a configuration.
        let mut new = tempfile::Builder::new()
            .prefix(".flannel-")
            .tempfile_in(dir)?;
        new.write_all(&bytes)?;
        new.as_file()
            .set_permissions(Permissions::from_mode(mode))?;
        new.as_file().sync_all()?;
        new.persist(target)?;
        File::open(dir)?.sync_all()
    };
    match write() {
        Ok(()) => Ok(true),
        // A file that is mounted by itself cannot be replaced, but written to.
        Err(error) if error.kind() == ErrorKind::ResourceBusy => fs::write(target, &bytes)
            .map(|()| true)
            .with_context(|| format!("cannot write {}", target.display())),
        Err(error) => {
            Err(anyhow!(error).context(format!("cannot install {}{}", target.display(), hint(dir))))
        }
    }
}

fn is_there(bytes: &[u8], target: &Path, mode: u32) -> bool {
    // By lstat: a link is replaced by what it should be.
    let found = fs::symlink_metadata(target).map(|m| (m.is_file(), m.mode() & 0o7777));
    matches!(found, Ok((true, there)) if there == mode)
        && fs::read(target).is_ok_and(|there| there == bytes)
}

/// A directory that was unpacked from an archive may belong to somebody who is nobody on this host;
/// then even root needs a capability to write to it, and the container has none to spare.
fn hint(dir: &Path) -> String {
    match dir.metadata() {
        Ok(meta) if meta.uid() != 0 => format!(
            " ({} belongs to user {}, not to root: chown root:root {} on the host)",
            dir.display(),
            meta.uid(),
            dir.display()
        ),
        _ => String::new(),
    }
}

/// Removes a CNI configuration that promises a network which is not there, such as that of the time
/// before a reboot.
fn withdraw(conf: &Path, subnet_file: &Path) -> Result<()> {
    match subnet_file.try_exists() {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot look at {}", subnet_file.display()));
        }
    }
    match fs::remove_file(conf) {
        Ok(()) => {
            output::line(&format!(
                "removed {}: the network is not up, there is no {}",
                conf.display(),
                subnet_file.display()
            ));
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => {
            let dir = conf.parent().unwrap_or(Path::new("/"));
            Err(anyhow!(error).context(format!("cannot remove {}{}", conf.display(), hint(dir))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        dir: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Host {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("plugin"), b"\x7fELF new").unwrap();
            Host { dir }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn put(&self) -> Result<bool> {
            put(&self.path("plugin"), &self.path("bin/flannel"), 0o755)
        }

        /// Name, mode and content of all that is in the plugins' directory.
        fn installed(&self) -> Vec<(String, u32, Vec<u8>)> {
            let entries = fs::read_dir(self.path("bin")).unwrap();
            entries
                .map(|entry| {
                    let entry = entry.unwrap();
                    let meta = fs::symlink_metadata(entry.path()).unwrap();
                    assert!(meta.is_file(), "{entry:?}");
                    let name = entry.file_name().into_string().unwrap();
                    (name, meta.mode() & 0o7777, fs::read(entry.path()).unwrap())
                })
                .collect()
        }
    }

    fn new_plugin() -> Vec<(String, u32, Vec<u8>)> {
        vec![("flannel".into(), 0o755, b"\x7fELF new".to_vec())]
    }

    #[test]
    fn a_plugin_is_put_where_there_is_none_an_older_one_or_a_link() {
        let host = Host::new();
        assert!(host.put().unwrap());
        assert_eq!(host.installed(), new_plugin());
        let inode = |host: &Host| fs::metadata(host.path("bin/flannel")).unwrap().ino();
        let first = inode(&host);
        assert!(!host.put().unwrap(), "the same plugin was written again");
        assert_eq!(inode(&host), first);

        // As a program that runs from there: what it is stays what it is.
        let running = File::open(host.path("bin/flannel")).unwrap();
        fs::write(host.path("plugin"), b"newer").unwrap();
        assert!(host.put().unwrap());
        assert_eq!(host.installed()[0].2, b"newer");
        assert_eq!(io::read_to_string(running).unwrap(), "\x7fELF new");

        fs::remove_file(host.path("bin/flannel")).unwrap();
        fs::write(host.path("elsewhere"), b"newer").unwrap();
        std::os::unix::fs::symlink(host.path("elsewhere"), host.path("bin/flannel")).unwrap();
        assert!(host.put().unwrap());
        assert_eq!(host.installed()[0].2, b"newer");
    }

    #[test]
    fn what_fails_names_the_file_and_leaves_nothing() {
        let host = Host::new();
        fs::create_dir_all(host.path("bin/flannel/in-the-way")).unwrap();
        let said = format!("{:#}", host.put().unwrap_err());
        assert!(said.contains("bin/flannel"), "{said}");
        assert_eq!(fs::read_dir(host.path("bin")).unwrap().count(), 1);

        fs::remove_file(host.path("plugin")).unwrap();
        let said = format!("{:#}", host.put().unwrap_err());
        assert!(
            said.contains("cannot read") && said.contains("plugin"),
            "{said}"
        );
    }

    #[test]
    fn a_configuration_is_withdrawn_only_while_no_network_is_up() {
        let host = Host::new();
        let (conf, subnet) = (host.path("10-flannel.conflist"), host.path("subnet.env"));
        fs::write(&conf, "{}").unwrap();
        fs::write(&subnet, "FLANNEL_SUBNET=10.244.0.1/24\n").unwrap();
        withdraw(&conf, &subnet).unwrap();
        assert!(conf.exists());

        fs::remove_file(&subnet).unwrap();
        withdraw(&conf, &subnet).unwrap();
        assert!(!conf.exists());
        withdraw(&conf, &subnet).unwrap();
    }
}
