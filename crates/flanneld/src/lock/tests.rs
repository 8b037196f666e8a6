use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use tokio::net::{UnixListener, UnixSocket};

use super::*;

/// A name that no other test has.
fn name(test: &str) -> String {
    format!("test {} {test}", std::process::id())
}

fn bound(name: &str) -> UnixSocket {
    let socket = UnixSocket::new_stream().unwrap();
    socket.bind(format!("\0{}", text(name))).unwrap();
    socket
}

/// A listener whose queue is full, and what is in it.
async fn full(name: &str) -> (UnixListener, Vec<UnixStream>) {
    let listener = bound(name).listen(0).unwrap();
    let mut waiting = Vec::new();
    while let Ok((connection, _)) = connect(name).await {
        waiting.push(connection);
    }
    (listener, waiting)
}

async fn try_one(waiting: &mut Waiting, name: &str) -> Result<usize, Obstacle> {
    let sockets = waiting.try_all(&[name.to_owned()]).await;
    sockets.map(|sockets| sockets.len())
}

#[tokio::test]
async fn one_connection_waits_for_the_end_of_a_daemon() {
    let name = name("one connection");
    let listener = bound(&name).listen(16).unwrap();
    let mut waiting = Waiting::default();
    for _ in 0..20 {
        let found = try_one(&mut waiting, &name).await;
        let text = serves(Some(std::process::id() as i32), &name);
        assert_eq!(found, Err(Obstacle::Daemon(text)));
    }
    let accepted = listener.accept().await.unwrap();
    let another = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(another.is_err(), "more than one connection");
    drop((listener, accepted));
    waiting.wait().await;
    assert_eq!(try_one(&mut waiting, &name).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_does_not_listen_is_no_daemon() {
    let name = name("mute");
    let holder = bound(&name);
    let mut waiting = Waiting::default();
    let first = try_one(&mut waiting, &name).await;
    assert_eq!(first, Err(Obstacle::Changing));
    tokio::time::advance(LOOK_AFTER).await;
    let Err(Obstacle::Silent(text, pause)) = try_one(&mut waiting, &name).await else {
        panic!("it has not been waited for long");
    };
    let pid = format!("pid {}", std::process::id());
    assert!(text.contains(&pid) && pause < MUTE, "{text}, {pause:?}");
    tokio::time::advance(MUTE).await;
    // Without this name.
    assert_eq!(try_one(&mut waiting, &name).await, Ok(0));
    assert!(waiting.ignored.contains(&name));
    drop(holder);
    assert_eq!(try_one(&mut waiting, &name).await, Ok(1));
    assert!(waiting.ignored.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_daemon_whose_queue_is_full_is_waited_for() {
    let name = name("full");
    let (listener, filling) = full(&name).await;
    let mut waiting = Waiting::default();
    for _ in 0..3 {
        let _ = try_one(&mut waiting, &name).await;
        tokio::time::advance(UNKNOWN).await;
    }
    let text = serves(Some(std::process::id() as i32), &name);
    let found = try_one(&mut waiting, &name).await;
    assert_eq!(found, Err(Obstacle::Daemon(text)));
    drop((listener, filling));
    assert_eq!(try_one(&mut waiting, &name).await, Ok(1));
}

/// A process of another user, killed at the end.
struct Nobodys(Child);

impl Drop for Nobodys {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(start_paused = true)]
async fn another_user_s_full_queue_keeps_no_daemon_waiting() {
    let name = name("nobody's");
    let (listener, filling) = full(&name).await;
    let socket: OwnedFd = listener.into_std().unwrap().into();
    let mut sleep = Command::new("sleep");
    let sleep = sleep.arg("600").stdin(Stdio::from(socket));
    let sleep = Nobodys(sleep.uid(65534).gid(65534).spawn().unwrap());
    let mut waiting = Waiting::default();
    let first = try_one(&mut waiting, &name).await;
    assert_eq!(first, Err(Obstacle::Changing));
    tokio::time::advance(LOOK_AFTER).await;
    assert_eq!(try_one(&mut waiting, &name).await, Ok(0));
    drop((sleep, filling));
}

#[test]
fn a_full_queue_of_an_unknown_user_is_waited_for_a_while() {
    let full = io::Error::from(ErrorKind::WouldBlock);
    let found = judge("device x", &full, None, Some(0), LOOK_AFTER);
    assert!(matches!(found, Err(Obstacle::Silent(..))), "{found:?}");
    let found = judge("device x", &full, None, Some(0), UNKNOWN);
    assert!(matches!(found, Ok(Some(_))), "{found:?}");
}
