//! GC: attachments that the runtime no longer knows.

use std::fs;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::delegate::Delegate;
use crate::failure::{Failure, Refusal, note};
use crate::network::{Network, ValidAttachment};
use crate::object::Object;
use crate::request::Command;
use crate::sandbox::Sandbox;
use crate::saved::{Entry, Origin, Saved, SavedFile};
use crate::subnet_env::SubnetEnv;
use crate::upkeep::since_1_1;

/// What upstream's saved files do not say: the interface of a container's only attachment.
const DEFAULT_INTERFACE: &str = "eth0";

/// An attachment of this network that is not valid.
struct Stale {
    file: SavedFile,
    /// Its delegate's configuration; `None` where the file is broken.
    config: Option<Object>,
    origin: Option<Origin>,
}

/// Deletes the attachments of this network that are not among the valid ones, and has the delegate do the same. One
/// failure does not keep the others from being tried.
///
/// # Errors
/// The first failure; the others are reported on stderr.
pub fn gc(network: &Network, path: &[PathBuf]) -> Result<Vec<u8>, Refusal> {
    let version = since_1_1(network, Command::Gc)?;
    let Some((valid, given)) = network.valid_attachments()? else {
        // To take "nothing said" for "nothing valid" would detach every container of the node.
        note(format_args!(
            "GC without \"cni.dev/valid-attachments\": nothing is removed"
        ));
        return Ok(Vec::new());
    };
    let saved = Saved(&network.data_dir);

    let mut first = Ok(());
    let mut keep_first = |what: &str, outcome: Result<(), Refusal>| {
        if let Err(refusal) = outcome {
            note(format_args!("GC: {what}: {refusal}"));
            if first.is_ok() {
                first = Err(refusal);
            }
        }
    };

    let (stale, mut origins) = stale(network, &saved, &valid)?;
    for one in stale {
        let container = &one.file.container;
        // Its own claim goes first: what is left is of others.
        if let Some(at) = origins
            .iter()
            .position(|origin| Some(origin) == one.origin.as_ref())
        {
            origins.swap_remove(at);
        }
        let outcome = delete(network, path, &one, &origins);
        if outcome.is_ok() {
            note(format_args!("GC: deleted {}", one.file.path.display()));
        }
        keep_first(container, outcome);
    }

    let outcome = SubnetEnv::read(&network.subnet_file)
        .and_then(|env| network.delegate_config(&env))
        .map_err(Refusal::from)
        .and_then(|mut config| {
            let delegate = Delegate::find(&config, path)?;
            if delegate.speaks(version, &config) {
                for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
                    config.put(key, given.to_owned());
                }
                delegate.run(Command::Gc, &config, &[])?;
            }
            Ok(())
        });
    keep_first("the delegate", outcome);
    first.map(|()| Vec::new())
}

/// Runs the delegate's DEL for a stale attachment, which gives back its address, and forgets it. `others` are the
/// attachments that stay.
fn delete(
    network: &Network,
    path: &[PathBuf],
    stale: &Stale,
    others: &[Origin],
) -> Result<(), Refusal> {
    let config = match &stale.config {
        Some(config) => config.clone(),
        None => network.delegate_config_for_del()?,
    };
    let origin = stale.origin.as_ref();
    let named = stale.file.named.as_deref();
    let netns = origin.and_then(|origin| living_namespace(origin, &config, others));
    let netns = netns.as_deref().and_then(Path::to_str).unwrap_or_default();
    let vars = [
        ("CNI_CONTAINERID", stale.file.container.as_str()),
        // Without a namespace the delegate only gives back the address. With it, the interface goes too, and no address
        // is free that an interface still has.
        ("CNI_NETNS", netns),
        (
            "CNI_IFNAME",
            origin
                .map(|origin| origin.ifname.as_str())
                .or(named)
                .unwrap_or(DEFAULT_INTERFACE),
        ),
    ];
    Delegate::find(&config, path)?.delete(&config, &vars)?;
    Ok(stale.file.remove()?)
}

/// Finds the namespace of an attachment, by the path it was added with or by a process that lives in it. Paths and numbers
/// of namespaces are used again: one that another attachment is in, or whose interface has addresses of somebody else, is
/// not the one that is meant.
fn living_namespace(origin: &Origin, config: &Object, others: &[Origin]) -> Option<PathBuf> {
    let claimed = others
        .iter()
        .any(|other| other.id == origin.id && other.ifname == origin.ifname);
    if origin.id.is_empty() || claimed {
        return None;
    }
    let subnets = subnets(config);
    let is_ours = |path: &Path, even_without_address: bool| {
        let Ok(Some(sandbox)) = Sandbox::open(path) else {
            return false;
        };
        if sandbox.id() != origin.id || sandbox.is_own() {
            return false;
        }
        match sandbox.addresses(&origin.ifname) {
            Err(_) => false,
            Ok(None) => even_without_address,
            Ok(Some(addresses)) => {
                let mut addresses = addresses.iter().map(IpNet::addr).peekable();
                let none = addresses.peek().is_none();
                (none && even_without_address)
                    || subnets.is_empty()
                    || addresses.any(|ip| subnets.iter().any(|net| net.contains(&ip)))
            }
        }
    };
    let given = Path::new(&origin.netns);
    if is_ours(given, true) {
        return Some(given.to_owned());
    }
    // The path may be gone while a process still lives in the namespace.
    fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            name.to_str()
                .is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()))
        })
        .map(|entry| entry.path().join("ns/net"))
        .find(|path| is_ours(path, false))
}

/// Returns the subnets that the delegate hands out addresses of.
fn subnets(config: &Object) -> Vec<IpNet> {
    let sets = config
        .decode::<Object>("ipam")
        .ok()
        .flatten()
        .and_then(|ipam| ipam.decode::<Vec<Vec<Object>>>("ranges").ok().flatten());
    sets.unwrap_or_default()
        .iter()
        .flatten()
        .filter_map(|range| {
            range
                .decode::<String>("subnet")
                .ok()
                .flatten()?
                .parse()
                .ok()
        })
        .collect()
}

/// Returns the attachments of this network that are not `valid`, and the origins of all that are kept in the directory.
/// Whose network a broken file is of cannot be told: it is left alone where other networks keep theirs here.
fn stale(
    network: &Network,
    saved: &Saved<'_>,
    valid: &[ValidAttachment],
) -> Result<(Vec<Stale>, Vec<Origin>), Failure> {
    let (mut found, mut origins) = (Vec::new(), Vec::new());
    let mut shared = false;
    for file in saved.list()? {
        let (config, origin) = match file.read() {
            Entry::Absent => continue,
            Entry::Broken(_) => (None, None),
            Entry::Config(config, origin) => {
                origins.extend(origin.clone());
                let of: Option<String> = config.decode("name").ok().flatten();
                if of.as_deref() != Some(&network.name) {
                    shared = true;
                    continue;
                }
                (Some(config), origin)
            }
        };
        let ifname = origin.as_ref().map(|origin| origin.ifname.as_str());
        let ifname = ifname.or(file.named.as_deref());
        let is_valid = valid.iter().any(|one| {
            one.container == file.container
                && (one.ifname.is_empty() || ifname.is_none_or(|ifname| one.ifname == ifname))
        });
        if !is_valid {
            found.push(Stale {
                file,
                config,
                origin,
            });
        }
    }
    found.retain(|one| one.config.is_some() || !shared);
    Ok((found, origins))
}
