//! Endpoints that are not an etcd, or that cannot answer: the next one is tried.

use std::process::Command;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, LocalSet, spawn_local};

use store::{AnyStore, EtcdSettings, EtcdStore};

use crate::etcd_server::{Etcd, free_port};
use crate::lossy::{Frames, HEADERS, PREFACE};
use crate::node::{LIMIT, Node, key, local, value};
use crate::programs::Process;
use crate::world::{PREFIX, World};

#[derive(Clone, Copy, Debug)]
enum Impostor {
    /// Takes connections and never says anything.
    Silent,
    /// Ends every connection at once.
    Closing,
    /// Says something that no protocol knows.
    Babbling,
    /// A web server that does not know HTTP/2.
    Http1,
    /// A server that expects TLS.
    Tls,
    /// A web server without such a page.
    NotFound,
    /// A web server that answers everything with a page.
    Page,
    /// A gRPC server of something else.
    OtherService,
}

use Impostor::*;

const IMPOSTORS: [Impostor; 8] = [
    Silent,
    Closing,
    Babbling,
    Http1,
    Tls,
    NotFound,
    Page,
    OtherService,
];

impl Impostor {
    /// Runs on a port that is returned.
    async fn start(self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        spawn_local(async move {
            while let Ok((client, _)) = listener.accept().await {
                spawn_local(self.serve(client));
            }
        });
        port
    }

    async fn serve(self, mut client: TcpStream) {
        let mut preface = [0; PREFACE.len()];
        let greeting: &[u8] = match self {
            Closing => return,
            Silent => b"",
            Babbling => b"SSH-2.0-OpenSSH_9.2p1\r\n",
            Http1 => b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            // Alert: unexpected message.
            Tls => &[0x15, 3, 1, 0, 2, 2, 10],
            NotFound => return serve_http2(client, &[0x8d]).await,
            Page => return serve_http2(client, b"\x88\x0f\x10\x09text/html").await,
            OtherService => {
                let block = b"\x88\x0f\x10\x10application/grpc\0\x0bgrpc-status\x0212";
                return serve_http2(client, block).await;
            }
        };
        if client.read_exact(&mut preface).await.is_ok() && client.write_all(greeting).await.is_ok()
        {
            // What is not read would be answered with a reset.
            let mut rest = [0; 1024];
            while client.read(&mut rest).await.is_ok_and(|n| n > 0) {}
        }
    }
}

/// Answers every request with one header block.
async fn serve_http2(mut client: TcpStream, block: &[u8]) {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let mut preface = [0; PREFACE.len()];
    if client.read_exact(&mut preface).await.is_err() || client.write_all(&SETTINGS).await.is_err()
    {
        return;
    }
    let mut frames = Frames::default();
    let mut buffer = [0; 1024];
    while let Ok(n) = client.read(&mut buffer).await {
        if n == 0 {
            return;
        }
        frames.arrived(&buffer[..n]);
        while let Some(frame) = frames.take() {
            if frame.kind == HEADERS {
                let length = u8::try_from(block.len()).unwrap();
                // Ends the headers, and the stream.
                let mut answer = vec![0, 0, length, HEADERS, 5];
                answer.extend_from_slice(&frame.stream.to_be_bytes());
                answer.extend_from_slice(block);
                if client.write_all(&answer).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn store(endpoints: String) -> AnyStore {
    EtcdStore::new(EtcdSettings {
        endpoints,
        prefix: PREFIX.into(),
        ..EtcdSettings::default()
    })
    .unwrap()
    .into()
}

/// A node gets its lease, and hears of another one.
async fn served(etcd: &Etcd, endpoints: String, n: u32) {
    let mut node = Node::start(store(endpoints), n).await;
    let name = format!("10.20.{}.0-24", 200 + n);
    etcd.put(&format!("{PREFIX}/subnets/{name}"), &value(200 + n));
    node.until(&name, |node| {
        node.complete && node.known.contains_key(&key(&name)) && node.own_key().is_some()
    })
    .await;
    assert_eq!(node.revoked, None);
}

#[test]
fn what_is_not_an_etcd_is_passed_over() {
    local(async {
        let etcd = Rc::new(<Etcd as World>::new());
        let mut addresses = vec![
            // Nobody listens there.
            "http://127.0.0.1:1".to_string(),
            // TLS with a server that has none.
            etcd.url().replace("http:", "https:"),
        ];
        for impostor in IMPOSTORS {
            addresses.push(format!("http://127.0.0.1:{}", impostor.start().await));
        }
        let mut nodes = JoinSet::new();
        let all = LocalSet::new();
        for (n, address) in (1..).zip(addresses) {
            let etcd = etcd.clone();
            let endpoints = format!("{address},{}", etcd.url());
            let node = async move { served(&etcd, endpoints, n).await };
            nodes.spawn_local_on(node, &all);
        }
        all.run_until(nodes.join_all()).await;
    });
}

/// A member that copies the others and answers nobody.
#[test]
fn a_learner_is_passed_over() {
    local(async {
        let etcd = <Etcd as World>::new();
        let (client, peer) = (free_port(), free_port());
        let (client, peer) = (
            format!("http://127.0.0.1:{client}"),
            format!("http://127.0.0.1:{peer}"),
        );
        let peers = format!("--peer-urls={peer}");
        etcd.ctl(&["member", "add", "learner", "--learner", &peers]);
        let dir = tempfile::TempDir::new().unwrap();
        let members = format!("test={},learner={peer}", etcd.peer_url());
        let _learner = Process::start(
            Command::new("etcd")
                .args([
                    "--name",
                    "learner",
                    "--log-level",
                    "error",
                    "--logger",
                    "zap",
                ])
                .args(["--listen-client-urls", &client])
                .args(["--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer])
                .args(["--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &members])
                .args(["--initial-cluster-state", "existing"])
                .arg("--data-dir")
                .arg(dir.path().join("data")),
        );
        // It is up when it refuses for this reason and no other.
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let asked = etcd.try_ctl_at(&client, &["get", "x"], "");
            if asked.as_ref().is_err_and(|why| why.contains("learner")) {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{asked:?}");
        }
        served(&etcd, format!("{client},{}", etcd.url()), 1).await;
    });
}
