//! Servers that change under a connected client, or that are not what they should be.

use store::{EtcdSettings, EtcdStore, Secret, Store};

use crate::etcd_server::Etcd;
use crate::node::{CONFIG, local, within};
use crate::world::{PREFIX, settings};

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
