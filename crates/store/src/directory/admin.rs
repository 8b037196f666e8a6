//! The administrator's access to a directory.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::DirectoryStore;
use super::files::{Look, Place};
use super::worker::PATIENCE;
use crate::admin::{AdminError, Administer, ListedLease, StoredConfig};

/// No configuration is larger; etcd takes no larger value either.
const LARGEST: u64 = 1 << 20;

impl Place {
    fn read_config(&self) -> io::Result<Option<Vec<u8>>> {
        let file = match fs::File::open(self.config()) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut json = Vec::new();
        file.take(LARGEST).read_to_end(&mut json)?;
        Ok(Some(json))
    }

    /// Writes the configuration if it is still `was`; returns whether it was.
    fn swap_config(&self, json: &[u8], was: Option<&[u8]>) -> io::Result<bool> {
        fs::create_dir_all(self.root())?;
        let _lock = self.lock()?;
        if self.read_config()?.as_deref() != was {
            return Ok(false);
        }
        let new = self.temporary("config");
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(new.path())?;
        if let Ok(old) = fs::metadata(self.config()) {
            // Its mode may have been restricted, for it may hold a secret.
            file.set_permissions(old.permissions())?;
        }
        file.write_all(json)?;
        file.sync_all()?;
        match was {
            Some(_) => fs::rename(new.path(), self.config())?,
            // Not over one that another program wrote without our lock.
            None => match fs::hard_link(new.path(), self.config()) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(false),
                linked => linked?,
            },
        }
        Ok(true)
    }

    fn list(&self) -> io::Result<Vec<ListedLease>> {
        self.measure_clock();
        let keys = match self.names() {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            names => names?.keys,
        };
        let mut leases = Vec::new();
        for key in keys {
            let (attrs, expires) = match self.look(&key, None)? {
                Look::Lease(entry, _) => (Ok(entry.attrs), entry.expires),
                Look::Bad(why, _) => (Err(why), None),
                Look::Same | Look::Empty(_) | Look::Gone => continue,
            };
            if expires.is_none_or(|end| end > self.clock.now()) {
                leases.push(ListedLease {
                    key,
                    attrs,
                    reserved: expires.is_none(),
                });
            }
        }
        leases.sort_by_key(|lease| lease.key);
        Ok(leases)
    }
}

impl DirectoryStore {
    /// Does `work` where blocking is allowed. `path` is what errors are about.
    async fn with_place<T: Send + 'static>(
        &self,
        path: &Path,
        work: impl FnOnce(&Place) -> io::Result<T> + Send + 'static,
    ) -> Result<T, AdminError> {
        let place = self.place.clone();
        let done = timeout(PATIENCE, spawn_blocking(move || work(&place))).await;
        let done = done.map_err(|_| {
            let seconds = PATIENCE.as_secs();
            let path = path.display();
            AdminError(format!(
                "{path}: the file system does not answer within {seconds} s"
            ))
        })?;
        let done = done.map_err(|e| AdminError(e.to_string()))?;
        done.map_err(|e| AdminError(format!("{}: {e}", path.display())))
    }
}

impl Administer for DirectoryStore {
    fn config_place(&self) -> String {
        self.place.config().display().to_string()
    }

    async fn stored_config(&self) -> Result<Option<StoredConfig>, AdminError> {
        let path = self.place.config();
        let found = self.with_place(&path, Place::read_config).await?;
        Ok(found.map(|json| StoredConfig { json, revision: 0 }))
    }

    async fn swap_config(
        &self,
        json: &[u8],
        was: Option<&StoredConfig>,
    ) -> Result<bool, AdminError> {
        let (json, was) = (json.to_vec(), was.map(|was| was.json.clone()));
        self.with_place(&self.place.config(), move |place| {
            place.swap_config(&json, was.as_deref())
        })
        .await
    }

    async fn leases(&self) -> Result<Vec<ListedLease>, AdminError> {
        self.with_place(&self.place.subnets(), Place::list).await
    }
}
