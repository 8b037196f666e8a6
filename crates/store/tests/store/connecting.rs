//! Servers that change under a connected client, or that are not what they should be.

use std::time::Duration;

use model::LeaseAttrs;
use store::{AnyStore, EtcdSettings, EtcdStore, Secret, Store};

use crate::etcd_server::Etcd;
use crate::node::{CONFIG, Node, attrs, key, local, value, waits_for, within};
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
        enable_auth(&etcd);
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

#[test]
fn an_etcd_that_does_not_answer_is_named_with_its_flag() {
    local(async {
        // Bound and closed: nobody listens there.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", free.local_addr().unwrap());
        drop(free);
        let mut store = at(&url);
        let status = store.status();
        let named = format!("etcd (-etcd-endpoints): {url}: Connection refused");
        tokio::select! {
            biased;
            _ = store.config() => panic!("it was read"),
            () = waits_for(&status, &named) => {}
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

/// Makes etcd ask for the user `root`.
fn enable_auth(etcd: &Etcd) {
    etcd.ctl(&["user", "add", "root:secret"]);
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    etcd.ctl(&["auth", "enable"]);
}

/// Publishes other data than before.
async fn publish(node: &mut Node<AnyStore>, n: u32) {
    let data = attrs(n).data;
    node.store.publish(LeaseAttrs { data, ..attrs(1) }).await;
}

async fn until_published(node: &mut Node<AnyStore>, n: u32) {
    let data = attrs(n).data;
    let wanted = LeaseAttrs { data, ..attrs(1) };
    node.until("the publication", |node| {
        let mut known = node.known.values();
        node.complete && known.any(|lease| lease.attrs == wanted)
    })
    .await;
    assert_eq!(node.revoked, None);
}

#[test]
fn a_node_that_runs_logs_in_when_users_come() {
    local(async {
        let etcd = <Etcd as World>::new();
        let mut node = Node::start(
            AnyStore::from(
                EtcdStore::new(EtcdSettings {
                    username: Some("root".into()),
                    password: Some(Secret::new("secret")),
                    ..settings(&etcd)
                })
                .unwrap(),
            ),
            1,
        )
        .await;
        publish(&mut node, 2).await;
        until_published(&mut node, 2).await;
        enable_auth(&etcd);
        publish(&mut node, 3).await;
        until_published(&mut node, 3).await;
        // It still follows.
        let name = format!("{PREFIX}/subnets/10.20.250.0-24");
        etcd.ctl_stdin(&["--user", "root:secret", "put", &name], &value(250));
        node.until("a peer", |node| {
            node.complete && node.known.contains_key(&key("10.20.250.0-24"))
        })
        .await;
    });
}

#[test]
fn a_node_without_a_user_goes_on_with_what_it_knows() {
    local(async {
        let etcd = <Etcd as World>::new();
        etcd.put(&format!("{PREFIX}/subnets/10.20.250.0-24"), &value(250));
        let mut node = Node::start(etcd.store(), 1).await;
        publish(&mut node, 2).await;
        until_published(&mut node, 2).await;
        enable_auth(&etcd);
        publish(&mut node, 3).await;
        let status = node.store.status();
        let told = waits_for(&status, "-etcd-username");
        tokio::pin!(told);
        while tokio::time::timeout(Duration::from_millis(1), &mut told)
            .await
            .is_err()
        {
            node.follow(Duration::from_millis(50)).await;
        }
        assert_eq!((node.known.len(), &node.revoked), (2, &None));
        etcd.ctl(&["--user", "root:secret", "auth", "disable"]);
        until_published(&mut node, 3).await;
    });
}
