//! `extension`: commands of the administrator make and remove what carries the packets.
//!
//! What the command before the lease prints is published as a JSON text, as upstream's is; every node feeds
//! what a peer published to the standard input of the commands for that peer.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::object::{CommandEnv, PeerCommand, PeerCommands, PostStartup};
use model::{BackendType, ConfigError, Dual, Family, Host, Lease, LeaseAttrs, NetConfig, Object};
use serde_json::value::RawValue;

use crate::served::Served;
use crate::{Backend, BackendError, Identity, Need, OwnDevice, PeerPlan, unknown_options};

/// The options beside `Type`.
pub(crate) const OPTIONS: [&str; 5] = [PRE, POST, ADD, REMOVE, TIMEOUT];

const PRE: &str = "PreStartupCommand";
const POST: &str = "PostStartupCommand";
const ADD: &str = "SubnetAddCommand";
const REMOVE: &str = "SubnetRemoveCommand";
const TIMEOUT: &str = "CommandTimeout";

/// How long a command may take, in seconds.
const SECONDS: u32 = 60;

/// How long a command that failed has for further tries, at a change of the backend.
const AGAIN: Duration = Duration::from_secs(20);

/// What only a shell understands. Upstream's older versions had one.
const SHELL: [char; 12] = ['"', '\'', '`', '|', '&', ';', '<', '>', '(', ')', '\\', '*'];

/// Returns the command to run before the lease is taken. One that cannot be read is none: the backend
/// reports it.
pub(crate) fn need(config: &NetConfig) -> Need {
    match (command(config, PRE), limit(config)) {
        (Ok(Some(line)), Ok(limit)) => Need::Command {
            name: PRE,
            line,
            env: CommandEnv {
                network: networks(config),
                ..CommandEnv::default()
            },
            limit,
        },
        _ => Need::Nothing,
    }
}

fn command(config: &NetConfig, name: &str) -> Result<Option<Arc<str>>, ConfigError> {
    let line = config.backend.string(name)?.unwrap_or_default().trim();
    Ok((!line.is_empty()).then(|| line.into()))
}

fn limit(config: &NetConfig) -> Result<Duration, ConfigError> {
    let seconds = config.backend.u32(TIMEOUT, SECONDS, 1..=86_400)?;
    Ok(Duration::from_secs(seconds.into()))
}

fn networks(config: &NetConfig) -> Dual<IpNet> {
    config.pools.map(|_, pool| pool.network)
}

/// The extension backend.
pub(crate) struct Extension {
    served: Served<()>,
    networks: Dual<IpNet>,
    /// What the command before the lease printed, as JSON.
    data: Option<Box<RawValue>>,
    post: Option<Arc<str>>,
    commands: Arc<PeerCommands>,
    mtu: u32,
    warnings: Vec<String>,
}

impl Extension {
    pub(crate) fn new(
        config: &NetConfig,
        host: &Host,
        identity: &Identity,
    ) -> Result<Extension, BackendError> {
        let mut warnings = unknown_options(config);
        let mut lines = [None, None, None, None];
        for (line, name) in lines.iter_mut().zip([PRE, POST, ADD, REMOVE]) {
            *line = command(config, name)?;
            let shells: Vec<String> = line.iter().flat_map(|line| shell_syntax(line)).collect();
            if !shells.is_empty() {
                warnings.push(format!(
                    "Backend.{name} contains {}: commands are run without a shell, which passes that on as it is; move the command into a script and name the script",
                    shells.join(" ")
                ));
            }
        }
        let [pre, post, add, remove] = lines;
        if remove.is_some() && add.is_none() {
            warnings.push(format!("Backend.{REMOVE} is set and Backend.{ADD} is not"));
        }
        let limit = limit(config)?;
        let data = match identity {
            Identity::Data(text) => serde_json::value::to_raw_value(text).ok(),
            Identity::Nothing | Identity::Macs(_) | Identity::WgKey { .. } | Identity::Psk(_) => {
                None
            }
        };
        Ok(Extension {
            served: Served::new(config, host, |_, _| Ok(()))?,
            networks: networks(config),
            data,
            commands: Arc::new(PeerCommands {
                add,
                remove,
                limit,
                prepared: pre.is_some() || post.is_some(),
            }),
            post,
            mtu: host.mtu,
            warnings,
        })
    }

    /// Returns what the commands learn about the node of a lease, in the families of the network.
    fn env(&self, lease: &Lease) -> CommandEnv {
        let served = |family: Family| self.networks.get(family).is_some();
        let nets = lease.key.nets();
        CommandEnv {
            network: self.networks,
            subnet: Dual::from_fn(|of| nets.get(of).copied().filter(|_| served(of))),
            public_ip: Dual::from_fn(|of| {
                let ip = lease.attrs.public_ip.get(of).copied();
                ip.filter(|_| served(of))
            }),
        }
    }
}

/// Returns what in a command is meant for a shell, each once.
fn shell_syntax(line: &str) -> Vec<String> {
    let mut found: Vec<String> = SHELL
        .into_iter()
        .filter(|char| line.contains(*char))
        .map(String::from)
        .collect();
    let first = line.split_whitespace().next().unwrap_or_default();
    if first == "export" || first.split_once('=').is_some_and(|(name, _)| is_name(name)) {
        found.push(first.chars().take(40).collect());
    }
    found
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

impl Backend for Extension {
    fn kind(&self) -> BackendType {
        BackendType::Extension
    }

    fn publish(&self) -> LeaseAttrs {
        // Where upstream reads it, whatever the families are; IPv6's own place only where there is no other.
        let of_v6 = self.data.clone().filter(|_| self.networks.v4.is_none());
        LeaseAttrs {
            public_ip: self.served.public_ip,
            backend_type: Some(BackendType::Extension),
            data: Dual {
                v4: self.data.clone(),
                v6: of_v6,
            },
            also: Box::default(),
        }
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }

    fn devices(&self) -> Vec<OwnDevice> {
        Vec::new()
    }

    fn node(&self, own: &Lease, host: &Host) -> Vec<Object> {
        let line = self.post.iter();
        let object = |line: &Arc<str>| {
            let env = CommandEnv {
                public_ip: host.public_ip,
                ..self.env(own)
            };
            let (line, limit) = (line.clone(), self.commands.limit);
            Object::PostStartup((), PostStartup { line, env, limit })
        };
        line.map(object).collect()
    }

    fn peer(&self, peer: &Lease, _host: &Host) -> PeerPlan {
        let mut plan = PeerPlan {
            served: true,
            ..PeerPlan::default()
        };
        if self.commands.add.is_none() && self.commands.remove.is_none() {
            return plan;
        }
        let data = peer.attrs.data.v4.as_ref().or(peer.attrs.data.v6.as_ref());
        // Upstream publishes a text; what else stands there is passed on as it is.
        let text = data.map(|data| {
            serde_json::from_str::<String>(data.get()).unwrap_or_else(|_| data.get().to_owned())
        });
        let command = PeerCommand {
            commands: self.commands.clone(),
            env: self.env(peer),
            data: text.unwrap_or_default().into(),
            earlier: false,
        };
        plan.objects.push(Object::PeerCommand(peer.key, command));
        plan
    }

    fn patience(&self) -> Duration {
        // A command that fails is run again.
        self.commands.limit + AGAIN
    }

    fn missing(&self) -> &[(Family, BackendError)] {
        &self.served.missing
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
