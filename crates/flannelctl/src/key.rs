//! `flannelctl key`: the WireGuard key of this node.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand};
use flanneld::identity::public_key;
use flanneld::wg_key_file;

use crate::check::settings::variable_of_daemon;
use crate::cleanup::daemons::running;

/// What is done with the key.
#[derive(Subcommand)]
pub(crate) enum KeyCommand {
    /// Print the public key
    Show(KeyArgs),
    /// Make a new key, with traffic running
    ///
    /// flanneld notices the new file within two seconds, uses the key and publishes it; the other nodes follow.
    /// Packets wait meanwhile: as long as the store takes to pass the key on. Without a flanneld on this host the
    /// next one uses it.
    Rotate(KeyArgs),
}

/// Where the key is.
#[derive(Args)]
pub(crate) struct KeyArgs {
    /// The key file (default: that of the flanneld of this host, which WIREGUARD_KEY_FILE names; else
    /// /var/lib/flannel/wgkey and /run/flannel/wgkey)
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Does it.
///
/// # Errors
/// No file can be read or written.
pub(crate) fn run(command: &KeyCommand) -> Result<ExitCode> {
    match command {
        KeyCommand::Show(args) => {
            let Some(key) = wg_key_file::read(&places(args)?).map_err(|error| anyhow!(error))?
            else {
                bail!(
                    "this node has no WireGuard key: flanneld makes one when the network's backend is wireguard"
                );
            };
            key.warnings
                .iter()
                .for_each(|text| crate::output::problem(text));
            crate::output::line(&public_key(&key.secret).to_string());
        }
        KeyCommand::Rotate(args) => {
            let (secret, written) =
                wg_key_file::replace(&places(args)?).map_err(|error| anyhow!(error))?;
            for path in written {
                crate::output::line(&format!("wrote {}", path.display()));
            }
            crate::output::line(&format!("public key: {}", public_key(&secret)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the daemon of this host has its key. One in a container has files of its own.
fn places(args: &KeyArgs) -> Result<Vec<PathBuf>> {
    if let Some(file) = &args.file {
        return Ok(vec![file.clone()]);
    }
    let daemon = running()?.first().map(|daemon| daemon.pid);
    let named = variable_of_daemon(daemon, wg_key_file::VARIABLE)?;
    let places = wg_key_file::places(named.map(PathBuf::from));
    let root = daemon.map(|pid| PathBuf::from(format!("/proc/{pid}/root")));
    Ok(match root.filter(|root| root.join("proc").exists()) {
        Some(root) => places.iter().map(|path| below(&root, path)).collect(),
        None => places,
    })
}

fn below(root: &Path, path: &Path) -> PathBuf {
    match path.strip_prefix("/") {
        Ok(rest) => root.join(rest),
        Err(_) => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_s_files_are_below_its_root() {
        let root = Path::new("/proc/7/root");
        assert_eq!(
            below(root, Path::new("/run/flannel/wgkey")),
            Path::new("/proc/7/root/run/flannel/wgkey")
        );
        assert_eq!(below(root, Path::new("wgkey")), Path::new("wgkey"));
    }
}
