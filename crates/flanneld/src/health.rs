//! The health server: `/healthz` (the process lives), `/readyz` (the node's network works),
//! `/metrics`.
//!
//! It has a thread of its own, so that whoever floods the port takes nothing from the network, and a busy main loop
//! keeps no probe waiting.

mod head;
mod port;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::net::{TcpListener, TcpSocket};
use tracing::info;

use crate::status::Status;
pub use port::PageFor;
use port::{Answer, Port};

/// How long the page for people waits for the main loop.
const MESH_LIMIT: Duration = Duration::from_secs(3);

/// How often the main loop is asked for that page, at most; who asks meanwhile gets the next answer.
const MESH_EVERY: Duration = Duration::from_secs(1);

/// Connections that the kernel keeps for us between two rounds; it lowers this to its own limit.
const BACKLOG: u32 = 4096;

/// The port of a daemon that has just been killed may be held a moment longer, by a program that
/// it was about to start.
const PREDECESSOR: Duration = Duration::from_secs(1);

async fn listen(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let began = Instant::now();
    loop {
        match bind(addr) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && began.elapsed() < PREDECESSOR => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done => return done,
        }
    }
}

fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Listens, and answers from a thread of its own until the process ends. The calling thread's `LocalSet` says what
/// the answers are.
///
/// # Errors
/// The address cannot be had: names the flags and the address.
pub async fn serve(addr: SocketAddr, page_for: PageFor, status: Status) -> anyhow::Result<()> {
    let listener = listen(addr).await.with_context(|| {
        format!(
            "-healthz-ip {} -healthz-port {}: cannot listen there",
            addr.ip(),
            addr.port()
        )
    })?;
    let (port, mut questions, answers) = Port::open(listener.into_std()?, page_for)?;
    info!("health server on http://{addr}");
    let (for_ready, for_metrics) = (answers.clone(), status.clone());
    let (for_mesh, mesh_status) = (answers.clone(), status.clone());
    tokio::task::spawn_local(async move {
        while questions.mesh.recv().await.is_some() {
            for_mesh.give(Answer::Mesh(mesh(&mesh_status).await));
            // The nodes of a large cluster are many: whoever asks all the time gets no more than this of the main loop.
            tokio::time::sleep(MESH_EVERY).await;
        }
    });
    tokio::task::spawn_local(async move {
        while questions.ready.recv().await.is_some() {
            for_ready.give(Answer::Ready(readiness(&status)));
        }
    });
    // Apart: it waits for the main loop's figures.
    tokio::task::spawn_local(async move {
        while questions.metrics.recv().await.is_some() {
            for_metrics.refresh_peer_states().await;
            answers.give(Answer::Metrics(for_metrics.metrics()));
        }
    });
    std::thread::Builder::new()
        .name("health".to_owned())
        .spawn(move || port.run())
        .context("start the health server's thread")?;
    Ok(())
}

/// Returns what the page for people shows.
async fn mesh(status: &Status) -> String {
    let peers = status.peers(MESH_LIMIT).await.peers;
    serde_json::json!({ "node": status.report(), "peers": peers }).to_string()
}

fn readiness(status: &Status) -> Result<String, String> {
    let problems = status.problems();
    if !problems.is_empty() {
        Err(problems.join("\n"))
    } else if let Some(what) = status.degraded() {
        Ok(format!("ready, but {what}"))
    } else {
        Ok("ready".to_owned())
    }
}
