//! A way to a server that can be shut: what a broken network looks like from one node.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, spawn_local};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum State {
    Open,
    /// Connections end at once.
    Shut,
    /// Connections stand, and nothing comes through.
    Frozen,
}

/// A forwarder on loopback to another port there.
pub struct Gate {
    pub port: u16,
    state: Rc<Cell<State>>,
    /// How many bytes more the server may send.
    left: Rc<Cell<usize>>,
    task: JoinHandle<()>,
}

impl Gate {
    pub async fn to(server: u16) -> Gate {
        Gate::at("127.0.0.1", server).await
    }

    /// Under another address of loopback.
    pub async fn at(address: &str, server: u16) -> Gate {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Rc::new(Cell::new(State::Open));
        let left = Rc::new(Cell::new(usize::MAX));
        let (seen, limit) = (state.clone(), left.clone());
        let task = spawn_local(async move {
            while let Ok((client, _)) = listener.accept().await {
                if seen.get() == State::Shut {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
                    continue;
                };
                let (client_in, client_out) = client.into_split();
                let (server_in, server_out) = server.into_split();
                let unlimited = Rc::new(Cell::new(usize::MAX));
                spawn_local(forward(client_in, server_out, seen.clone(), unlimited));
                spawn_local(forward(server_in, client_out, seen.clone(), limit.clone()));
            }
        });
        Gate {
            port,
            state,
            left,
            task,
        }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn state(&self) -> State {
        self.state.get()
    }

    /// Shuts itself once the server has sent so many bytes more.
    pub fn shut_after(&self, bytes: usize) {
        self.left.set(bytes);
    }

    pub fn set(&self, state: State) {
        self.state.set(state);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
        self.state.set(State::Shut);
    }
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    state: Rc<Cell<State>>,
    left: Rc<Cell<usize>>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let tick = tokio::time::sleep(Duration::from_millis(10));
        tokio::select! {
            n = from.read(&mut buffer), if state.get() == State::Open => match n {
                Ok(n) if n > 0 => {
                    if n > left.get() {
                        left.set(usize::MAX);
                        state.set(State::Shut);
                        return;
                    }
                    if left.get() < usize::MAX {
                        left.set(left.get() - n);
                    }
                    if to.write_all(&buffer[..n]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
            () = tick => {}
        }
        if state.get() == State::Shut {
            return;
        }
    }
}
