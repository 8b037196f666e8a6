//! `flannelctl bundle`: one archive of all that is known of this node, or of every node of a Kubernetes cluster, for
//! somebody who looks for a fault from elsewhere. Changes nothing on the host; secrets are removed.

mod archive;
mod cluster;
mod collect;
mod secrets;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::check::settings::Settings;
use crate::kube_args::{KubeArgs, WHOLE_CLUSTERS};
use crate::runtime::wait_for;
use crate::status_socket::SocketArgs;
use crate::{output, status};
use archive::Archive;
use collect::Collection;
use secrets::Secrets;

/// Arguments of `flannelctl bundle`.
#[derive(Args)]
#[command(after_help = "From every node of a Kubernetes cluster: flannelctl bundle --kubernetes")]
pub(crate) struct BundleArgs {
    /// Where to write it; - is standard output [default: flannel-bundle-HOST-TIME.tar.gz]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    socket: SocketArgs,
    /// flanneld's log, if it is not in the journal
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// The unit whose journal is read
    #[arg(long, value_name = "UNIT", default_value = "flanneld")]
    unit: String,
    /// How many of the log's last lines
    #[arg(long, value_name = "N", default_value_t = 5000)]
    lines: usize,
    /// Where the container runtime looks for CNI configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Read FLANNELD_… variables from this file [default: /etc/flannel/flanneld.env, if there is one]
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    #[command(flatten)]
    kube: KubeArgs,
    /// How long one node may take, in seconds, with --kubernetes
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    limit: u64,
    /// flanneld's flags
    #[arg(last = true, value_name = "FLAG")]
    flags: Vec<String>,
}

/// Collects and writes.
///
/// # Errors
/// The archive cannot be written. What cannot be collected is named in it.
pub(crate) fn run(args: &BundleArgs) -> Result<ExitCode> {
    let settings = Settings::find(&args.flags, args.env_file.as_deref());
    let secrets = Secrets::find(settings.as_ref().ok());
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    let time = time.unwrap_or_default().as_secs();
    let place = if args.kube.is_given()? && WHOLE_CLUSTERS {
        "cluster".to_owned()
    } else {
        host_name()
    };
    let name = format!("flannel-bundle-{place}-{time}");
    let file = args
        .output
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    // Before all nodes are asked for minutes.
    if file != Path::new("-") && file.exists() {
        bail!(
            "{}: this file exists: name another one with -o",
            file.display()
        );
    }
    let mut archive = Archive::new(name.clone(), time, secrets);
    let complete = if args.kube.is_given()? && WHOLE_CLUSTERS {
        let limit = Duration::from_secs(args.limit);
        let collect = cluster::collect(&args.kube, archive, args.lines, limit);
        let (collected, complete) = wait_for(collect)?;
        archive = collected;
        complete
    } else {
        let source = collect::Source {
            socket: &args.socket.socket,
            log: args.log.as_deref(),
            unit: &args.unit,
            lines: args.lines,
            cni_conf_dir: &args.cni_conf_dir,
            flags: &args.flags,
        };
        let collection = Collection {
            archive: &mut archive,
            missing: Vec::new(),
        };
        collection.everything(&source, &settings)?;
        true
    };
    let status = if complete {
        ExitCode::SUCCESS
    } else {
        status::no()
    };
    let bytes = archive.finish()?;
    if file == Path::new("-") {
        let mut out = io::stdout().lock();
        out.write_all(&bytes).context("standard output")?;
        out.flush().context("standard output")?;
        return Ok(status);
    }
    let shown = file.display();
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    let mut out = options.open(&file).with_context(|| format!("{shown}"))?;
    out.write_all(&bytes).with_context(|| format!("{shown}"))?;
    output::line(&format!("{shown}"));
    Ok(status)
}

/// This machine's name, as far as a file's name can hold it.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let name: String = name.chars().filter(|c| good(*c)).take(64).collect();
    if name.is_empty() {
        "node".to_owned()
    } else {
        name
    }
}
