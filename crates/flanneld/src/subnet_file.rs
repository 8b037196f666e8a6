//! `subnet.env`: what container runtimes, the CNI plugin and `mk-docker-opts.sh` read.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use model::{Dual, NetConfig, SubnetKey, subnet};

use crate::whole_file;
pub use crate::withdraw::withdrawn;

/// The subnet file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("-subnet-file {path}: {what}: {error}", path = path.display())]
pub struct SubnetFileError {
    path: PathBuf,
    what: &'static str,
    error: io::Error,
}

/// The last line: says that this flannel wrote the file, and not another one. Whoever reads the file
/// skips it as a comment.
const MARKER: &str = "# flannel-rs";

/// The text of `subnet.env`.
pub fn render(config: &NetConfig, key: &SubnetKey, mtu: u32, ip_masq: bool) -> String {
    let mut text = String::new();
    for (family, pool) in config.pools.iter() {
        let infix = match family {
            model::Family::V4 => "",
            model::Family::V6 => "IPV6_",
        };
        if let Some(net) = key.nets().get(family) {
            text += &format!("FLANNEL_{infix}NETWORK={}\n", pool.network);
            text += &format!("FLANNEL_{infix}SUBNET={}\n", subnet::gateway(net));
        }
    }
    text + &format!("FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ={ip_masq}\n{MARKER}\n")
}

/// Writes the file, if it is not so already; returns whether it wrote.
///
/// # Errors
/// Names the flag, the path and what could not be done.
pub fn write(path: &Path, text: &str) -> Result<bool, SubnetFileError> {
    let wrote =
        whole_file::write(path, text.as_bytes()).map_err(|(what, error)| SubnetFileError {
            path: path.to_owned(),
            what,
            error,
        })?;
    // If it cannot be deleted, it is read again at a later start, which is harmless.
    let _ = fs::remove_file(withdrawn(path));
    Ok(wrote)
}

/// Returns where it is kept which commands were run for peers: `commands` beside `subnet.env`, and for a
/// subnet file of another name its name with the ending `.commands`.
pub fn command_journals(subnet_file: &Path) -> PathBuf {
    if subnet_file.file_name() == Some("subnet.env".as_ref()) {
        subnet_file.with_file_name("commands")
    } else {
        subnet_file.with_extension("commands")
    }
}

/// The text of an older file, of a withdrawn one if there is no other.
fn older(path: &Path) -> Option<String> {
    let read = fs::read_to_string(path).or_else(|_| fs::read_to_string(withdrawn(path)));
    read.ok()
}

/// The subnet that an older file names, if there is one: taken again if it is still free.
pub fn previous(path: &Path) -> Option<SubnetKey> {
    let text = older(path)?;
    let net = |key: &str| {
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
        let first = line.trim().trim_matches('"').split(',').next()?;
        first.trim().parse::<IpNet>().ok()
    };
    SubnetKey::new(Dual {
        v4: net("FLANNEL_SUBNET"),
        v6: net("FLANNEL_IPV6_SUBNET"),
    })
}

/// Whether this flannel was the last to write the file: it ends with a comment that no other flannel
/// writes. False where there is no file.
pub fn is_ours(path: &Path) -> bool {
    let text = older(path).unwrap_or_default();
    text.lines().any(|line| line.trim() == MARKER)
}

/// Whether a file is there that another flannel wrote: its routes are taken over.
pub fn is_anothers(path: &Path) -> bool {
    older(path).is_some_and(|text| text.contains("FLANNEL_")) && !is_ours(path)
}

/// The networks that an older file names: whatever stands for them on this host is this daemon's.
pub fn former_networks(path: &Path) -> Vec<IpNet> {
    let text = older(path).unwrap_or_default();
    let values = text.lines().filter_map(|line| {
        let (key, value) = line.trim().split_once('=')?;
        matches!(key, "FLANNEL_NETWORK" | "FLANNEL_IPV6_NETWORK").then_some(value)
    });
    let networks = values.flat_map(|value| value.trim_matches('"').split(','));
    networks.filter_map(|net| net.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn former_networks_are_all_that_the_file_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        assert!(former_networks(&path).is_empty());
        let text = "FLANNEL_NETWORK=10.1.0.0/16,10.2.0.0/16\nFLANNEL_SUBNET=10.1.5.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\nx\n";
        fs::write(&path, text).unwrap();
        let expected: Vec<IpNet> = ["10.1.0.0/16", "10.2.0.0/16", "fd00::/48"]
            .map(|net| net.parse().unwrap())
            .into();
        assert_eq!(former_networks(&path), expected);
    }

    #[test]
    fn the_text_is_the_contract_s() {
        let json = r#"{"Network":"172.30.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#;
        let config = NetConfig::from_json(json).unwrap();
        let key = "172.30.80.0-24&fd00:0:0:1::-64".parse().unwrap();
        assert_eq!(
            render(&config, &key, 1450, true),
            "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET=172.30.80.1/24\n\
             FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\n\
             FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n# flannel-rs\n"
        );
    }

    #[test]
    fn a_written_file_reads_back_and_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/subnet.env");
        write(
            &path,
            "FLANNEL_NETWORK=10.0.0.0/8,10.1.0.0/16\nFLANNEL_SUBNET=172.30.80.1/24\n",
        )
        .unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o644
        );
        assert_eq!(previous(&path), Some("172.30.80.0-24".parse().unwrap()));
        assert!(is_anothers(&path));
        write(&path, "# flannel-rs\nFLANNEL_SUBNET=172.30.80.1/24\n").unwrap();
        assert!(!is_anothers(&path) && previous(&path).is_some());
        assert!(!is_anothers(&dir.path().join("none")));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn the_file_is_ours_until_another_flannel_writes_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        assert!(!is_ours(&path) && !is_anothers(&path), "there is no file");
        write(&path, "FLANNEL_MTU=1450\n# flannel-rs\n").unwrap();
        assert!(is_ours(&path) && !is_anothers(&path));
        // Withdrawn, it is the same file under another name.
        fs::rename(&path, withdrawn(&path)).unwrap();
        assert!(is_ours(&path) && !is_anothers(&path));
        fs::write(&path, "FLANNEL_MTU=1450\n").unwrap();
        assert!(!is_ours(&path) && is_anothers(&path));
    }

    #[test]
    fn a_broken_old_file_names_no_subnet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        for text in [
            "",
            "FLANNEL_SUBNET=\n",
            "FLANNEL_SUBNET=10.0.0.1\n",
            "\u{0}",
            "FLANNEL_SUBNET=fd00::1/64\n",
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(previous(&path), None, "{text:?}");
        }
        assert_eq!(previous(&dir.path().join("none")), None);
    }

    #[test]
    fn a_file_that_is_cut_off_names_no_other_subnet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        let json = r#"{"Network":"172.30.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#;
        let config = NetConfig::from_json(json).unwrap();
        let key = "172.30.80.0-24&fd00:0:0:1::-64".parse().unwrap();
        let text = render(&config, &key, 1450, true);
        let v4 = "172.30.80.0-24".parse().unwrap();
        for end in 0..=text.len() {
            fs::write(&path, &text[..end]).unwrap();
            let found = previous(&path);
            let whole = text[..end].contains("::1/64");
            // A length that lost a digit names a subnet that does not fit, and is not taken.
            let is_short =
                |key: &SubnetKey| key.nets().iter().any(|(_, net)| net.prefix_len() < 10);
            assert!(
                found
                    .is_none_or(|found| found == v4 || is_short(&found) || (whole && found == key)),
                "{end}: {found:?}"
            );
            let networks = former_networks(&path);
            assert!(networks.len() <= 2 && (!whole || networks.len() == 2));
        }
        assert_eq!(previous(&path), Some(key));
        fs::write(&path, [0xff, 0xfe, b'=', b'\n']).unwrap();
        assert_eq!(previous(&path), None);
    }

    #[test]
    fn an_impossible_path_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let error = write(&dir.path().join("file/subnet.env"), "x")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("-subnet-file ") && error.contains("file/subnet.env"),
            "{error}"
        );
    }
}
