//! ADD, DEL and CHECK: one container.

use std::path::{Path, PathBuf};

use crate::bridge::Stale;
use crate::delegate::Delegate;
use crate::failure::{Code, Failure, Refusal, note};
use crate::network::Network;
use crate::object::Object;
use crate::previous_result::with_gateways;
use crate::request::Command;
use crate::sandbox::Sandbox;
use crate::saved::{Entry, Origin, Saved, SavedFile, Written};
use crate::subnet_env::SubnetEnv;
use crate::version::Version;

/// One container's attachment.
pub struct Attachment<'a> {
    /// The network it is attached to.
    pub network: &'a Network,
    /// The container's identifier, checked.
    pub container: &'a str,
    /// The interface's name in the container, checked.
    pub ifname: &'a str,
    /// The container's network namespace, as the runtime names it.
    pub netns: &'a str,
    /// Where plugins are.
    pub path: &'a [PathBuf],
}

/// What the container's namespace had under the interface's name before ADD.
enum Before {
    /// Nothing.
    Free,
    /// An interface, which is not this ADD's.
    Taken,
    /// The namespace could not be looked at.
    Unknown,
}

impl Attachment<'_> {
    fn saved(&self) -> Saved<'_> {
        Saved(&self.network.data_dir)
    }

    /// Attaches the container by way of the delegate, and returns the delegate's result.
    ///
    /// # Errors
    /// Ours before the delegate is run; then the delegate's, of which nothing is left behind.
    pub fn add(&self) -> Result<Vec<u8>, Refusal> {
        let env = SubnetEnv::read(&self.network.subnet_file)?;
        let config = self.network.delegate_config(&env)?;
        let delegate = Delegate::find(&config, self.path)?;
        let mut stale = Stale::find(&config, &env.subnets).map(|stale| (stale.to_string(), stale));
        if let Some((said, found)) = &mut stale
            && self.network.repair_bridge
        {
            match found.repair() {
                Ok(()) => stale = None,
                Err(why) => *said = why,
            }
        }
        if let Some((said, _)) = &stale {
            note(format_args!("{said}"));
        }

        let (id, before) = self.look();
        let origin = Origin {
            ifname: self.ifname.to_owned(),
            netns: self.netns.to_owned(),
            id,
        };
        let written = self.saved().write(self.container, &config, &origin)?;
        let refusal = match delegate.run(Command::Add, &config, &[]) {
            Ok(answer) if is_result(&answer) => return Ok(answer),
            Ok(answer) => delegate.no_result(&answer).into(),
            Err(refusal) => refusal,
        };
        let taken = matches!(before, Before::Taken);
        if refusal.is_of_version() {
            // It did nothing, and would refuse its DEL as well.
            if let Err(failure) = self.saved().restore(written) {
                note(format_args!("{failure}"));
            }
        } else {
            self.undo(&delegate, &config, written, before);
        }
        let mut details = Vec::new();
        if taken {
            details.push(format!(
                "{} was in the namespace before this ADD and is left as it is",
                self.ifname
            ));
        }
        if let Some((said, found)) = &stale {
            details.extend([said.clone(), found.remedy()]);
        }
        Err(explain(refusal, &details))
    }

    /// Looks whether the interface exists already, and returns the namespace's identity, empty where it is not known.
    fn look(&self) -> (String, Before) {
        match Sandbox::open(Path::new(self.netns)) {
            Ok(None) => (String::new(), Before::Free),
            Err(_) => (String::new(), Before::Unknown),
            Ok(Some(sandbox)) => {
                let before = match sandbox.has_interface(self.ifname) {
                    Ok(true) => Before::Taken,
                    Ok(false) => Before::Free,
                    Err(_) => Before::Unknown,
                };
                (sandbox.id().to_owned(), before)
            }
        }
    }

    /// Ends a failed ADD. The delegate's DEL takes an interface away by its name and an address by the container's: it is
    /// run only where both can only be of this ADD.
    fn undo(&self, delegate: &Delegate, config: &Object, written: Written, before: Before) {
        let outcome = match before {
            // The runtime's DEL will find the file.
            Before::Unknown if !written.replaced() => return,
            Before::Free if !written.replaced() => delegate
                .delete(config, &[])
                .and_then(|_| Ok(self.saved().restore(written)?)),
            _ => self.saved().restore(written).map_err(Refusal::from),
        };
        if let Err(error) = outcome {
            note(format_args!(
                "after its failed ADD, {}'s DEL failed too: {error}",
                delegate.name()
            ));
        }
    }

    /// Detaches the container with the configuration that it was attached with.
    ///
    /// # Errors
    /// The delegate's. What is kept of the container then stays, so that the runtime can retry.
    pub fn del(&self) -> Result<Vec<u8>, Refusal> {
        let (file, entry) = self.saved().find(self.container, self.ifname);
        let config = match entry {
            Entry::Absent => return Ok(Vec::new()),
            Entry::Config(config, _) => self.with_previous(config, false)?,
            Entry::Broken(why) => return Ok(self.del_broken(&file, &why)),
        };
        let delegate = Delegate::find(&config, self.path)?;
        let answer = delegate.delete(&config, &[])?;
        file.forget();
        Ok(answer)
    }

    /// Detaches a container whose saved configuration is broken with the one that an ADD would get now: the delegate finds
    /// the container by its identifier. Retrying would not help, so that the runtime is not told to.
    fn del_broken(&self, file: &SavedFile, why: &str) -> Vec<u8> {
        note(format_args!(
            "{} is broken ({why}): its container is deleted with a new configuration",
            file.path.display()
        ));
        let outcome = self
            .network
            .delegate_config_for_del()
            .and_then(|config| Ok((Delegate::find(&config, self.path)?, config)))
            .map_err(Refusal::from)
            .and_then(|(delegate, config)| delegate.delete(&config, &[]));
        match outcome {
            Ok(answer) => {
                file.forget();
                answer
            }
            Err(refusal) => {
                note(format_args!(
                    "{} stays, and what container {} had may be left: {refusal}",
                    file.path.display(),
                    self.container
                ));
                Vec::new()
            }
        }
    }

    /// Has the delegate check the container.
    ///
    /// # Errors
    /// [`Code::UnknownContainer`] where there was no ADD; the delegate's.
    pub fn check(&self) -> Result<Vec<u8>, Refusal> {
        if self.network.version.unwrap_or(Version::OLDEST) < Version::WITH_CHECK {
            return Err(Failure::new(
                Code::IncompatibleVersion,
                format!(
                    "a configuration of version {} has no CHECK",
                    self.network.version.unwrap_or(Version::OLDEST).as_str()
                ),
            )
            .advise("CHECK is in the specification from 0.4.0 on")
            .into());
        }
        if self.network.previous_result().is_none() {
            return Err(Failure::new(
                Code::InvalidConfig,
                "\"prevResult\" is missing: CHECK compares with it",
            )
            .into());
        }
        let (file, entry) = self.saved().find(self.container, self.ifname);
        let config = match entry {
            Entry::Absent => {
                return Err(Failure::new(
                    Code::UnknownContainer,
                    format!(
                        "{} does not exist for {}: this container was not added, or is deleted",
                        file.path.display(),
                        self.ifname
                    ),
                )
                .into());
            }
            Entry::Broken(why) => {
                return Err(Failure::new(
                    Code::Decode,
                    format!("{} is broken ({why})", file.path.display()),
                )
                .advise("delete the container: DEL works with a broken file")
                .into());
            }
            Entry::Config(config, _) => self.with_previous(config, true)?,
        };
        Delegate::find(&config, self.path)?.run(Command::Check, &config, &[])
    }

    /// Returns `config` with the runtime's `prevResult`. That result is of the network's version; where `config` was
    /// saved under another one, either the version follows (`follow`) or the result is left out.
    fn with_previous(&self, mut config: Object, follow: bool) -> Result<Object, Failure> {
        let Some(result) = self.network.previous_result() else {
            return Ok(config);
        };
        let version = self.network.version.map(Version::as_str);
        let saved: Option<String> = config.decode("cniVersion").ok().flatten();
        match (version, saved.as_deref() == version) {
            (Some(version), false) if follow => config
                .set("cniVersion", version)
                .map_err(|error| Failure::new(Code::Decode, error.to_string()))?,
            (_, false) => return Ok(config),
            (_, true) => {}
        }
        config.put("prevResult", with_gateways(result));
        Ok(config)
    }
}

/// Returns whether a successful delegate's answer is a result: an object, and not one of an error.
fn is_result(answer: &[u8]) -> bool {
    serde_json::from_str::<Object>(&String::from_utf8_lossy(answer))
        .is_ok_and(|object| !object.has("code"))
}

/// Adds what we know about the cause to the delegate's refusal, in the object's `details`; all else stays the delegate's.
fn explain(refusal: Refusal, more: &[String]) -> Refusal {
    if more.is_empty() {
        return refusal;
    }
    let join = |details: &str| {
        let all = std::iter::once(details).chain(more.iter().map(String::as_str));
        let all: Vec<&str> = all.filter(|part| !part.is_empty()).collect();
        all.join("; ")
    };
    match refusal {
        Refusal::Ours(failure) => {
            let details = join(&failure.details);
            Refusal::Ours(failure.advise(details))
        }
        Refusal::Delegates(answer) => {
            let explained = serde_json::from_slice::<Object>(&answer).and_then(|mut object| {
                let details: Option<String> = object.decode("details").unwrap_or_default();
                object.set("details", &join(&details.unwrap_or_default()))?;
                serde_json::to_vec(&object)
            });
            Refusal::Delegates(explained.unwrap_or(answer))
        }
    }
}
