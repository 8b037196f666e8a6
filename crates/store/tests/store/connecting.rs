//! Servers that change under a connected client, or that are not what they should be.

use store::{EtcdSettings, EtcdStore, Secret, Store};

use crate::etcd_server::Etcd;
use crate::node::{CONFIG, local, within};
use crate::world::{PREFIX, World, settings};

#[test]
fn users_that_come_while_it_is_connected_are_logged_in() {
    local(async {
        let etcd = Etcd::start();
        let mut store = EtcdStore::new(EtcdSettings {
            username: Some("root".into()),
            password: Some(Secret::new("secret")),
            ..settings(&etcd)
        })
        .unwrap();
        let before = etcd.calls();
        let waiting = tokio::task::spawn_local(async move { store.config().await });
        // Connected while there are no users: it has asked for the configuration.
        within(async {
            while !crate::etcd::calls_since(&etcd, &before).contains_key("Range") {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await;
        etcd.ctl(&["user", "add", "root:secret"]);
        etcd.ctl(&["user", "grant-role", "root", "root"]);
        etcd.ctl(&["auth", "enable"]);
        etcd.ctl_stdin(
            &["--user", "root:secret", "put", &format!("{PREFIX}/config")],
            CONFIG,
        );
        within(waiting).await.unwrap();
    });
}

/// Forwards a Unix socket to `port`.
async fn forward(path: &std::path::Path, port: u16) {
    let listener = tokio::net::UnixListener::bind(path).unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                let mut server = tokio::net::TcpStream::connect(("127.0.0.1", port))
                    .await
                    .unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
}

fn at(endpoints: &str) -> EtcdStore {
    EtcdStore::new(EtcdSettings {
        endpoints: endpoints.into(),
        prefix: PREFIX.into(),
        ..EtcdSettings::default()
    })
    .unwrap()
}

#[test]
fn endpoints_that_upstream_takes_work() {
    local(async {
        let etcd = Etcd::new();
        let (dir, port) = (tempfile::tempdir().unwrap(), etcd.port());
        let socket = dir.path().join("etcd.sock");
        forward(&socket, port).await;
        let socket = socket.display();
        for endpoints in [
            format!("unix://{socket}"),
            format!("unix:{socket}"),
            format!("127.0.0.1:{port}"),
            format!("http://127.0.0.1:{port}/v2/keys?x=y"),
            format!("http://no-port,unix:///nowhere.sock,http://127.0.0.1:{port}/"),
        ] {
            let config = within(at(&endpoints).config()).await;
            assert_eq!(config.pools.iter().count(), 1, "{endpoints}");
        }
    });
}

/// A server that speaks HTTP/1.1 only, as etcd did before 3.0.
#[test]
fn a_server_without_the_v3_api_is_named() {
    local(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::task::spawn_local(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let _ = client.read(&mut [0; 1024]).await;
                let answer =
                    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
                let _ = client.write_all(answer).await;
            }
        });
        let mut store = at(&format!("http://127.0.0.1:{port}"));
        let status = store.status();
        let waiting = tokio::task::spawn_local(async move { store.config().await });
        let reason = within(async {
            loop {
                match status.get() {
                    Some(reason) => break reason,
                    None => tokio::task::yield_now().await,
                }
            }
        })
        .await;
        waiting.abort();
        assert!(reason.contains("v3 API"), "{reason}");
    });
}
