//! Stores that misbehave: whatever one answers, the daemon stays small, says so in a line or two, and works as soon
//! as the store does.
//!
//! Each habit has a node of its own, whose store is reached through a port of that node: first a server with that
//! habit answers there, then what comes is passed on to a good one.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use flate2::{Compress, Compression, FlushCompress};
use lab::{Lab, Node, holds_for, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::scene::{self, ETCD};

/// How long each daemon has to do with the hostile server.
const LONG: Duration = Duration::from_secs(6);
const SOON: Duration = Duration::from_secs(60);
/// What a daemon may take at most.
const MEMORY_KIB: u64 = 64 << 10;
/// Lines of warnings or errors while the store misbehaves: one for each text. The system calls a connection that
/// breaks closed, reset or a broken pipe, as it happens.
const LINES: usize = 4;
/// Bytes of a line at most: what comes from outside is cut.
const LONGEST_LINE: usize = 2200;
const PORT: u16 = 2399;

/// Whether the daemon may still be waiting for the rest of an answer, inflating it, or waiting for the list of the
/// other nodes.
fn is_slow(name: &str) -> bool {
    ["silent", "drips", "a gzip bomb", "pages: drips"].contains(&name)
        || name.starts_with("the list")
        || name.starts_with("pages, quiet:")
}

/// Serves one connection in a hostile way.
type Serve = fn(TcpStream, SocketAddr) -> Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>>;

/// Answers on the port until the store is to be good, and then passes on to one at `to`.
async fn serve(habit: Serve, to: SocketAddr, mut good: watch::Receiver<bool>) {
    let listener = TcpListener::bind(("127.0.0.1", PORT)).await.unwrap();
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                if *good.borrow() {
                    tasks.spawn(pass_on(stream, to));
                } else {
                    tasks.spawn(habit(stream, to));
                }
            }
            changed = good.changed() => {
                tasks.shutdown().await;
                if changed.is_err() {
                    return;
                }
            }
            Some(_) = tasks.join_next() => {}
        }
    }
}

async fn pass_on(mut from: TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let mut to = TcpStream::connect(to).await?;
    copy_bidirectional(&mut from, &mut to).await.map(drop)
}

fn complaints(log: &str) -> Vec<&str> {
    let is = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
    log.lines().filter(is).collect()
}

/// A good store for a node, kept while this lives.
type Good = Pin<Box<dyn Future<Output = (SocketAddr, Box<dyn std::any::Any>)>>>;

/// Runs a daemon with `args` against each habit, and then against what `good` starts for its node.
fn each(
    lab: &Lab,
    habits: &[(&'static str, Serve)],
    args: impl Fn(&Node) -> Vec<String>,
    good: fn(&str) -> Good,
) {
    let (switch, switched) = watch::channel(false);
    let nodes: Vec<(&str, Serve, &Node)> = habits
        .iter()
        .enumerate()
        .map(|(at, (name, habit))| (*name, *habit, lab.node(at + 1)))
        .collect();
    std::thread::scope(|scope| {
        // Ends the servers also when an assertion fails.
        let switch = switch;
        for (_, habit, node) in &nodes {
            let (habit, switched) = (*habit, switched.clone());
            let name = node.name().to_owned();
            let run = move || {
                let runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = { runtime }.enable_all().build().unwrap();
                runtime.block_on(async {
                    let (to, _kept) = good(&name).await;
                    serve(habit, to, switched).await;
                });
            };
            scope.spawn(move || node.run(run).unwrap());
        }
        for (_, _, node) in &nodes {
            node.flanneld().set_args(args(node));
            node.flanneld().start().unwrap();
        }
        holds_for("every daemon stays small", LONG, || {
            for (name, _, node) in &nodes {
                if let Some(status) = node.flanneld().ended().unwrap() {
                    return Err(format!(
                        "{name}: ended, {status}: {}",
                        node.flanneld().log_tail(5)
                    ));
                }
                let peak = node.flanneld().usage().unwrap().peak_rss_kib;
                if peak > MEMORY_KIB {
                    let log = node.flanneld().log_tail(20);
                    return Err(format!("{name}: {peak} KiB: {log}"));
                }
            }
            Ok(())
        })
        .unwrap();
        let mut loud = Vec::new();
        for (name, _, node) in &nodes {
            let log = node.flanneld().log();
            let said = complaints(&log);
            let usage = node.flanneld().usage().unwrap();
            eprintln!(
                "{name}: {} KiB, {} lines: {}",
                usage.peak_rss_kib,
                said.len(),
                said.first().unwrap_or(&"")
            );
            if said.len() > LINES
                || said.iter().any(|line| line.len() > LONGEST_LINE)
                || (said.is_empty() && !is_slow(name))
            {
                loud.push(format!("{name}:\n    {}", said.join("\n    ")));
            }
        }
        assert!(loud.is_empty(), "{}", loud.join("\n"));
        switch.send(true).unwrap();
        for (name, _, node) in &nodes {
            wait_for(
                &format!("{name}: ready once the store is good"),
                SOON,
                || node.subnet_env(),
            )
            .unwrap_or_else(|e| panic!("{e}\n{}", node.flanneld().log_tail(10)));
            let peak = node.flanneld().usage().unwrap().peak_rss_kib;
            assert!(peak < MEMORY_KIB, "{name}: {peak} KiB");
        }
        drop(switch);
    });
}

/// Nothing but accepting.
fn silent(
    mut stream: TcpStream,
    _: SocketAddr,
) -> Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>> {
    Box::pin(async move {
        let mut sink = [0; 1024];
        while stream.read(&mut sink).await? > 0 {}
        Ok(())
    })
}

/// Bytes that mean nothing, without end.
fn garbage(
    mut stream: TcpStream,
    _: SocketAddr,
) -> Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>> {
    Box::pin(async move {
        loop {
            stream.write_all(&[b'A'; 16 << 10]).await?;
        }
    })
}

/// Endless gzip of one and the same 64 KiB: blocks that refer to nothing but what they repeat.
struct Bomb {
    start: Vec<u8>,
    again: Vec<u8>,
}

impl Bomb {
    fn of(first: &[u8], filling: u8) -> Bomb {
        let mut deflate = Compress::new_gzip(Compression::fast(), 15);
        let mut piece = |bytes: &[u8]| {
            let mut out = Vec::with_capacity(bytes.len() + 1024);
            deflate
                .compress_vec(bytes, &mut out, FlushCompress::Sync)
                .unwrap();
            out
        };
        let mut start = piece(first);
        start.extend(piece(&vec![filling; 64 << 10]));
        let again = piece(&vec![filling; 1 << 20]);
        Bomb { start, again }
    }
}

mod etcd {
    use std::convert::Infallible;

    use http_body_util::combinators::BoxBody;
    use http_body_util::{BodyExt, Full, StreamBody};
    use hyper::body::{Bytes, Frame, Incoming};
    use hyper::service::service_fn;
    use hyper::{HeaderMap, Request, Response};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    type Answer = Response<BoxBody<Bytes, Infallible>>;
    type Served = Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>>;

    fn served(stream: TcpStream, answer: impl Fn() -> Answer + Send + Sync + 'static) -> Served {
        let answer = Arc::new(answer);
        Box::pin(async move {
            let service = service_fn(move |_: Request<Incoming>| {
                let answer = answer.clone();
                async move { Ok::<_, Infallible>(answer()) }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
            Ok(())
        })
    }

    pub fn grpc<B>(body: B) -> Response<B> {
        let answer = Response::builder().header("content-type", "application/grpc");
        answer.body(body).unwrap()
    }

    /// An answer that etcd calls a success.
    pub fn trailers_of_success(bytes: Vec<u8>) -> BoxBody<Bytes, Infallible> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let body = Full::new(Bytes::from(bytes));
        body.with_trailers(async move { Some(Ok(trailers)) })
            .boxed()
    }

    fn varint(mut number: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while number > 0x7f {
            bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    }

    /// A field that holds a number.
    pub fn number(field: u8, value: u64) -> Vec<u8> {
        [vec![field << 3], varint(value)].concat()
    }

    /// A field that holds bytes.
    pub fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [
            &[number << 3 | 2],
            varint(bytes.len() as u64).as_slice(),
            bytes,
        ]
        .concat()
    }

    /// A key, its revisions and its value.
    pub fn key_value(key: &[u8], value: &[u8], revision: u64) -> Vec<u8> {
        let revisions = [number(2, revision), number(3, revision)].concat();
        [field(1, key), revisions, field(5, value)].concat()
    }

    pub fn all(bytes: Vec<u8>) -> BoxBody<Bytes, Infallible> {
        Full::new(bytes.into()).boxed()
    }

    /// `first`, then `again` for ever, each after a pause.
    pub fn endless(first: Vec<u8>, again: Vec<u8>, pause: Duration) -> BoxBody<Bytes, Infallible> {
        let (send, receive) = mpsc::channel(1);
        tokio::spawn(async move {
            let (mut next, again) = (Bytes::from(first), Bytes::from(again));
            while send.send(Ok(Frame::data(next))).await.is_ok() {
                next = again.clone();
                tokio::time::sleep(pause).await;
            }
        });
        StreamBody::new(ReceiverStream::new(receive)).boxed()
    }

    /// The head of a message that is said to have so many bytes.
    pub fn head(flag: u8, length: u32) -> Vec<u8> {
        [&[flag], length.to_be_bytes().as_slice()].concat()
    }

    /// A key and its value in a page.
    fn lease() -> Vec<u8> {
        let (key, value) = (
            b"/coreos.com/network/subnets/172.30.9.0-24",
            br#"{"PublicIP":"192.168.78.9"}"#,
        );
        let mut kv = vec![0x0a, key.len() as u8];
        kv.extend_from_slice(key);
        kv.extend_from_slice(&[0x2a, value.len() as u8]);
        kv.extend_from_slice(value);
        [&[0x12, kv.len() as u8], kv.as_slice()].concat()
    }

    fn redirects(stream: TcpStream, _: SocketAddr) -> Served {
        served(stream, || {
            let answer = Response::builder()
                .status(302)
                .header("location", "http://192.0.2.1/");
            answer.body(all(Vec::new())).unwrap()
        })
    }

    fn html(stream: TcpStream, _: SocketAddr) -> Served {
        served(stream, || {
            let answer = Response::builder().header("content-type", "text/html");
            answer
                .body(all(b"<html>\n\x1b[31mWelcome".repeat(1000)))
                .unwrap()
        })
    }

    fn huge_headers(stream: TcpStream, _: SocketAddr) -> Served {
        served(stream, || {
            let answer = Response::builder().header("content-type", "application/grpc");
            let answer = (0..64).fold(answer, |answer, n| {
                answer.header(format!("x-{n}"), "y".repeat(60 << 10))
            });
            answer.body(all(Vec::new())).unwrap()
        })
    }

    fn claims_4_gib(stream: TcpStream, _: SocketAddr) -> Served {
        served(stream, || {
            grpc(endless(
                head(0, u32::MAX),
                vec![0x12; 64 << 10],
                Duration::ZERO,
            ))
        })
    }

    fn one_key_without_end(stream: TcpStream, _: SocketAddr) -> Served {
        served(stream, || {
            // A field of 1 GiB in a message of 240 MiB, and one of 15 MiB each time.
            let first = [head(0, 240 << 20), vec![0x12, 0x80, 0x80, 0x80, 0x80, 0x04]].concat();
            grpc(endless(first, vec![0; 64 << 10], Duration::ZERO))
        })
    }

    fn large_keys(stream: TcpStream, _: SocketAddr) -> Served {
        served(stream, || {
            let mut one = vec![0x12, 0x80, 0x80, 0xc0, 0x07];
            one.resize(one.len() + (15 << 20), 0);
            grpc(endless(head(0, 240 << 20), one, Duration::ZERO))
        })
    }

    fn leases_without_end(stream: TcpStream, _: SocketAddr) -> Served {
        served(stream, || {
            grpc(endless(
                head(0, 240 << 20),
                lease().repeat(500),
                Duration::ZERO,
            ))
        })
    }

    fn cut_off(stream: TcpStream, _: SocketAddr) -> Served {
        served(stream, || grpc(all([head(0, 1000), lease()].concat())))
    }

    fn compressed(stream: TcpStream, _: SocketAddr) -> Served {
        served(stream, || {
            let bomb = Bomb::of(b"", 0);
            let body = endless(
                [head(1, u32::MAX), bomb.start].concat(),
                bomb.again,
                Duration::ZERO,
            );
            let answer = Response::builder().header("content-type", "application/grpc");
            answer.header("grpc-encoding", "gzip").body(body).unwrap()
        })
    }

    fn other_types(stream: TcpStream, _: SocketAddr) -> Served {
        // Where a message is expected, a number, and a group, which nobody writes any more.
        served(stream, || {
            grpc(all(
                [head(0, 6), vec![0x08, 0x05, 0x10, 0x07, 0x13, 0x14]].concat()
            ))
        })
    }

    fn drips(stream: TcpStream, _: SocketAddr) -> Served {
        served(stream, || {
            grpc(endless(
                head(0, 1000),
                vec![0x12],
                Duration::from_millis(100),
            ))
        })
    }

    fn long_errors(stream: TcpStream, _: SocketAddr) -> Served {
        served(stream, || {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "13".parse().unwrap());
            let text = format!(
                "no%0A2026-01-01T00:00:00Z INFO forged {}",
                "x".repeat(10 << 10)
            );
            trailers.insert("grpc-message", text.parse().unwrap());
            let trailers = Full::new(Bytes::new()).with_trailers(async move { Some(Ok(trailers)) });
            grpc(trailers.boxed())
        })
    }

    #[test]
    fn whatever_an_etcd_answers() {
        let habits: [(&str, Serve); 15] = [
            ("silent", silent),
            ("garbage", garbage),
            ("redirects", redirects),
            ("html", html),
            ("huge headers", huge_headers),
            ("claims 4 GiB", claims_4_gib),
            ("a key of 1 GiB", one_key_without_end),
            ("keys of 15 MiB", large_keys),
            ("leases without end", leases_without_end),
            ("cut off", cut_off),
            ("a gzip bomb", compressed),
            ("other types", other_types),
            ("drips", drips),
            ("long errors", long_errors),
            ("closes", |_, _| Box::pin(async { Ok(()) })),
        ];
        let lab = scene::lab()
            .nodes(habits.len())
            .pods_per_node(0)
            .store(ETCD)
            .build()
            .unwrap();
        let args = |_: &Node| vec![format!("-etcd-endpoints=http://127.0.0.1:{PORT}")];
        each(&lab, &habits, args, |_| {
            let etcd = SocketAddr::from(([192, 168, 78, 254], 2379));
            Box::pin(async move { (etcd, Box::new(()) as Box<dyn std::any::Any>) })
        });
    }
}

/// An etcd that is good, but for the pages that list the leases.
mod etcd_pages {
    use std::convert::Infallible;

    use http_body_util::combinators::BoxBody;
    use http_body_util::{BodyExt, Full};
    use hyper::body::{Bytes, Incoming};
    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    use super::etcd::{all, endless, field, grpc, head, key_value, number, trailers_of_success};
    use super::*;

    type Answer = Response<BoxBody<Bytes, hyper::Error>>;
    type Served = Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>>;
    type Body = BoxBody<Bytes, Infallible>;

    /// Passes on everything but the listing of the leases.
    fn between(stream: TcpStream, to: SocketAddr, page: fn() -> Body) -> Served {
        answering(stream, to, ("/Range", b"/subnets/"), page)
    }

    /// Passes on everything but calls of that name that hold these bytes.
    fn answering(
        stream: TcpStream,
        to: SocketAddr,
        (name, part): (&'static str, &'static [u8]),
        page: fn() -> Body,
    ) -> Served {
        Box::pin(async move {
            let up = TcpStream::connect(to).await?;
            let client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
            let (sender, up) = client
                .handshake::<_, BoxBody<Bytes, hyper::Error>>(TokioIo::new(up))
                .await
                .map_err(std::io::Error::other)?;
            let up = tokio::spawn(up);
            let service = service_fn(move |request: Request<Incoming>| {
                let mut sender = sender.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = if parts.uri.path().ends_with(name) {
                        let asked = body.collect().await?.to_bytes();
                        if part.is_empty() || asked.windows(part.len()).any(|here| here == part) {
                            let body = page().map_err(|never| match never {}).boxed();
                            return Ok::<Answer, hyper::Error>(grpc(body));
                        }
                        Full::new(asked).map_err(|never| match never {}).boxed()
                    } else {
                        body.boxed()
                    };
                    let answer = sender
                        .send_request(Request::from_parts(parts, body))
                        .await?;
                    Ok(answer.map(BodyExt::boxed))
                }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
            up.abort();
            Ok(())
        })
    }

    /// A whole page of these fields.
    fn page(fields: &[Vec<u8>]) -> Body {
        let message = fields.concat();
        let mut whole = head(0, message.len() as u32);
        whole.extend(message);
        trailers_of_success(whole)
    }

    /// `cluster_id` (0 says nothing), `member_id`, `revision`, `raft_term`.
    fn header(cluster: u64, revision: u64) -> Vec<u8> {
        let fields = [
            number(1, cluster),
            number(2, 1),
            number(3, revision),
            number(4, 2),
        ];
        field(1, &fields.concat())
    }

    fn lease(subnet: u8) -> Vec<u8> {
        let key = format!("/coreos.com/network/subnets/172.30.{subnet}.0-24");
        let value = format!(r#"{{"PublicIP":"192.168.78.{subnet}"}}"#);
        field(2, &key_value(key.as_bytes(), value.as_bytes(), 3))
    }

    const MORE: [u8; 2] = [0x18, 1];

    #[test]
    fn whatever_the_pages_hold() {
        let habits: [(&str, Serve); 17] = [
            ("pages, quiet: a grant for ever", |s, to| {
                answering(s, to, ("/LeaseGrant", b""), || {
                    page(&[header(0, 9), number(2, 7), number(3, u64::MAX >> 1)])
                })
            }),
            ("pages, quiet: a grant of less than nothing", |s, to| {
                answering(s, to, ("/LeaseGrant", b""), || {
                    page(&[header(0, 9), number(2, 7), number(3, 1 << 63)])
                })
            }),
            ("pages: more, and no key", |s, to| {
                between(s, to, || page(&[header(1, 9), MORE.to_vec()]))
            }),
            ("pages: the same page again and again", |s, to| {
                between(s, to, || page(&[header(1, 9), lease(9), MORE.to_vec()]))
            }),
            ("pages: keys backwards", |s, to| {
                between(s, to, || page(&[header(1, 9), lease(9), lease(8)]))
            }),
            ("pages: another cluster each time", |s, to| {
                between(s, to, || {
                    let ids = fastrand::u64(1..u64::MAX);
                    let subnet = fastrand::u8(1..250);
                    page(&[header(ids, 9), lease(subnet), MORE.to_vec()])
                })
            }),
            ("pages: leases without end", |s, to| {
                between(s, to, || {
                    endless(head(0, 240 << 20), lease(9).repeat(500), Duration::ZERO)
                })
            }),
            ("pages: 4 GiB", |s, to| {
                between(s, to, || {
                    endless(head(0, u32::MAX), vec![0x12; 64 << 10], Duration::ZERO)
                })
            }),
            ("pages: a key of 1 GiB", |s, to| {
                between(s, to, || {
                    let first = [head(0, 240 << 20), vec![0x12, 0x80, 0x80, 0x80, 0x80, 0x04]];
                    endless(first.concat(), vec![0; 64 << 10], Duration::ZERO)
                })
            }),
            ("pages: cut off", |s, to| {
                between(s, to, || {
                    all([head(0, 1000), header(1, 9), lease(9)].concat())
                })
            }),
            ("pages: compressed", |s, to| {
                between(s, to, || {
                    let bomb = Bomb::of(b"", 0);
                    let first = [head(1, u32::MAX), bomb.start].concat();
                    endless(first, bomb.again, Duration::ZERO)
                })
            }),
            ("pages: other types", |s, to| {
                between(s, to, || page(&[vec![0x08, 5, 0x10, 7, 0x13, 0x14]]))
            }),
            ("pages: drips", |s, to| {
                between(s, to, || {
                    endless(head(0, 1000), vec![0x12], Duration::from_millis(100))
                })
            }),
            ("pages: nothing at all", |s, to| {
                between(s, to, || all(Vec::new()))
            }),
            // What a daemon can live with.
            ("pages, quiet: no header", |s, to| {
                between(s, to, || page(&[lease(9)]))
            }),
            ("pages, quiet: keys of others", |s, to| {
                between(s, to, || {
                    let foreign =
                        field(2, &key_value(b"\xff\xfe/\x1b[31m", &[0xff; 4096], u64::MAX));
                    page(&[header(0, 9), lease(9), foreign])
                })
            }),
            ("pages, quiet: one of ours in each", |s, to| {
                between(s, to, || page(&[header(0, 9), lease(9), lease_of_nobody()]))
            }),
        ];
        let lab = scene::lab()
            .nodes(habits.len())
            .pods_per_node(0)
            .store(ETCD)
            .build()
            .unwrap();
        let args = |_: &Node| vec![format!("-etcd-endpoints=http://127.0.0.1:{PORT}")];
        each(&lab, &habits, args, |_| {
            let etcd = SocketAddr::from(([192, 168, 78, 254], 2379));
            Box::pin(async move { (etcd, Box::new(()) as Box<dyn std::any::Any>) })
        });
    }

    /// A lease whose value is as long as etcd takes it, and is nothing.
    fn lease_of_nobody() -> Vec<u8> {
        let key = b"/coreos.com/network/subnets/172.30.99.0-24";
        field(2, &key_value(key, &[b'{'; 1 << 20], 4))
    }
}

mod api_server {
    use serde_json::json;

    use super::*;
    use crate::api::Api;

    type Served = Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>>;

    /// Answers every request with `first`, then `again` for ever unless it is empty, each after a pause.
    fn answers(mut stream: TcpStream, first: Vec<u8>, again: Vec<u8>, pause: Duration) -> Served {
        Box::pin(async move {
            let mut request = Vec::new();
            while !request.windows(4).any(|part| part == b"\r\n\r\n") {
                if stream.read_buf(&mut request).await? == 0 {
                    return Ok(());
                }
            }
            stream.write_all(&first).await?;
            while !again.is_empty() {
                stream.write_all(&again).await?;
                tokio::time::sleep(pause).await;
            }
            stream.shutdown().await
        })
    }

    /// Hostile where Nodes are listed or watched; everything else is passed on to a good server.
    fn in_the_list(stream: TcpStream, to: SocketAddr, habit: Serve) -> Served {
        Box::pin(async move {
            let mut begin = [0; 18];
            while stream.peek(&mut begin).await? < begin.len() {
                tokio::task::yield_now().await;
            }
            if begin == *b"GET /api/v1/nodes?" {
                habit(stream, to).await
            } else {
                pass_on(stream, to).await
            }
        })
    }

    fn head(more: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{more}\r\n")
    }

    const LIST: &str =
        r#"{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":["#;

    fn without_end(stream: TcpStream, begins: &str, again: Vec<u8>) -> Served {
        answers(stream, (head("") + begins).into(), again, Duration::ZERO)
    }

    fn redirects(stream: TcpStream, _: SocketAddr) -> Served {
        let head = "HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n";
        answers(stream, head.into(), Vec::new(), Duration::ZERO)
    }

    fn html(stream: TcpStream, _: SocketAddr) -> Served {
        let body = "<html>\n\x1b[31mWelcome".repeat(1000);
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n";
        answers(
            stream,
            (head.to_owned() + &body).into(),
            Vec::new(),
            Duration::ZERO,
        )
    }

    fn headers_without_end(stream: TcpStream, _: SocketAddr) -> Served {
        let again = format!("X-More: {}\r\n", "y".repeat(8 << 10));
        answers(
            stream,
            b"HTTP/1.1 200 OK\r\n".to_vec(),
            again.into(),
            Duration::ZERO,
        )
    }

    fn a_name_without_end(stream: TcpStream, _: SocketAddr) -> Served {
        let begins = LIST.to_owned() + r#"{"metadata":{"name":""#;
        without_end(stream, &begins, vec![b'x'; 64 << 10])
    }

    fn blanks_without_end(stream: TcpStream, _: SocketAddr) -> Served {
        without_end(stream, "", vec![b' '; 64 << 10])
    }

    fn brackets_without_end(stream: TcpStream, _: SocketAddr) -> Served {
        without_end(stream, LIST, vec![b'['; 64 << 10])
    }

    fn nodes_without_end(stream: TcpStream, _: SocketAddr) -> Served {
        let node = r#"{"metadata":{"name":"other","uid":"u","annotations":{"flannel.alpha.coreos.com/kube-subnet-manager":"true","flannel.alpha.coreos.com/backend-type":"vxlan","flannel.alpha.coreos.com/public-ip":"192.168.78.99"}},"spec":{"podCIDR":"10.244.99.0/24"}},"#;
        without_end(stream, LIST, node.repeat(200).into())
    }

    fn cut_off(stream: TcpStream, _: SocketAddr) -> Served {
        let whole = head("Content-Length: 100000\r\n") + LIST;
        answers(stream, whole.into(), Vec::new(), Duration::ZERO)
    }

    fn gzip_bomb(stream: TcpStream, _: SocketAddr) -> Served {
        let bomb = Bomb::of(
            (LIST.to_owned() + r#"{"metadata":{"name":""#).as_bytes(),
            b'x',
        );
        let start = [head("Content-Encoding: gzip\r\n").into_bytes(), bomb.start].concat();
        answers(stream, start, bomb.again, Duration::ZERO)
    }

    fn other_types(stream: TcpStream, _: SocketAddr) -> Served {
        let list = r#"{"kind":5,"metadata":{"name":[],"resourceVersion":{"a":1},"annotations":7},"spec":{"podCIDR":{}},"items":{"a":[null,3,{"metadata":0}]}}"#;
        answers(stream, (head("") + list).into(), Vec::new(), Duration::ZERO)
    }

    fn no_json(stream: TcpStream, _: SocketAddr) -> Served {
        answers(
            stream,
            (head("") + "\u{0}\u{1}]]]}").into(),
            Vec::new(),
            Duration::ZERO,
        )
    }

    fn drips(stream: TcpStream, _: SocketAddr) -> Served {
        answers(
            stream,
            (head("") + LIST).into(),
            b" ".to_vec(),
            Duration::from_millis(100),
        )
    }

    fn long_errors(stream: TcpStream, _: SocketAddr) -> Served {
        let message = "no\\n2026-01-01T00:00:00Z  INFO forged ".to_owned() + &"x".repeat(100 << 10);
        let body = format!(r#"{{"kind":"Status","code":500,"message":"{message}"}}"#);
        let head = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\n\r\n";
        answers(
            stream,
            (head.to_owned() + &body).into(),
            Vec::new(),
            Duration::ZERO,
        )
    }

    #[test]
    fn whatever_an_api_server_answers() {
        let habits: [(&str, Serve); 18] = [
            ("silent", silent),
            ("garbage", garbage),
            ("redirects", redirects),
            ("html", html),
            ("headers without end", headers_without_end),
            ("a name without end", a_name_without_end),
            ("blanks without end", blanks_without_end),
            ("brackets without end", brackets_without_end),
            ("nodes without end", nodes_without_end),
            ("cut off", cut_off),
            ("a gzip bomb", gzip_bomb),
            ("other types", other_types),
            ("no JSON", no_json),
            ("drips", drips),
            ("long errors", long_errors),
            ("the list: nodes without end", |stream, to| {
                in_the_list(stream, to, nodes_without_end)
            }),
            ("the list: a name without end", |stream, to| {
                in_the_list(stream, to, a_name_without_end)
            }),
            ("the list: a gzip bomb", |stream, to| {
                in_the_list(stream, to, gzip_bomb)
            }),
        ];
        let lab = scene::lab()
            .nodes(habits.len())
            .pods_per_node(0)
            .build()
            .unwrap();
        let shared = lab.shared_dir().join("net-conf.json");
        let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
        std::fs::write(&shared, config).unwrap();
        let args = |_: &Node| {
            vec![
                "-store-dir=".into(),
                "-kube-subnet-mgr".into(),
                format!("-kube-api-url=http://127.0.0.1:{PORT}"),
                format!("-net-config-path={}/net-conf.json", lab::SHARED_DIR),
            ]
        };
        each(&lab, &habits, args, |name| {
            let name = name.to_owned();
            Box::pin(async move {
                let api = Api::start();
                let third = name.trim_start_matches('n').to_owned();
                let cidr = format!("10.244.{third}.0/24");
                api.put(
                    &name,
                    "uid",
                    json!({"metadata": {}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}}),
                );
                let to = api.url.trim_start_matches("http://").parse().unwrap();
                (to, Box::new(api) as Box<dyn std::any::Any>)
            })
        });
    }
}
