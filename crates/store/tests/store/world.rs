//! A store of any kind, with the means to look into it and to change it behind a daemon's back.

use std::path::PathBuf;

use store::{AnyStore, DirectoryStore, EtcdSettings, EtcdStore, Timing};
use tempfile::TempDir;

use crate::etcd_server::Etcd;
use crate::node::CONFIG;

pub const PREFIX: &str = "/coreos.com/network";

pub trait World {
    /// Subnets are assigned by somebody else, and never expire.
    const ASSIGNED: bool = false;

    fn new() -> Self;
    fn store_with(&self, timing: Timing) -> AnyStore;
    /// Writes `config` or `subnets/KEY`.
    fn put(&self, name: &str, value: &str);
    fn delete(&self, name: &str);
    fn get(&self, name: &str) -> Option<String>;
    /// The names under `subnets/`.
    fn subnets(&self) -> Vec<String>;
    /// Whether a lease has no end.
    fn is_reservation(&self, key: &str) -> bool;

    fn store(&self) -> AnyStore {
        self.store_with(Timing::default())
    }

    /// The store as node `n` opens it.
    fn store_of_with(&self, n: u32, timing: Timing) -> AnyStore {
        let _ = n;
        self.store_with(timing)
    }

    fn store_of(&self, n: u32) -> AnyStore {
        self.store_of_with(n, Timing::default())
    }
}

impl World for Etcd {
    fn new() -> Etcd {
        let etcd = Etcd::start();
        etcd.put(&format!("{PREFIX}/config"), CONFIG);
        etcd
    }

    fn store_with(&self, timing: Timing) -> AnyStore {
        EtcdStore::new(EtcdSettings {
            timing,
            ..settings(self)
        })
        .unwrap()
        .into()
    }

    fn put(&self, name: &str, value: &str) {
        Etcd::put(self, &format!("{PREFIX}/{name}"), value);
    }

    fn delete(&self, name: &str) {
        self.ctl(&["del", &format!("{PREFIX}/{name}")]);
    }

    fn get(&self, name: &str) -> Option<String> {
        let value = self.ctl(&["get", "--print-value-only", &format!("{PREFIX}/{name}")]);
        Some(value.trim().to_string()).filter(|value| !value.is_empty())
    }

    fn subnets(&self) -> Vec<String> {
        let dir = format!("{PREFIX}/subnets/");
        let keys = self.ctl(&["get", "--prefix", "--keys-only", &dir]);
        keys.lines()
            .filter_map(|line| line.strip_prefix(&dir))
            .map(str::to_string)
            .collect()
    }

    fn is_reservation(&self, key: &str) -> bool {
        let json = self.ctl(&["get", "-w", "json", &format!("{PREFIX}/subnets/{key}")]);
        assert!(json.contains("\"kvs\""), "{key} is not there");
        !json.contains("\"lease\"")
    }
}

pub fn settings(etcd: &Etcd) -> EtcdSettings {
    EtcdSettings {
        endpoints: etcd.url(),
        prefix: PREFIX.into(),
        ..EtcdSettings::default()
    }
}

/// A directory that is gone with the value.
pub struct Directory(TempDir);

impl Directory {
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("net").join(name)
    }
}

impl World for Directory {
    fn new() -> Directory {
        let dir = Directory(TempDir::new().unwrap());
        dir.put("config", CONFIG);
        dir
    }

    fn store_with(&self, timing: Timing) -> AnyStore {
        DirectoryStore::new(self.path(""), timing).into()
    }

    fn put(&self, name: &str, value: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, value).unwrap();
    }

    fn delete(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    fn get(&self, name: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.path(name)).ok()?;
        // Without the two keys that a directory adds.
        let value = text
            .split(",\"Created\"")
            .next()
            .unwrap()
            .split(",\"Expires\"")
            .next()
            .unwrap();
        Some(format!("{}}}", value.trim().trim_end_matches('}')).replace("\"}", "\"}}"))
    }

    fn subnets(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.path("subnets")).unwrap();
        files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    fn is_reservation(&self, key: &str) -> bool {
        let text = std::fs::read_to_string(self.path(&format!("subnets/{key}"))).unwrap();
        !text.contains("Expires")
    }
}
