//! ADD, DEL and CHECK: one container.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::bridge::Stale;
use crate::delegate::Delegate;
use crate::failure::{Code, Failure, Refusal, note};
use crate::network::Network;
use crate::object::Object;
use crate::request::Command;
use crate::saved::{Entry, Saved};
use crate::subnet_env::SubnetEnv;
use crate::version::Version;

/// One container's attachment.
pub struct Attachment<'a> {
    /// The network it is attached to.
    pub network: &'a Network,
    /// The container's identifier, checked.
    pub container: &'a str,
    /// Where plugins are.
    pub path: &'a [PathBuf],
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

        let new = self.saved().write(self.container, &config)?;
        delegate.run(Command::Add, &config, &[]).map_err(|refusal| {
            // Where there was an attachment already, a second ADD must not take it away.
            if new {
                self.undo(&delegate, &config);
            }
            match &stale {
                Some((said, found)) => explain(refusal, said, &found.cure()),
                None => refusal,
            }
        })
    }

    /// Has the delegate take back the half of an ADD that it did. Should it not, the saved file stays for the
    /// runtime's DEL.
    fn undo(&self, delegate: &Delegate, config: &Object) {
        let undone = delegate
            .run(Command::Del, config, &[])
            .and_then(|_| Ok(self.saved().remove(self.container)?));
        if let Err(error) = undone {
            note(format_args!(
                "after its failed ADD, {}'s DEL failed too: {error}",
                delegate.name()
            ));
        }
    }

    /// Detaches the container with the configuration that it was attached with.
    ///
    /// # Errors
    /// What is kept of the container then stays, so that the runtime can try again.
    pub fn del(&self) -> Result<Vec<u8>, Refusal> {
        let config = match self.saved().read(self.container)? {
            Entry::Absent => return Ok(Vec::new()),
            Entry::Config(config) => self.with_previous(config, false)?,
            Entry::Broken(why) => self.rebuilt(&why)?,
        };
        let delegate = Delegate::find(&config, self.path)?;
        let answer = delegate.run(Command::Del, &config, &[])?;
        self.saved().remove(self.container)?;
        Ok(answer)
    }

    /// The configuration for a container whose saved one is broken: what an ADD would get now. The
    /// delegate finds the container by its identifier, so that it will do.
    fn rebuilt(&self, why: &str) -> Result<Object, Failure> {
        let file = self.network.data_dir.join(self.container);
        let said = format!("{} is broken ({why})", file.display());
        note(format_args!(
            "{said}: its container is deleted with a configuration made anew"
        ));
        SubnetEnv::read(&self.network.subnet_file)
            .and_then(|env| self.network.delegate_config(&env))
            .map_err(|failure| Failure {
                msg: format!("{said}, and another cannot be made: {}", failure.msg),
                ..failure
            })
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
        let file = self.network.data_dir.join(self.container);
        let config = match self.saved().read(self.container)? {
            Entry::Absent => {
                return Err(Failure::new(
                    Code::UnknownContainer,
                    format!(
                        "{} does not exist: this container was not added, or is deleted",
                        file.display()
                    ),
                )
                .into());
            }
            Entry::Broken(why) => {
                return Err(Failure::new(
                    Code::Decode,
                    format!("{} is broken ({why})", file.display()),
                )
                .advise("delete the container: DEL copes with it")
                .into());
            }
            Entry::Config(config) => self.with_previous(config, true)?,
        };
        Delegate::find(&config, self.path)?.run(Command::Check, &config, &[])
    }

    /// `config` with the runtime's `prevResult`. That result is of the network's version; where `config` was
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

/// A result whose routes all say which gateway they go through: where none is given, the address's own, as the
/// plugins do when they add the route. Their CHECK (seen in 1.1.1's bridge) searches the kernel for a route without
/// any, does not find it, and calls every healthy container broken.
fn with_gateways(result: &RawValue) -> Box<RawValue> {
    #[derive(Deserialize)]
    struct Address {
        gateway: Option<IpAddr>,
    }
    let complete = || {
        let mut object: Object = serde_json::from_str(result.get()).ok()?;
        let addresses: Vec<Address> = object.decode("ips").ok()??;
        let mut routes: Vec<Object> = object.decode("routes").ok()??;
        for route in &mut routes {
            let given: Option<String> = route.decode("gw").ok()?;
            let dst: IpNet = route.decode::<String>("dst").ok()??.parse().ok()?;
            let own = addresses
                .iter()
                .filter_map(|address| address.gateway)
                .find(|gateway| gateway.is_ipv4() == dst.addr().is_ipv4());
            if let (None | Some(""), Some(own)) = (given.as_deref(), own) {
                route.set("gw", &own.to_string()).ok()?;
            }
        }
        object.set("routes", &routes).ok()?;
        serde_json::value::to_raw_value(&object).ok()
    };
    complete().unwrap_or_else(|| result.to_owned())
}

/// The delegate's refusal with what we know about its cause, which goes to the object's `details`; all else
/// stays the delegate's.
fn explain(refusal: Refusal, said: &str, cure: &str) -> Refusal {
    match refusal {
        Refusal::Ours(failure) => {
            let details = join(&[&failure.details, said, cure]);
            Refusal::Ours(failure.advise(details))
        }
        Refusal::Delegates(answer) => {
            let explained = serde_json::from_slice::<Object>(&answer).and_then(|mut object| {
                let details: Option<String> = object.decode("details").unwrap_or_default();
                object.set(
                    "details",
                    &join(&[&details.unwrap_or_default(), said, cure]),
                )?;
                serde_json::to_vec(&object)
            });
            Refusal::Delegates(explained.unwrap_or(answer))
        }
    }
}

fn join(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts
        .iter()
        .copied()
        .filter(|part| !part.is_empty())
        .collect();
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_without_a_gateway_gets_its_familys() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        let result = raw(
            r#"{"odd":1.50,"ips":[{"address":"10.1.2.2/24","gateway":"10.1.2.1"},{"address":"fd00::2/64","gateway":"fd00::1"},{"address":"10.9.9.9/32"}],"routes":[{"dst":"10.0.0.0/8","mtu":9},{"dst":"::/0","gw":""},{"dst":"0.0.0.0/0","gw":"10.1.2.9"}]}"#,
        );
        let expected = r#"{"odd":1.50,"ips":[{"address":"10.1.2.2/24","gateway":"10.1.2.1"},{"address":"fd00::2/64","gateway":"fd00::1"},{"address":"10.9.9.9/32"}],"routes":[{"dst":"10.0.0.0/8","mtu":9,"gw":"10.1.2.1"},{"dst":"::/0","gw":"fd00::1"},{"dst":"0.0.0.0/0","gw":"10.1.2.9"}]}"#;
        assert_eq!(with_gateways(&result).get(), expected);

        // What cannot be understood, or needs nothing, stays as it is.
        for text in [
            "7",
            r#"{"ip4":{"ip":"10.1.2.2/24"}}"#,
            r#"{"ips":[{"gateway":"x"}],"routes":[]}"#,
            r#"{"ips":[],"routes":[{"dst":"somewhere"}]}"#,
            r#"{"ips":[],"routes":[{"dst":"10.0.0.0/8"}]}"#,
        ] {
            assert_eq!(with_gateways(&raw(text)).get(), text);
        }
    }
}
