//! Health of the mesh: this node probes the others, through the tunnel and past it, and answers their probes.
//!
//! | module | holds |
//! |---|---|
//! | [`packet`] | the datagrams |
//! | `mesh`, `rounds`, `track` | whom to probe next, what the answers mean: no I/O |
//! | `peer`, `target`, `sources` | what is stored of each node |
//! | `responder` | how many probes are answered |
//! | `verdict`, `diagnosis` | why a node does not answer: the judgement, and the evidence for it |
//! | `sockets`, `worker` | the thread that sends and receives |
//! | `summary` | figures and reports |

mod diagnosis;
mod mesh;
pub mod packet;
mod peer;
mod responder;
mod rounds;
mod sockets;
mod sources;
mod summary;
mod target;
mod track;
mod verdict;
mod worker;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use mio::Waker;
use model::{Dual, SubnetKey};

use crate::report::{MeshReport, PeerReport, ProbeState};
use mesh::Mesh;
pub(crate) use mesh::View;
pub(crate) use summary::{Figures, RTT_BOUNDS};
pub(crate) use target::Target;
pub use verdict::Cause;
use worker::Worker;

/// The prober, shared between its thread and what reports it.
#[derive(Clone)]
pub(crate) struct Probes {
    shared: Arc<Shared>,
    waker: Arc<Waker>,
}

/// The prober's life: it ends when this is dropped.
pub(crate) struct Probing(Probes);

impl Drop for Probing {
    fn drop(&mut self) {
        self.0.shared.ended.store(true, Ordering::Relaxed);
        // Without it, a second later.
        let _ = self.0.waker.wake();
    }
}

struct Shared {
    port: u16,
    ended: AtomicBool,
    mesh: Mutex<Mesh>,
    problem: Mutex<Option<String>>,
}

impl Shared {
    fn mesh(&self) -> MutexGuard<'_, Mesh> {
        self.mesh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_problem(&self, problem: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

impl Probes {
    /// Starts the thread; it probes nobody before the first [`Probes::set_view`].
    ///
    /// # Errors
    /// The system's, such as too many open files.
    pub(crate) fn start(port: u16) -> io::Result<(Probes, Probing)> {
        let shared = Arc::new(Shared {
            port,
            ended: AtomicBool::new(false),
            mesh: Mutex::new(Mesh::new()),
            problem: Mutex::new(None),
        });
        let (worker, waker) = Worker::new(Arc::clone(&shared), port)?;
        let span = tracing::Span::current();
        std::thread::Builder::new()
            .name("probes".to_owned())
            .spawn(move || span.in_scope(|| worker.run()))?;
        let probes = Probes {
            shared,
            waker: Arc::new(waker),
        };
        Ok((probes.clone(), Probing(probes)))
    }

    /// Returns the version of the view that is in use.
    pub(crate) fn version(&self) -> u64 {
        self.shared.mesh().view().version
    }

    /// Sets who this node and the others are.
    pub(crate) fn set_view(&self, view: View) {
        self.shared.mesh().update(view);
        // Without it, a second later.
        let _ = self.waker.wake();
    }

    /// Returns the figures.
    pub(crate) fn figures(&self) -> Figures {
        summary::figures(&self.shared.mesh())
    }

    /// Returns what is reported of the nodes together.
    pub(crate) fn report(&self) -> MeshReport {
        let problem = self.shared.problem.lock();
        let problem = problem.unwrap_or_else(PoisonError::into_inner).clone();
        let mesh = self.shared.mesh();
        let view = mesh.view();
        let mut report = MeshReport {
            port: self.shared.port,
            underlay: ips(&view.underlay),
            overlay: ips(&view.overlay),
            full_size: view.mtu,
            problem,
            ..MeshReport::default()
        };
        mesh.each(|seen| {
            let count = match seen.state {
                ProbeState::Reachable => &mut report.reachable,
                ProbeState::Failing => &mut report.failing,
                ProbeState::Silent => &mut report.silent,
                ProbeState::Unknown => &mut report.unknown,
            };
            *count += 1;
        });
        report
    }

    /// Adds to the report of each node what its probes show.
    pub(crate) fn annotate(&self, peers: &mut [PeerReport]) {
        let mesh = self.shared.mesh();
        let tunnel = &mesh.view().tunnel;
        for peer in peers {
            peer.probe = key_of(peer).and_then(|key| {
                mesh.one(&key, |seen| summary::report(seen, tunnel, self.shared.port))
            });
        }
    }
}

fn ips(all: &Dual<std::net::IpAddr>) -> Vec<std::net::IpAddr> {
    all.iter().map(|(_, ip)| *ip).collect()
}

/// Returns the subnets of a report as a key.
fn key_of(peer: &PeerReport) -> Option<SubnetKey> {
    let mut nets = Dual::default();
    for text in &peer.subnets {
        let net: IpNet = text.parse().ok()?;
        nets.set(model::Family::of_net(&net), Some(net));
    }
    SubnetKey::new(nets)
}
