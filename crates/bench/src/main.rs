//! `flannel-bench`: what flanneld costs, beside the same work done by `ip` and `bridge`.

#![allow(clippy::print_stdout)]

mod args;
mod cold;
mod etcd;
mod figure;
mod fleet;
mod follow;
mod goals;
mod idle;
mod kube;
mod parts;
mod plot;
mod plugin;
mod pods;
mod ready;
mod reference;
mod report;
mod rules;
mod stage;
mod stats;
mod target;
mod tunnels;
mod usage;
mod witness;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use args::Args;
use report::{Machine, Report};
use stage::Stage;

/// The name of the first figure, which the plot shows.
pub(crate) const COLD: &str = "exec → all in the kernel";

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) if args.help => {
            println!("{}", args::HELP);
            return ExitCode::SUCCESS;
        }
        Ok(args) => args,
        Err(message) => {
            eprintln!("flannel-bench: {message}");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("flannel-bench: something that must be reached was missed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("flannel-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<bool> {
    // While there is one thread.
    lab::become_root()?;
    let bin_dir = match &args.bin_dir {
        Some(dir) => dir.clone(),
        None => lab::flannel_bin_dir()?,
    };
    let flanneld = bin_dir.join("flanneld");
    let binary_bytes = std::fs::metadata(&flanneld)
        .with_context(|| flanneld.display().to_string())?
        .len();
    // Before the long part: what is missing is said at once.
    let plugin = args
        .wants(args::Part::Plugin)
        .then(|| plugin::find(args.plugin.as_deref(), &bin_dir));
    let plugin = plugin.transpose()?;
    let stage = Stage::build(&bin_dir)?;
    let (runs, mut figures) = parts::measure(&stage, args)?;
    if let Some(plugin) = plugin {
        figures.push(plugin::measure(&plugin, &stage.shared_dir())?);
    }
    drop(stage);
    if args.wants(args::Part::Kube) {
        figures.extend(kube::measure(&bin_dir, args.quick)?);
    }
    if args.wants(args::Part::Pods) {
        figures.extend(pods::measure(&root(), args.quick)?);
    }
    if args.wants(args::Part::Tunnels) {
        figures.extend(tunnels::measure(&bin_dir, &root(), args.quick)?);
    }
    let report = Report {
        machine: Machine::this(),
        binary_bytes,
        runs,
        figures,
    };
    println!("{}", report.table());
    let root = root();
    report.write(&root.join("target/bench"))?;
    if args.save {
        report.write(&root.join("docs/benchmarks"))?;
        report.write_into_page(&root.join("docs/benchmarks.md"))?;
    }
    Ok(report.good())
}

/// The project's directory: the nearest one upwards that has a `Cargo.lock`, else this one.
fn root() -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    here.ancestors()
        .find(|dir| dir.join("Cargo.lock").is_file())
        .unwrap_or(Path::new("."))
        .to_path_buf()
}
