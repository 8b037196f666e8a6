//! Which commands were run for peers: one file a peer in a directory that a reboot empties, written before
//! the command is run. So a restart runs the removal of a peer that left meanwhile.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use model::object::{CommandEnv, PeerCommand, PeerCommands};
use model::{Dual, SubnetKey};
use serde_json::{Value, json};

/// A journal, kept in memory alone if it has no directory.
#[derive(Default)]
pub(super) struct Journal {
    dir: Option<PathBuf>,
}

impl Journal {
    pub(super) fn new(dir: Option<PathBuf>) -> Journal {
        Journal { dir }
    }

    /// Reads what earlier runs of the daemon wrote. A file that cannot be read is left alone.
    pub(super) fn read(&self) -> Vec<(SubnetKey, PeerCommand)> {
        let files = self.dir.iter().flat_map(fs::read_dir).flatten().flatten();
        let entry = |file: fs::DirEntry| {
            let key = file.file_name().to_str()?.parse().ok()?;
            let text = fs::read(file.path()).ok()?;
            Some((key, parse(&serde_json::from_slice(&text).ok()?)?))
        };
        files.filter_map(entry).collect()
    }

    /// Notes what is about to be done for a peer.
    ///
    /// # Errors
    /// The file, and why it cannot be written.
    pub(super) fn write(&self, key: &SubnetKey, peer: &PeerCommand) -> Result<(), String> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let path = dir.join(key.to_string());
        let temporary = dir.join(format!(".{key}.tmp"));
        let write = || -> io::Result<()> {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)?;
            let _ = fs::remove_file(&temporary);
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(render(peer).to_string().as_bytes())?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|error| format!("cannot write {}: {error}", path.display()))
    }

    /// Forgets a peer.
    pub(super) fn remove(&self, key: &SubnetKey) {
        if let Some(dir) = &self.dir {
            // What stays leads to another removal at the next start.
            let _ = fs::remove_file(dir.join(key.to_string()));
            // The last one takes the directory along.
            let _ = fs::remove_dir(dir);
        }
    }
}

fn render(peer: &PeerCommand) -> Value {
    let text = |line: &Option<Arc<str>>| line.as_ref().map(|line| line.to_string());
    let env = peer.env.variables();
    let env: serde_json::Map<String, Value> = env
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    json!({
        "SubnetAddCommand": text(&peer.commands.add),
        "SubnetRemoveCommand": text(&peer.commands.remove),
        "CommandTimeout": peer.commands.limit.as_secs(),
        "environment": env,
        "input": peer.data.as_ref(),
    })
}

fn parse(value: &Value) -> Option<PeerCommand> {
    let line = |name: &str| value.get(name).and_then(Value::as_str).map(Arc::from);
    let env = value.get("environment")?;
    let net = |name: &str| env.get(name)?.as_str()?.parse().ok();
    let ip = |name: &str| env.get(name)?.as_str()?.parse().ok();
    let seconds = value.get("CommandTimeout").and_then(Value::as_u64);
    Some(PeerCommand {
        commands: Arc::new(PeerCommands {
            add: line("SubnetAddCommand"),
            remove: line("SubnetRemoveCommand"),
            limit: Duration::from_secs(seconds?),
            prepared: true,
        }),
        env: CommandEnv {
            network: Dual {
                v4: net("NETWORK"),
                v6: net("IPV6NETWORK"),
            },
            subnet: Dual {
                v4: net("SUBNET"),
                v6: net("IPV6SUBNET"),
            },
            public_ip: Dual {
                v4: ip("PUBLIC_IP"),
                v6: ip("PUBLIC_IPV6"),
            },
        },
        data: value.get("input").and_then(Value::as_str)?.into(),
        earlier: true,
    })
}
