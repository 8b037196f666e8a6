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
    task: JoinHandle<()>,
}

impl Gate {
    pub async fn to(server: u16) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Rc::new(Cell::new(State::Open));
        let seen = state.clone();
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
                spawn_local(forward(client_in, server_out, seen.clone()));
                spawn_local(forward(server_in, client_out, seen.clone()));
            }
        });
        Gate { port, state, task }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
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

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: Rc<Cell<State>>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let tick = tokio::time::sleep(Duration::from_millis(10));
        tokio::select! {
            n = from.read(&mut buffer), if state.get() == State::Open => match n {
                Ok(n) if n > 0 => {
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
