//! A way to a gRPC server that loses one call, or its answer.

use std::cell::Cell;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, spawn_local};

/// What gets lost, and with it the connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// The server never learns of the call.
    Call,
    /// The server carries the call out.
    Answer,
}

const LOSSES: [Loss; 2] = [Loss::Call, Loss::Answer];

/// Each thing that can be lost in the first `calls` calls.
pub fn losses(calls: usize) -> impl Iterator<Item = (usize, Loss)> {
    (0..calls).flat_map(|n| LOSSES.map(|loss| (n, loss)))
}

#[derive(Default)]
struct Plan {
    /// How many calls to let through, and what to lose of the next one.
    next: Cell<Option<(usize, Loss)>>,
}

/// A forwarder on loopback to another port there. It loses one call at most.
pub struct LossyGate {
    pub port: u16,
    plan: Rc<Plan>,
    task: JoinHandle<()>,
}

impl LossyGate {
    pub async fn to(server: u16) -> LossyGate {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let plan = Rc::new(Plan::default());
        let shared = plan.clone();
        let task = spawn_local(async move {
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await {
                    spawn_local(forward(client, server, shared.clone()));
                }
            }
        });
        LossyGate { port, plan, task }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Lets `n` calls through, and loses the one after them.
    pub fn lose(&self, n: usize, loss: Loss) {
        self.plan.next.set(Some((n, loss)));
    }

    pub fn has_lost(&self) -> bool {
        self.plan.next.get().is_none()
    }
}

impl Drop for LossyGate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
pub const HEADERS: u8 = 1;

/// Frames of HTTP/2 as they arrive.
#[derive(Default)]
pub struct Frames(Vec<u8>);

pub struct Frame {
    bytes: Vec<u8>,
    pub kind: u8,
    pub stream: u32,
}

impl Frames {
    pub fn arrived(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Takes out the first frame, if all of it is there.
    pub fn take(&mut self) -> Option<Frame> {
        let header = self.0.get(..9)?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let kind = header[3];
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        if self.0.len() < 9 + length {
            return None;
        }
        let bytes = self.0.drain(..9 + length).collect();
        Some(Frame {
            bytes,
            kind,
            stream,
        })
    }
}

/// Ends, and with it the connection, when one side ends or when something is lost.
async fn forward(mut client: TcpStream, mut server: TcpStream, plan: Rc<Plan>) {
    let mut preface = [0; PREFACE.len()];
    if client.read_exact(&mut preface).await.is_err() || server.write_all(&preface).await.is_err() {
        return;
    }
    assert_eq!(preface, PREFACE);
    let (mut calls, mut answers) = (Frames::default(), Frames::default());
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    // The stream whose answer is to be lost.
    let mut lost = None;
    loop {
        tokio::select! {
            n = client.read(&mut up) => match n {
                Ok(n) if n > 0 => calls.arrived(&up[..n]),
                _ => return,
            },
            n = server.read(&mut down) => match n {
                Ok(n) if n > 0 => answers.arrived(&down[..n]),
                _ => return,
            },
        }
        while let Some(frame) = calls.take() {
            if frame.kind == HEADERS {
                match plan.next.get() {
                    Some((0, Loss::Call)) => {
                        plan.next.set(None);
                        return;
                    }
                    Some((0, Loss::Answer)) => {
                        plan.next.set(None);
                        lost = Some(frame.stream);
                    }
                    Some((n, loss)) => plan.next.set(Some((n - 1, loss))),
                    None => {}
                }
            }
            if server.write_all(&frame.bytes).await.is_err() {
                return;
            }
        }
        while let Some(frame) = answers.take() {
            if lost == Some(frame.stream) && [HEADERS, DATA].contains(&frame.kind) {
                return;
            }
            if client.write_all(&frame.bytes).await.is_err() {
                return;
            }
        }
    }
}
