//! The proxy: its threads, and what the daemon can tell them while they run.

#![allow(unsafe_code, reason = "looks up a device by its name")]

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::socket::Socket;
use crate::statistics::{Counters, Statistics};
use crate::table::Table;
use crate::tun::{Offloads, Queue, TunError};
use crate::wake::{Stop, wait};
use crate::wireguard::{Identity, Peer, Peers, TICK, Wireguard};
use crate::worker::carry;

/// How long an attempt to attach is put off after a failure: doubled each time up to the longest.
const RETRY: Duration = Duration::from_millis(20);
const RETRY_LONGEST: Duration = Duration::from_secs(2);

/// What a proxy is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The TUN device. It is waited for, and attached to again when it was deleted and made anew.
    pub device: String,
    /// Address and port for the peers' datagrams, which also are the source of ours.
    pub listen: SocketAddr,
    /// The largest packet that peers take, in bytes.
    pub mtu: usize,
    /// Keys, if packets are to be encrypted.
    pub wireguard: Option<Wireguard>,
    /// How many queues the device and how many sockets the port gets. Each has a thread.
    pub queues: usize,
}

/// Why a proxy does not carry packets at present.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// There is no such device.
    #[error("TUN device {0} does not exist yet")]
    NoDevice(String),
    /// The device cannot be used.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The port cannot be used.
    #[error("UDP {at}: {error}{}", remedy(.error))]
    Bind {
        /// Address and port.
        at: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// No thread could be started.
    #[error("cannot start the proxy's threads: {0}")]
    Thread(io::Error),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            ": another process uses the port (ss -ulnp shows it): stop it, or set another Backend.Port for all nodes"
        }
        Some(libc::EADDRNOTAVAIL) => ": no interface has this address",
        _ => "",
    }
}

/// What the workers read for each batch.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) to: Carrier,
    pub(crate) mtu: usize,
}

/// How packets get to the peers.
#[derive(Debug)]
pub(crate) enum Carrier {
    /// As they are.
    Plain(Table),
    /// Encrypted.
    Sealed(Peers),
}

/// What all threads of a proxy share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) device: String,
    pub(crate) counters: Counters,
    view: ArcSwap<View>,
    /// Why nothing is carried, if so.
    problem: Mutex<Option<String>>,
    stop: Stop,
}

impl Shared {
    pub(crate) fn view(&self) -> arc_swap::Guard<Arc<View>> {
        self.view.load()
    }

    fn set_problem(&self, problem: Option<String>) {
        let mut place = self
            .problem
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        match &problem {
            Some(text) if place.as_ref() != Some(text) => {
                tracing::debug!("{text}; no packets are carried until this is over");
            }
            None if place.is_some() => tracing::debug!("{} carries packets", self.device),
            Some(_) | None => {}
        }
        *place = problem;
    }
}

/// A tunnel in user space. It runs in threads of its own until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    config: Config,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts the threads, in the network namespace of the caller. Device and port are waited for:
    /// [`Proxy::problem`] says why packets are not carried.
    ///
    /// # Errors
    /// The process cannot have more threads or descriptors.
    pub fn start(config: Config) -> io::Result<Proxy> {
        let shared = Arc::new(Shared {
            device: config.device.clone(),
            counters: Counters::default(),
            view: ArcSwap::from_pointee(View {
                to: match config.wireguard {
                    Some(keys) => Carrier::Sealed(Peers::none(Arc::new(Identity::new(keys)))),
                    None => Carrier::Plain(Table::default()),
                },
                mtu: config.mtu,
            }),
            problem: Mutex::new(Some(format!("{} is being attached to", config.device))),
            stop: Stop::new()?,
        });
        let thread = {
            let (config, shared) = (config.clone(), shared.clone());
            let span = tracing::Span::current();
            std::thread::Builder::new()
                .name("proxy".into())
                .spawn(move || span.in_scope(|| supervise(&config, &shared)))?
        };
        Ok(Proxy {
            config,
            shared,
            thread: Some(thread),
        })
    }

    /// Replaces the table of next hops, of a proxy that does not encrypt. Packets that are under way use the
    /// one that was there when they were read.
    pub fn set_table(&self, table: Table) {
        if self.config.wireguard.is_none() {
            self.set(Carrier::Plain(table));
        }
    }

    /// Replaces the peers of a proxy that encrypts. Those that stay keep their sessions.
    pub fn set_peers(&self, peers: &[Peer]) {
        if let Carrier::Sealed(before) = &self.shared.view().to {
            self.set(Carrier::Sealed(before.with(peers)));
        }
    }

    fn set(&self, to: Carrier) {
        let mtu = self.config.mtu;
        self.shared.view.store(Arc::new(View { to, mtu }));
    }

    /// Returns what it was started with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns why packets are not carried at present; `None` while they are.
    pub fn problem(&self) -> Option<String> {
        self.shared
            .problem
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }

    /// Returns the counters.
    pub fn statistics(&self) -> Statistics {
        self.shared.counters.read()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.give();
        if let Some(thread) = self.thread.take() {
            // It only fails if the thread panicked, which has been reported.
            let _ = thread.join();
        }
    }
}

/// Keeps the workers running: attaches to device and port, and again when they are lost.
fn supervise(config: &Config, shared: &Shared) {
    let mut delay = RETRY;
    while !shared.stop.is_given() {
        match attach(config) {
            Ok(attached) => {
                shared.set_problem(None);
                let began = Instant::now();
                if let Err(error) = run(shared, &attached) {
                    shared.set_problem(Some(Problem::Thread(error).to_string()));
                }
                if began.elapsed() > RETRY_LONGEST {
                    delay = RETRY;
                }
            }
            Err(problem) => shared.set_problem(Some(problem.to_string())),
        }
        if wait(&[&shared.stop; 2], &[], Some(delay)) {
            return;
        }
        delay = (delay * 2).min(RETRY_LONGEST);
    }
}

/// Both sides of a tunnel.
struct Attached {
    queues: Vec<Queue>,
    sockets: Vec<Socket>,
    offloads: Offloads,
}

fn attach(config: &Config) -> Result<Attached, Problem> {
    // Opening a device that does not exist would create it.
    if !exists(&config.device) {
        return Err(Problem::NoDevice(config.device.clone()));
    }
    let count = config.queues.max(1);
    let sockets = Socket::bind_all(config.listen, count).map_err(|error| Problem::Bind {
        at: config.listen,
        error,
    })?;
    let (queues, offloads) = Queue::open_all(&config.device, count)?;
    Ok(Attached {
        queues,
        sockets,
        offloads,
    })
}

fn exists(device: &str) -> bool {
    std::ffi::CString::new(device).is_ok_and(|name| {
        // SAFETY: a string with an end, which outlives the call.
        unsafe { libc::if_nametoindex(name.as_ptr()) > 0 }
    })
}

/// Runs the workers until one of them finds that the device is gone, or an order to stop is given.
fn run(shared: &Shared, attached: &Attached) -> io::Result<()> {
    let ended = Stop::new()?;
    let stops = [&shared.stop, &ended];
    let udp = attached.offloads.udp;
    std::thread::scope(|scope| {
        let mut started = Ok(());
        if let (Carrier::Sealed(_), Some(socket)) = (&shared.view().to, attached.sockets.first()) {
            let timers = || {
                while !wait(&stops, &[], Some(TICK)) {
                    if let Carrier::Sealed(peers) = &shared.view().to {
                        peers.tick(socket);
                    }
                }
            };
            let named = std::thread::Builder::new().name("proxy-timers".into());
            named.spawn_scoped(scope, timers)?;
        }
        for (queue, socket) in attached.queues.iter().zip(&attached.sockets) {
            let (ended, stops) = (&ended, &stops);
            let span = tracing::Span::current();
            let worker = move || {
                // The reason shows in the next attempt to attach.
                let _ = span.in_scope(|| carry(shared, stops, queue, socket, udp));
                ended.give();
            };
            let named = std::thread::Builder::new().name("proxy-queue".into());
            if let Err(error) = named.spawn_scoped(scope, worker) {
                ended.give();
                started = Err(error);
                break;
            }
        }
        started
    })
}
