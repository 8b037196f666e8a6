//! `flannel`, the CNI plugin.
//!
//! It makes no interface itself. It reads what flanneld wrote about this node's subnet, completes with it the
//! configuration of another plugin (bridge, unless said otherwise), and runs that plugin.

#![deny(unsafe_code)]

mod attach;
mod bridge;
mod delegate;
mod failure;
mod files;
mod gc;
mod go_json;
mod netlink;
mod network;
mod object;
mod previous_result;
mod ranges;
mod request;
mod sandbox;
mod saved;
mod subnet_env;
mod upkeep;
mod version;

use std::io::Write;
use std::process::ExitCode;

use attach::Attachment;
use failure::{Code, Failure, Refusal};
use network::Network;
use request::{Command, Request};
use version::Version;

const HELP: &str = "\
flannel: a CNI plugin, started by container runtimes and not by hand.

It takes CNI_COMMAND (ADD, DEL, CHECK, STATUS, GC, VERSION), CNI_CONTAINERID,
CNI_NETNS, CNI_IFNAME and CNI_PATH from the environment and a network
configuration in JSON on stdin:

  {\"cniVersion\": \"1.0.0\", \"name\": \"cbr0\", \"type\": \"flannel\",
   \"subnetFile\": \"/run/flannel/subnet.env\", \"dataDir\": \"/var/lib/cni/flannel\",
   \"ipam\": {}, \"delegate\": {\"isDefaultGateway\": true}, \"repairBridge\": false}

  -h, --help     this text
  --version      this plugin's version
";

fn main() -> ExitCode {
    let mut out = std::io::stdout();
    match std::env::args_os()
        .nth(1)
        .as_deref()
        .and_then(|arg| arg.to_str())
    {
        Some("-h" | "-help" | "--help") => return code(out.write_all(HELP.as_bytes()).is_ok()),
        Some("-version" | "--version") => {
            return code(writeln!(out, "flannel {}", env!("CARGO_PKG_VERSION")).is_ok());
        }
        _ => {}
    }
    // The version that an error object is of: the configuration's, once it is known.
    let mut version = Version::NEWEST;
    let (text, success) = match run(&mut version) {
        Ok(answer) => (answer, true),
        Err(Refusal::Delegates(object)) => (object, false),
        Err(Refusal::Ours(failure)) => (failure.object(version.as_str()), false),
    };
    let written = out.write_all(&text).and_then(|()| out.flush());
    code(success && written.is_ok())
}

fn code(success: bool) -> ExitCode {
    if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run(version: &mut Version) -> Result<Vec<u8>, Refusal> {
    let request = Request::read(|name| std::env::var_os(name))?;
    let stdin = files::read_limited(std::io::stdin().lock());
    if request.command == Command::Version {
        // Of use even to a runtime that sends nothing with it.
        return Ok(upkeep::version(&stdin.unwrap_or_default()));
    }
    let stdin = stdin.map_err(|error| {
        Failure::new(
            Code::Io,
            format!("the network configuration on stdin cannot be read: {error}"),
        )
    })?;
    let network = Network::parse(&stdin)?;
    *version = network.version.unwrap_or(Version::OLDEST);
    let attachment = Attachment {
        network: &network,
        container: &request.container,
        ifname: &request.interface,
        netns: &request.netns,
        path: &request.path,
    };
    match request.command {
        Command::Add => attachment.add(),
        Command::Del => attachment.del(),
        Command::Check => attachment.check(),
        Command::Status => upkeep::status(&network, &request.path),
        Command::Gc => gc::gc(&network, &request.path),
        Command::Version => Ok(Vec::new()),
    }
}
