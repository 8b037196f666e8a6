//! STATUS and VERSION: the network as a whole.

use std::path::PathBuf;

use crate::delegate::Delegate;
use crate::failure::{Code, Failure, Refusal};
use crate::network::Network;
use crate::object::Object;
use crate::request::Command;
use crate::subnet_env::SubnetEnv;
use crate::version::Version;

/// Reports whether an ADD would succeed, as far as that can be known: `subnet.env`, the configuration, the delegate's
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

/// Returns the answer to VERSION, in the asker's own version where that is one of ours.
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

/// Returns the configuration's version, if it has `command`, which came with 1.1.0.
///
/// # Errors
/// [`Code::IncompatibleVersion`].
pub fn since_1_1(network: &Network, command: Command) -> Result<Version, Failure> {
    let version = network.version.unwrap_or(Version::OLDEST);
    if version >= Version::WITH_STATUS {
        return Ok(version);
    }
    Err(Failure::new(
        Code::IncompatibleVersion,
        format!(
            "a configuration of version {} has no {}",
            version.as_str(),
            command.name()
        ),
    )
    .advise("it is in the specification from 1.1.0 on"))
}
