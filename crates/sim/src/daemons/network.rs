//! The connections between nodes and the members of etcd, and what goes wrong with them.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use store::{Dialer, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::sync::watch;
use tokio::time::sleep;

use super::etcd_server::{EtcdServer, Fate};

/// Room for what is on its way in one direction.
const PIPE: usize = 64 << 10;

/// What a path from a node to a member of etcd is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathState {
    /// It works.
    Open,
    /// Packets are dropped.
    Silent,
    /// Connections are refused.
    Refused,
}

/// A path from one node to one member.
#[derive(Clone)]
struct Path {
    state: watch::Sender<PathState>,
    /// Changes whenever the connections end.
    cuts: watch::Sender<u64>,
}

/// The paths from all nodes to all members, and how requests fare on them.
#[derive(Clone)]
pub struct Network {
    server: EtcdServer,
    paths: Arc<Mutex<BTreeMap<(usize, String), Path>>>,
    /// How many of 100 requests of a node go wrong.
    losses: Arc<Mutex<BTreeMap<usize, u8>>>,
}

impl Network {
    /// Returns a network in which all works.
    pub fn new(server: EtcdServer) -> Network {
        Network {
            server,
            paths: Arc::default(),
            losses: Arc::default(),
        }
    }

    /// Returns what opens the connections of a node.
    pub fn dialer(&self, node: usize) -> Dialer {
        let network = self.clone();
        Dialer::new(move |host, _port| {
            let (network, host) = (network.clone(), host.to_owned());
            Box::pin(async move { network.connect(node, host).await })
        })
    }

    /// Sets the state of the paths of a node to all members, or to one.
    pub fn set(&self, node: usize, member: Option<&str>, state: PathState) {
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        for member in members().filter(|of| member.is_none_or(|only| only == *of)) {
            let path = paths
                .entry((node, member.to_owned()))
                .or_insert_with(Path::new);
            path.state.send_replace(state);
            if state == PathState::Refused {
                path.cut();
            }
        }
    }

    /// Returns whether a node can reach no member.
    pub fn is_cut_off(&self, node: usize) -> bool {
        members().all(|member| *self.path(node, member).state.borrow() != PathState::Open)
    }

    /// Ends the connections of a node.
    pub fn cut(&self, node: usize) {
        members().for_each(|member| self.path(node, member).cut());
    }

    /// Has so many of 100 requests of a node go wrong.
    pub fn set_losses(&self, node: usize, percent: u8) {
        let mut losses = self.losses.lock().unwrap_or_else(PoisonError::into_inner);
        losses.insert(node, percent);
    }

    fn path(&self, node: usize, member: &str) -> Path {
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        let path = paths.entry((node, member.to_owned()));
        path.or_insert_with(Path::new).clone()
    }

    fn fate(&self, node: usize) -> Fate {
        let losses = self.losses.lock().unwrap_or_else(PoisonError::into_inner);
        let percent = losses.get(&node).copied().unwrap_or(0);
        if percent == 0 || fastrand::u8(..100) >= percent {
            return Fate::Answered;
        }
        match fastrand::u8(..3) {
            0 => Fate::Lost,
            1 => Fate::AnswerLost,
            _ => Fate::Late(Duration::from_millis(fastrand::u64(..30_000))),
        }
    }

    async fn connect(&self, node: usize, member: String) -> io::Result<Box<dyn Stream>> {
        let path = self.path(node, &member);
        sleep(latency()).await;
        let state = *path.state.borrow();
        match state {
            PathState::Open => {}
            PathState::Silent => return std::future::pending().await,
            PathState::Refused => return Err(io::ErrorKind::ConnectionRefused.into()),
        }
        let (client, near) = duplex(PIPE);
        let (far, server) = duplex(PIPE);
        let (near_read, near_write) = split(near);
        let (far_read, far_write) = split(far);
        let mut cuts = path.cuts.subscribe();
        let (there, back) = (path.state.subscribe(), path.state.subscribe());
        let network = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = cuts.changed() => {}
                () = carry(near_read, far_write, there) => {}
                () = carry(far_read, near_write, back) => {}
                () = network.serve(server, node, path) => {}
            }
        });
        Ok(Box::new(client))
    }

    async fn serve(&self, stream: DuplexStream, node: usize, path: Path) {
        let service = service_fn(move |request| {
            let (server, cuts, fate) = (self.server.clone(), path.clone(), self.fate(node));
            server.answer(request, fate, move || cuts.cut())
        });
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new());
        // The end of a connection is the client's concern.
        let _ = http.serve_connection(TokioIo::new(stream), service).await;
    }
}

impl Path {
    fn new() -> Path {
        Path {
            state: watch::Sender::new(PathState::Open),
            cuts: watch::Sender::new(0),
        }
    }

    fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

/// Returns the names of etcd's members.
pub fn members() -> impl Iterator<Item = &'static str> {
    ["etcd-1.test", "etcd-2.test"].into_iter()
}

fn latency() -> Duration {
    Duration::from_micros(fastrand::u64(100..2000))
}

/// Carries bytes from one end to the other as long as the path lets them through.
async fn carry(
    mut from: ReadHalf<DuplexStream>,
    mut to: WriteHalf<DuplexStream>,
    mut state: watch::Receiver<PathState>,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        sleep(latency()).await;
        if state
            .wait_for(|state| *state == PathState::Open)
            .await
            .is_err()
        {
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
