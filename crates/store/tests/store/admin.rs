//! Both stores as the person at the keyboard sees them.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use store::{Administer, EtcdSettings, EtcdStore};

use crate::etcd_server::Etcd;
use crate::node::{local, value};
use crate::world::{Directory, World};

const ONE: &[u8] = br#"{"Network":"10.1.0.0/16"}"#;
const TWO: &[u8] = br#"{"Network":"10.2.0.0/16"}"#;

async fn a_configuration_is_only_written_over_the_one_that_was_read(world: impl World) {
    world.delete("config");
    let store = world.store();
    assert_eq!(store.stored_config().await.unwrap(), None);
    assert!(store.swap_config(ONE, None).await.unwrap());
    let one = store.stored_config().await.unwrap().unwrap();
    assert_eq!(one.json, ONE);
    assert!(
        !store.swap_config(TWO, None).await.unwrap(),
        "one is there already"
    );

    // Somebody else is quicker.
    world.put("config", "{}");
    assert!(!store.swap_config(TWO, Some(&one)).await.unwrap());
    let theirs = store.stored_config().await.unwrap().unwrap();
    assert_eq!(theirs.json, b"{}");
    assert!(store.swap_config(TWO, Some(&theirs)).await.unwrap());
    assert_eq!(store.stored_config().await.unwrap().unwrap().json, TWO);
}

async fn leases_and_reservations_are_listed(world: impl World) {
    let store = world.store();
    assert!(store.leases().await.unwrap().is_empty());
    world.put("subnets/10.3.9.0-24", &value(9));
    world.put("subnets/10.3.10.0-24", "{}");
    world.put("subnets/nonsense", "{}");
    let leases = store.leases().await.unwrap();
    let told: Vec<_> = leases
        .iter()
        .map(|l| (l.key.to_string(), l.attrs.is_ok(), l.reserved))
        .collect();
    let reserved = |key: &str, readable| (key.to_string(), readable, true);
    assert_eq!(
        told,
        [
            reserved("10.3.9.0-24", true),
            reserved("10.3.10.0-24", false)
        ]
    );
}

#[test]
fn etcd_config() {
    local(a_configuration_is_only_written_over_the_one_that_was_read(
        <Etcd as World>::new(),
    ));
}

#[test]
fn directory_config() {
    local(a_configuration_is_only_written_over_the_one_that_was_read(
        Directory::new(),
    ));
}

#[test]
fn etcd_leases() {
    local(leases_and_reservations_are_listed(<Etcd as World>::new()));
}

#[test]
fn directory_leases() {
    local(leases_and_reservations_are_listed(Directory::new()));
}

#[test]
fn an_expired_file_is_no_lease_and_a_closed_file_stays_closed() {
    local(async {
        let world = Directory::new();
        let store = world.store();
        let ended = value(9).replace("{\"PublicIP\"", "{\"Expires\":77,\"PublicIP\"");
        assert!(ended.contains("Expires"));
        world.put("subnets/10.3.9.0-24", &ended);
        assert!(store.leases().await.unwrap().is_empty());

        let path = world.path("config");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let stored = store.stored_config().await.unwrap();
        assert!(store.swap_config(TWO, stored.as_ref()).await.unwrap());
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let left = std::fs::read_dir(path.parent().unwrap()).unwrap();
        let left: Vec<_> = left.map(|f| f.unwrap().file_name()).collect();
        assert!(
            !left
                .iter()
                .any(|name| name.to_string_lossy().ends_with(".tmp")),
            "{left:?}"
        );
    });
}

#[test]
fn what_does_not_answer_is_an_error_that_names_it() {
    local(async {
        let settings = EtcdSettings {
            endpoints: "http://127.0.0.1:1".into(),
            prefix: "/x".into(),
            ..EtcdSettings::default()
        };
        let store = EtcdStore::new(settings).unwrap();
        let asked = tokio::time::timeout(Duration::from_secs(30), store.stored_config());
        let error = asked.await.unwrap().unwrap_err().to_string();
        assert!(
            error.starts_with("etcd does not answer: http://127.0.0.1:1"),
            "{error}"
        );
    });
}
