//! `flanneld`: see `flanneld -help`.

#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use flanneld::logging::LogControl;
use flanneld::options::Options;
use flanneld::settle::{open_kernel, open_store, wrong_flag};
use flanneld::status::Status;
use flanneld::{flags, health, logging, startup, status_socket, systemd};
use store::Store;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info};

/// What a wrong command line ends with; everything else that goes wrong ends with 1.
const USAGE: u8 = 2;

/// By this `flannelctl` knows a running daemon, whatever its file is called.
const SIGN: &str = "flannel-rs node daemon";

fn main() -> ExitCode {
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
        let _ = writeln!(
            std::io::stdout(),
            "flannel-rs v{}",
            env!("CARGO_PKG_VERSION")
        );
        return ExitCode::SUCCESS;
    }
    let options = match Options::from_flags(&given) {
        Ok(options) => options,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "flanneld: {error}");
            return ExitCode::from(USAGE);
        }
    };
    let log = logging::start(options.verbosity, options.json_logs);
    match start(options, log) {
        Ok(code) => code,
        Err(error) if wrong_flag(&error) => {
            error!("{error:#}");
            ExitCode::from(USAGE)
        }
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(options: Options, log: LogControl) -> anyhow::Result<ExitCode> {
    info!("flannel-rs v{}", env!("CARGO_PKG_VERSION"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    let ended = local.block_on(&runtime, serve(options, log));
    drop(local);
    // A file system that hangs must not keep the process: nobody waits for its answer any more.
    runtime.shutdown_background();
    ended
}

async fn serve(options: Options, log: LogControl) -> anyhow::Result<ExitCode> {
    let mut stop = Stop::new()?;
    let status = Status::default();
    status.set_log_control(log);
    if let Some(addr) = options.healthz {
        health::serve(addr, status.clone()).await?;
    }
    status.set_store(options.store.to_string());
    status_socket::serve(status_socket::path(&options.subnet_file), status.clone());
    let store = open_store(&options)?;
    status.set_store_waits(store.status());
    let kernel = open_kernel(&options)?;
    // Every step of the daemon may be dropped at its next await: files are written whole, and
    // the kernel keeps what it was given.
    let mut daemon = tokio::select! {
        daemon = startup::start(options, store, kernel, status) => daemon?,
        signal = stop.asked() => return Ok(stopped(signal)),
    };
    let signal = tokio::select! {
        ended = daemon.run() => return ended,
        signal = stop.asked() => signal,
    };
    if daemon.tears_down() {
        info!("{signal}: taking the network down");
        systemd::stopping("taking the network down");
        daemon.tear_down().await;
        return Ok(ExitCode::SUCCESS);
    }
    Ok(stopped(signal))
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

fn stopped(signal: &str) -> ExitCode {
    info!("{signal}: stopping; routes and devices stay in place");
    systemd::stopping("stopping; routes and devices stay");
    ExitCode::SUCCESS
}
