//! What a backend must know of this node before its lease is taken.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use backend::{Identity, Need};
use model::object::Psk;
use model::{IfName, Mac, WgKey, WgSecret};
use tokio::task::JoinSet;
use tracing::info;

use crate::wg_key_file::{self, KeyOnFile};

/// What carries WireGuard's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Implementation {
    /// The kernel if it has WireGuard, else this process.
    #[default]
    Auto,
    /// The kernel.
    Kernel,
    /// This process.
    UserSpace,
}

impl Implementation {
    /// Reads the value of `-wireguard-implementation`.
    pub fn parse(text: &str) -> Option<Implementation> {
        match text {
            "auto" => Some(Implementation::Auto),
            "kernel" => Some(Implementation::Kernel),
            "userspace" => Some(Implementation::UserSpace),
            _ => None,
        }
    }
}

/// What the flags say of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyOptions {
    /// `-wireguard-implementation`.
    pub implementation: Implementation,
    /// `-wireguard-psk-file`.
    pub psk_file: Option<PathBuf>,
    /// Where this node's key is, the most important place first.
    pub key_files: Vec<PathBuf>,
    /// `-ipsec-psk-file`.
    pub ipsec_psk_file: Option<PathBuf>,
}

/// An answer, and what somebody should look into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The answer.
    pub identity: Identity,
    /// For the log.
    pub warnings: Vec<String>,
}

impl From<Identity> for Answer {
    fn from(identity: Identity) -> Answer {
        Answer {
            identity,
            warnings: Vec::new(),
        }
    }
}

/// The answers that were found, so that a command is run once a start.
#[derive(Default)]
pub struct Answers {
    last: Option<(Need, Identity)>,
}

impl Answers {
    /// Answers what a backend asks; `mac_of` reads the MAC of a device.
    ///
    /// # Errors
    /// What is wrong with this node's key, or how the command ended, and what helps.
    pub async fn find(
        &mut self,
        need: &Need,
        options: &KeyOptions,
        mac_of: impl Fn(&IfName) -> Option<Mac>,
    ) -> Result<Answer, String> {
        match need {
            Need::Nothing => Ok(Identity::Nothing.into()),
            Need::Macs(devices) => {
                let found = |family| devices.get(family).and_then(&mac_of);
                Ok(Identity::Macs(model::Dual::from_fn(found)).into())
            }
            Need::WgKey => wireguard(options),
            Need::Psk => ipsec_psk(options),
            Need::Command {
                name,
                line,
                env,
                limit,
            } => {
                if let Some((asked, answer)) = &self.last
                    && asked == need
                {
                    return Ok(answer.clone().into());
                }
                let printed = dataplane::run_command(line, &env.variables(), "", *limit).await;
                let printed = printed.map_err(|why| format!("Backend.{name} `{line}`: {why}"))?;
                info!("Backend.{name} printed {} bytes", printed.len());
                let answer = Identity::Data(printed.into());
                self.last = Some((need.clone(), answer.clone()));
                Ok(answer.into())
            }
        }
    }
}

/// The command whose output a changed configuration waits for. It runs beside everything else.
#[derive(Default)]
pub(crate) struct Asked {
    running: Option<(Need, JoinSet<Result<Answer, String>>)>,
}

impl Asked {
    /// Answers what a backend asks, as [`Answers::find`] does; `None` while the command runs.
    pub(crate) async fn find(
        &mut self,
        need: &Need,
        options: &KeyOptions,
        mac_of: impl Fn(&IfName) -> Option<Mac>,
    ) -> Option<Result<Answer, String>> {
        if !matches!(need, Need::Command { .. }) {
            return Some(Answers::default().find(need, options, mac_of).await);
        }
        if let Some((asked, running)) = &mut self.running
            && asked == need
        {
            let ended = running.try_join_next()?;
            self.running = None;
            return Some(ended.unwrap_or_else(|error| Err(error.to_string())));
        }
        let mut running = JoinSet::new();
        let (asked, options) = (need.clone(), options.clone());
        running
            .spawn_local(async move { Answers::default().find(&asked, &options, |_| None).await });
        self.running = Some((need.clone(), running));
        None
    }
}

/// Returns the keys of this node, and makes the one that nobody has yet.
fn wireguard(options: &KeyOptions) -> Result<Answer, String> {
    let key = wg_key_file::read_or_make(&options.key_files)?;
    let in_kernel = match options.implementation {
        Implementation::Auto => dataplane::has_wireguard(),
        Implementation::Kernel => true,
        Implementation::UserSpace => false,
    };
    let mut warnings = key.warnings;
    let preshared = preshared(options, &mut warnings)?;
    Ok(Answer {
        identity: wg_key(key.secret, preshared, in_kernel),
        warnings,
    })
}

/// Returns the secret of an IPsec network, if a file of this node has it.
///
/// # Errors
/// What is wrong with the file, and what helps.
pub fn ipsec_psk(options: &KeyOptions) -> Result<Answer, String> {
    const FLAG: &str = "-ipsec-psk-file";
    let Some(path) = &options.ipsec_psk_file else {
        return Ok(Identity::Psk(None).into());
    };
    let shown = path.display();
    let text = fs::read_to_string(path)
        .map_err(|error| format!("{FLAG} {shown}: cannot read it: {error}"))?;
    let psk = text.trim();
    if psk.len() < backend::LEAST_PSK {
        return Err(format!(
            "{FLAG} {shown}: it holds {} characters, and at least {} are needed (dd if=/dev/urandom count=48 bs=1 status=none | xxd -p -c 48 > {shown})",
            psk.len(),
            backend::LEAST_PSK
        ));
    }
    Ok(Answer {
        identity: Identity::Psk(Some(Psk(psk.into()))),
        warnings: is_open(FLAG, path).into_iter().collect(),
    })
}

/// Returns whether `identity` is read from files of this node.
pub(crate) fn is_in_files(identity: &Identity, options: &KeyOptions) -> bool {
    match identity {
        Identity::WgKey { .. } => true,
        Identity::Psk(_) => options.ipsec_psk_file.is_some(),
        Identity::Nothing | Identity::Macs(_) | Identity::Data(_) => false,
    }
}

/// Reads the keys of `before` again; what is in no file stays as it is. A key file that was deleted is written
/// again: the key is in use.
///
/// # Errors
/// What is wrong with a file, and what helps.
pub(crate) fn again(before: &Identity, options: &KeyOptions) -> Result<Identity, String> {
    let places = &options.key_files;
    if let Identity::Psk(_) = before {
        return ipsec_psk(options).map(|answer| answer.identity);
    }
    let Identity::WgKey {
        private, in_kernel, ..
    } = before
    else {
        return Ok(before.clone());
    };
    let mut key = wg_key_file::read(places)?.unwrap_or(KeyOnFile {
        secret: *private,
        warnings: Vec::new(),
    });
    wg_key_file::restore(places, &mut key);
    // The start has named what is not as it should be.
    let preshared = preshared(options, &mut Vec::new())?;
    Ok(wg_key(key.secret, preshared, *in_kernel))
}

/// Returns the identity of a node with this private key.
pub fn wg_key(private: WgSecret, preshared: Option<WgSecret>, in_kernel: bool) -> Identity {
    Identity::WgKey {
        private,
        public: public_key(&private),
        preshared,
        in_kernel,
    }
}

/// Returns the public key that belongs to a private one.
pub fn public_key(private: &WgSecret) -> WgKey {
    WgKey(proxy::Secret(private.0).public_key())
}

fn preshared(options: &KeyOptions, warnings: &mut Vec<String>) -> Result<Option<WgSecret>, String> {
    let Some(path) = &options.psk_file else {
        return Ok(None);
    };
    warnings.extend(is_open("-wireguard-psk-file", path));
    read_psk(path).map(Some)
}

fn read_psk(path: &Path) -> Result<WgSecret, String> {
    let shown = path.display();
    let text = fs::read_to_string(path)
        .map_err(|error| format!("-wireguard-psk-file {shown}: cannot read it: {error}"))?;
    text.parse()
        .map_err(|error| format!("-wireguard-psk-file {shown}: {error} (wg genpsk > {shown})"))
}

/// Returns a warning if others than the owner may read the file.
fn is_open(flag: &str, path: &Path) -> Option<String> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o7777;
    // A group is often meant: a Secret that is mounted for a pod.
    let open = mode & 0o007 != 0;
    let shown = path.display();
    open.then(|| {
        format!(
            "{flag} {shown}: its mode is {mode:o}, so that every user of this host may read it: chmod 400 {shown}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_followed_and_a_deleted_file_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let places = [dir.path().join("a/wgkey"), dir.path().join("b/wgkey")];
        let options = KeyOptions {
            key_files: places.to_vec(),
            ..KeyOptions::default()
        };
        let key = wg_key_file::read_or_make(&places).unwrap();
        let before = wg_key(key.secret, None, true);
        assert_eq!(again(&before, &options), Ok(before.clone()));
        for path in &places {
            fs::remove_file(path).unwrap();
        }
        assert_eq!(again(&before, &options), Ok(before.clone()));
        assert_eq!(wg_key_file::read(&places), Ok(Some(key)));
        let (secret, _) = wg_key_file::replace(&places).unwrap();
        let now = again(&before, &options);
        assert_eq!(now, Ok(wg_key(secret, None, true)));
        fs::remove_file(&places[0]).unwrap();
        fs::write(&places[0], "nonsense").unwrap();
        assert!(again(&before, &options).is_err());
        assert_eq!(again(&Identity::Nothing, &options), Ok(Identity::Nothing));
    }

    #[test]
    fn a_psk_file_is_read_and_what_is_wrong_with_it_is_said_without_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("psk");
        let missing = read_psk(&path).unwrap_err();
        assert!(missing.contains("-wireguard-psk-file") && missing.contains("cannot read it"));
        fs::write(&path, "nonsense").unwrap();
        let bad = read_psk(&path).unwrap_err();
        assert!(
            bad.contains("wg genpsk") && !bad.contains("nonsense"),
            "{bad}"
        );
        fs::write(&path, format!("{}\n", WgSecret([7; 32]).to_file())).unwrap();
        assert_eq!(read_psk(&path), Ok(WgSecret([7; 32])));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(is_open("-f", &path).unwrap().contains("644"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
        assert_eq!(is_open("-f", &path), None);
        // IPsec's secret is longer.
        let options = KeyOptions {
            ipsec_psk_file: Some(path.clone()),
            ..KeyOptions::default()
        };
        let short = ipsec_psk(&options).unwrap_err();
        assert!(
            short.contains("-ipsec-psk-file") && short.contains("at least 96"),
            "{short}"
        );
        let secret = "x".repeat(96);
        fs::write(&path, format!("{secret}\n")).unwrap();
        let psk = Identity::Psk(Some(Psk(secret.into())));
        assert_eq!(ipsec_psk(&options).unwrap().identity, psk);
        assert_eq!(again(&Identity::Psk(None), &options), Ok(psk.clone()));
        assert!(!format!("{psk:?}").contains("xxx"));
    }
}
