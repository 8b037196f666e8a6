//! `flannelctl explain`: the way of a packet between two containers, step by step, with the kernel's own answers.
//! Changes nothing.

mod ends;
mod kernel;
mod node_probe;
mod path;
mod probe;
mod steps;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::check::report::Report;
use crate::check::scene::Scene;
use crate::check::settings::Settings;
use crate::status_socket::{self, SocketArgs};
use ends::{Ends, parse};
use steps::Steps;

/// Arguments of `flannelctl explain`.
#[derive(Args)]
#[command(
    after_help = "SRC and DST are addresses of containers, or a node: its subnet or its public address. One of the two must be \
    on this node; if it is DST, the way is looked at from its end.\n\nAfter -- come flanneld's flags, if no flanneld runs here \
    and its settings are not in /etc/flannel/flanneld.env."
)]
pub(crate) struct ExplainArgs {
    /// Where packets come from
    #[arg(value_name = "SRC")]
    source: String,
    /// Where they go
    #[arg(value_name = "DST")]
    destination: String,
    #[command(flatten)]
    socket: SocketArgs,
    /// How to write it
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Send no packets
    #[arg(long)]
    no_probe: bool,
    /// Read FLANNELD_… variables from this file [default: /etc/flannel/flanneld.env, if there is one]
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// flanneld's flags
    #[arg(last = true, value_name = "FLAG")]
    flags: Vec<String>,
}

#[derive(Clone, Copy, Eq, PartialEq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One JSON object
    Json,
}

/// Looks at each step and prints it.
///
/// # Errors
/// Neither end is on this node, or the two have no address family in common; the store or the host's interface
/// cannot be read.
pub(crate) fn run(args: &ExplainArgs) -> Result<ExitCode> {
    let (source, destination) = (parse(&args.source)?, parse(&args.destination)?);
    let settings = Settings::find(&args.flags, args.env_file.as_deref())?;
    let mut report = Report::default();
    let scene = Scene::gather(&mut report, &settings)?;
    let daemon = status_socket::daemon(&args.socket.socket);
    let ends = Ends::find(&report, &scene, source, destination)?;
    let mut steps = Steps::new(&ends);
    steps::flanneld(&mut steps, &daemon);
    let bridge = path::local_end(&mut steps, &ends);
    path::forwarding(&mut steps, &ends, bridge.as_deref());
    match &ends.remote {
        Some(remote) => {
            let usable = steps::lease(&mut steps, &ends, remote, &scene, &daemon);
            let device = if usable {
                kernel::objects(&mut steps, &ends, remote, &scene, &settings, &daemon)?
            } else {
                None
            };
            let out = path::route(&mut steps, &ends, bridge.as_deref(), device)?;
            let out = out.or(device);
            path::rules(&mut steps, &ends, bridge.as_deref(), out)?;
            path::underlay(&mut steps, remote, &scene)?;
            path::mtu(&mut steps, ends.family, &scene, out, bridge.as_deref());
            path::back(&mut steps, &ends, bridge.as_deref(), out)?;
        }
        None => path::same_node(&mut steps, &ends, bridge.as_deref())?,
    }
    if !args.no_probe {
        probe::run(&mut steps, &ends, &scene, &daemon);
    }
    steps.print(args.output == Format::Json);
    Ok(if steps.broken().is_some() {
        crate::status::no()
    } else {
        ExitCode::SUCCESS
    })
}
