//! STATUS, GC and VERSION: the network as a whole.

use std::collections::HashSet;
use std::path::PathBuf;

use crate::delegate::Delegate;
use crate::failure::{Code, Failure, Refusal, note};
use crate::network::Network;
use crate::object::Object;
use crate::request::Command;
use crate::saved::{Entry, Saved};
use crate::subnet_env::SubnetEnv;
use crate::version::Version;

/// Whether an ADD would succeed, as far as that can be known: `subnet.env`, the configuration, the delegate's
/// program, the versions it speaks, and what it says itself.
///
/// # Errors
/// [`Code::NotAvailable`] with the reason; the delegate's own error object.
pub fn status(network: &Network, path: &[PathBuf]) -> Result<Vec<u8>, Refusal> {
    let version = since_1_1(network, Command::Status)?;
    // A configuration that is wrong stays wrong: waiting does not help.
    let unavailable = |failure: Failure| match failure.code {
        Code::InvalidConfig => failure,
        _ => failure.recode(Code::NotAvailable),
    };
    let env = SubnetEnv::read(&network.subnet_file).map_err(unavailable)?;
    let config = network.delegate_config(&env)?;
    let delegate = Delegate::find(&config, path).map_err(unavailable)?;
    match delegate.versions(&config) {
        // Not every plugin answers properly; one that does so and leaves our version out refuses an ADD.
        None => Ok(Vec::new()),
        Some(known) if known.iter().any(|one| one == version.as_str()) => {
            delegate.run(Command::Status, &config, &[])
        }
        Some(known) => Err(Failure::new(
            Code::NotAvailable,
            format!(
                "the delegate {} does not speak CNI {}",
                delegate.name(),
                version.as_str()
            ),
        )
        .advise(format!(
            "it speaks {}: install a newer one, or lower the configuration's \"cniVersion\"",
            known.join(", ")
        ))
        .into()),
    }
}

/// Forgets the containers of this network that are not among the valid attachments, and has the delegate do
/// the same. One failure does not keep the others from being tried.
///
/// # Errors
/// The first failure; the others are told on stderr.
pub fn gc(network: &Network, path: &[PathBuf]) -> Result<Vec<u8>, Refusal> {
    let version = since_1_1(network, Command::Gc)?;
    let Some((valid, given)) = network.valid_attachments()? else {
        // To take "nothing said" for "nothing valid" would detach every container of the node.
        note(format_args!(
            "GC without \"cni.dev/valid-attachments\": nothing is removed"
        ));
        return Ok(Vec::new());
    };
    let valid: HashSet<&str> = valid.iter().map(|one| one.container.as_str()).collect();
    let saved = Saved(&network.data_dir);
    let config =
        SubnetEnv::read(&network.subnet_file).and_then(|env| network.delegate_config(&env));

    let mut first = Ok(());
    let mut keep_first = |what: &str, outcome: Result<(), Refusal>| {
        if let Err(refusal) = outcome {
            note(format_args!("GC: {what}: {refusal}"));
            if first.is_ok() {
                first = Err(refusal);
            }
        }
    };

    for (container, entry) in stale(network, &saved, &valid)? {
        // Whatever the delegate still holds for the container, such as its address, goes with the file.
        let outcome = entry
            .map_or_else(|| config.clone(), Ok)
            .map_err(Refusal::from)
            .and_then(|config| {
                let vars = [
                    ("CNI_CONTAINERID", container.as_str()),
                    ("CNI_NETNS", ""),
                    ("CNI_IFNAME", "eth0"),
                ];
                Delegate::find(&config, path)?.run(Command::Del, &config, &vars)?;
                Ok(saved.remove(&container)?)
            });
        if outcome.is_ok() {
            note(format_args!("GC: forgot container {container}"));
        }
        keep_first(&container, outcome);
    }

    let outcome = config.map_err(Refusal::from).and_then(|mut config| {
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

/// The containers of this network that are not `valid`, each with its saved configuration, or `None` for a broken
/// one. Whose network a broken file is of cannot be told: it is left alone where other networks keep theirs here.
fn stale(
    network: &Network,
    saved: &Saved<'_>,
    valid: &HashSet<&str>,
) -> Result<Vec<(String, Option<Object>)>, Failure> {
    let mut found = Vec::new();
    let mut shared = false;
    for container in saved.containers()? {
        let entry = match saved.read(&container)? {
            Entry::Absent => continue,
            Entry::Broken(_) => None,
            Entry::Config(config) => {
                let of: Option<String> = config.decode("name").ok().flatten();
                if of.as_deref() != Some(&network.name) {
                    shared = true;
                    continue;
                }
                Some(config)
            }
        };
        if !valid.contains(container.as_str()) {
            found.push((container, entry));
        }
    }
    found.retain(|(_, entry)| entry.is_some() || !shared);
    Ok(found)
}

/// The answer to VERSION, in the asker's own version where that is one of ours.
pub fn version(stdin: &[u8]) -> Vec<u8> {
    let asked = serde_json::from_slice::<Object>(stdin)
        .ok()
        .and_then(|object| object.decode::<String>("cniVersion").ok().flatten())
        .and_then(|text| Version::parse(&text))
        .unwrap_or(Version::NEWEST);
    let known: Vec<String> = Version::ALL.iter().map(|one| format!("{one:?}")).collect();
    format!(
        "{{\"cniVersion\":{:?},\"supportedVersions\":[{}]}}\n",
        asked.as_str(),
        known.join(",")
    )
    .into_bytes()
}

fn since_1_1(network: &Network, command: Command) -> Result<Version, Failure> {
    let version = network.version.unwrap_or(Version::OLDEST);
    match version >= Version::WITH_STATUS {
        true => Ok(version),
        false => Err(Failure::new(
            Code::IncompatibleVersion,
            format!(
                "a configuration of version {} has no {}",
                version.as_str(),
                command.name()
            ),
        )
        .advise("it is in the specification from 1.1.0 on")),
    }
}
