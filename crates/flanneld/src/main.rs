//! `flanneld`: see `flanneld -help`.

mod memory;

use std::io::Write;
use std::process::ExitCode;

use flanneld::logging::LogControl;
use flanneld::node::{NodeBuilder, NodeError, Teardown};
use flanneld::options::{Options, ProcessOptions};
use flanneld::{flags, health, logging, status_socket, systemd, version};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

/// What a wrong command line ends with; everything else that goes wrong ends with 1.
const USAGE: u8 = 2;

/// By this `flannelctl` knows a running daemon, whatever its file is called.
const SIGN: &str = "flannel-rs node daemon";

fn main() -> ExitCode {
    memory::keep_small();
    // Keeps it in the program.
    std::hint::black_box(SIGN);
    let given = match flags::parse(std::env::args().skip(1), |name| std::env::var(name).ok()) {
        Ok(given) => given,
        Err(error) => {
            // Nobody to tell if this fails.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    if given.value("version") == "true" {
        let _ = writeln!(std::io::stdout(), "flannel-rs v{}", version::with_commit());
        return ExitCode::SUCCESS;
    }
    let options = ProcessOptions::from_flags(&given)
        .and_then(|process| Ok((process, Options::from_flags(&given)?)));
    let (process, options) = match options {
        Ok(options) => options,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "flanneld: {error}");
            return ExitCode::from(USAGE);
        }
    };
    let log = logging::start(process.verbosity, process.json_logs);
    match start(process, options, log) {
        Ok(code) => code,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(process: ProcessOptions, options: Options, log: LogControl) -> anyhow::Result<ExitCode> {
    info!("flannel-rs v{}", version::with_commit());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    let ended = local.block_on(&runtime, serve(process, options, log));
    drop(local);
    // A file system that hangs must not keep the process: nobody waits for its answer any more.
    runtime.shutdown_background();
    ended
}

async fn serve(
    process: ProcessOptions,
    options: Options,
    log: LogControl,
) -> anyhow::Result<ExitCode> {
    let mut stop = Stop::new()?;
    let socket = status_socket::path(&options.subnet_file);
    let (node, runner) = NodeBuilder::new(options).prepare();
    if let Some(addr) = process.healthz {
        health::serve(addr, process.health_page, node.observer()).await?;
    }
    status_socket::serve(socket.clone(), node.observer(), log, memory::give_back);
    tokio::task::spawn_local(systemd::follow(node.observer()));
    let mut run = Box::pin(runner.run());
    let signal = tokio::select! {
        ended = &mut run => return Ok(ended_alone(ended)),
        signal = stop.asked() => signal,
    };
    if !process.teardown {
        info!("{signal}: stopping; routes and devices stay in place");
        systemd::stopping("stopping; routes and devices stay");
        node.request_stop(Teardown::Keep);
        return Ok(exit_code(run.await));
    }
    info!("{signal}: taking the network down");
    systemd::stopping("taking the network down");
    let had_subnet = node.lease().is_some();
    node.request_stop(Teardown::Remove);
    let ended = run.await;
    if had_subnet {
        let _ = std::fs::remove_file(socket);
    }
    Ok(exit_code(ended))
}

/// Returns what the process ends with if the node has ended without being asked to.
fn ended_alone(ended: Result<(), NodeError>) -> ExitCode {
    if let Err(NodeError::LeaseLost { .. }) = &ended {
        systemd::stopping("the lease is lost");
    }
    exit_code(ended)
}

fn exit_code(ended: Result<(), NodeError>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ NodeError::Settings(_)) => {
            error!("{error}");
            ExitCode::from(USAGE)
        }
        Err(error @ NodeError::LeaseLost { .. }) => {
            error!("{error}; stopping, so that the supervisor starts a new daemon");
            ExitCode::FAILURE
        }
        // The network is down, and what is left harms nobody.
        Err(error @ NodeError::Left(_)) => {
            warn!("{error}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The signals that ask for an end.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Stop> {
        Ok(Stop {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits until one is received; returns its name. Cancel-safe.
    async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
