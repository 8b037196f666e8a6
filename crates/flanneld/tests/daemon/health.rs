//! The health port while clients misbehave: whoever probes is answered at once.

#![allow(unsafe_code, reason = "the limit of open files")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::scene::{self, SOON};

const CLIENTS: usize = 10_000;
const PROBES: usize = 50;
/// What a kubelet's probe may take.
const PROMPT: Duration = Duration::from_millis(100);
/// When a probe gives up.
const PATIENCE: Duration = Duration::from_secs(2);
/// What the daemon may grow by, in KiB: 256 connections with 8 KiB of each, and the allocator's share.
const GROWTH: u64 = 16 << 10;

/// What a client does that has connected, besides never going away by itself.
#[derive(Clone, Copy, Debug)]
enum Habit {
    /// Says nothing.
    Silent,
    /// Sends a head and never its end.
    SlowHead,
    /// Asks many times over and reads no answer.
    ReadsNothing,
}

/// How long an answer is left unread, and how long a client that was thrown out stays away. All
/// clients together come more than a thousand times a second.
const PAUSE: Duration = Duration::from_secs(3);

const HABITS: [Habit; 3] = [Habit::Silent, Habit::SlowHead, Habit::ReadsNothing];

/// Connects, misbehaves until it is thrown out, and comes again.
async fn misbehave(to: SocketAddr, habit: Habit, pause: Duration, connections: Arc<AtomicUsize>) {
    loop {
        let Ok(mut stream) = tokio::net::TcpStream::connect(to).await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        connections.fetch_add(1, Ordering::Relaxed);
        let said = match habit {
            Habit::Silent => Ok(()),
            Habit::SlowHead => stream.write_all(b"GET /healthz HTTP/1.1\r\nX-Slow: ").await,
            Habit::ReadsNothing => {
                let ask = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
                stream.write_all(ask.as_bytes()).await
            }
        };
        if said.is_ok() {
            match habit {
                // Whatever was answered stays unread.
                Habit::ReadsNothing => tokio::time::sleep(PAUSE).await,
                _ if pause.is_zero() => drop(stream.read(&mut [0; 64]).await),
                _ => {
                    let _ = stream.read(&mut [0; 64]).await;
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

fn probe(to: SocketAddr) -> (Duration, String) {
    let began = Instant::now();
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut text = String::new();
        match stream.read_to_string(&mut text) {
            // It said all that it had to say.
            Err(e) if e.kind() == ErrorKind::ConnectionReset && !text.is_empty() => {}
            read => drop(read?),
        }
        Ok(text)
    };
    let text = ask().unwrap_or_else(|e| e.to_string());
    (began.elapsed(), text)
}

/// Room for the clients' sockets.
fn raise_file_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid for the write and the read of one structure.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    };
    assert_eq!(raised, 0);
    assert!(limit.rlim_cur > CLIENTS as u64 + 1000, "ulimit -Hn");
}

/// Clients that stay away for a while after they were thrown out, and clients that are back at once.
#[test]
fn probes_are_answered_at_once_while_ten_thousand_clients_misbehave() {
    let _alone = scene::alone();
    raise_file_limit();
    for pause in [PAUSE, Duration::ZERO] {
        attack(pause);
    }
}

fn attack(pause: Duration) {
    let lab = scene::lab().nodes(1).build().unwrap();
    let daemon = lab.node(1).flanneld();
    daemon.start_ready(SOON).unwrap();
    let pid = daemon.pid().unwrap();
    let before = lab::usage(pid).unwrap().rss_kib;
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 10471));
    let (connections, over) = (Arc::new(AtomicUsize::new(0)), AtomicBool::new(false));
    let attack = || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            for i in 0..CLIENTS {
                tokio::spawn(misbehave(to, HABITS[i % 3], pause, connections.clone()));
            }
            while !over.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
    };
    let probes = lab.node(1).run(|| {
        std::thread::scope(|scope| {
            scope.spawn(attack);
            let enough = || match connections.load(Ordering::Relaxed) {
                n if n >= 2 * CLIENTS => Ok(()),
                n => Err(n.to_string()),
            };
            let began = lab::wait_for("every client was thrown out once", SOON * 3, enough);
            let mut probes = Vec::new();
            while probes.len() < PROBES && probes.iter().all(|(took, _)| *took < PATIENCE) {
                probes.push(probe(to));
            }
            over.store(true, Ordering::Relaxed);
            began.unwrap();
            probes
        })
    });
    let probes = probes.unwrap();
    let usage = lab::usage(pid).unwrap();
    let slowest = probes.iter().map(|(took, _)| *took).max().unwrap();
    eprintln!(
        "{} connections, slowest of {PROBES} probes {slowest:?}, memory {before} KiB, at most {} KiB",
        connections.load(Ordering::Relaxed),
        usage.peak_rss_kib
    );
    for (_, text) in &probes {
        assert!(text.contains("flanneld is running"), "{text:?}");
    }
    let prompt = probes.iter().filter(|(took, _)| *took < PROMPT).count();
    assert!(
        prompt >= PROBES * 9 / 10,
        "{prompt} of {PROBES}: {probes:?}"
    );
    assert!(usage.peak_rss_kib < before + GROWTH);
    // The exchange is over: nothing is kept open for a second request.
    let (_, answer) = lab.node(1).run(|| probe(to)).unwrap();
    assert!(
        answer.to_lowercase().contains("connection: close"),
        "{answer}"
    );
}
