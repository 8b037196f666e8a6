//! The network configuration in a file, followed: by notifications of its directory where there are any, and
//! by looking now and then.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use model::NetConfig;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::event_queue::EventQueue;
use crate::notify::{Changes, Notify};

/// No configuration is larger.
const LARGEST: u64 = 1 << 20;
/// How long after a notification the file is read: an editor may write it in several steps.
const SETTLES: Duration = Duration::from_millis(100);
/// A file that cannot be used, or is missing, may be half written: it is reported if it is so after this time.
const STAYS: Duration = Duration::from_secs(1);
/// What the kubelet replaces when a ConfigMap changes: the link to the directory of its files.
const CONFIG_MAP: &str = "..data";

/// What reading the file gave: its bytes, or the error as text.
type Found = Result<Vec<u8>, (io::ErrorKind, String)>;

/// Reports what the file at `path` holds, and every change of it, for ever.
pub(crate) async fn follow<P>(path: PathBuf, poll: Duration, queue: Arc<EventQueue>, parse: P)
where
    P: Fn(&Path, io::Result<Vec<u8>>) -> Result<NetConfig, String>,
{
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new(".")).to_owned();
    let mut notify = None;
    let mut reported: Option<Found> = None;
    loop {
        if notify.is_none() {
            // Before the file is read, so that no change is missed.
            notify = watch(dir.clone()).await;
        }
        let found = read(path.clone()).await;
        if reported.as_ref() != Some(&found) {
            let config = parse(&path, bytes(&found));
            let is_final = config.is_ok() || {
                sleep(STAYS).await;
                read(path.clone()).await == found
            };
            if !is_final {
                continue;
            }
            queue.config(config);
            reported = Some(found);
        }
        let wait = poll.mul_f64(0.75 + fastrand::f64() / 2.0);
        if let Ok(lost) = timeout(wait, changed(notify.as_ref(), &path)).await {
            if lost {
                notify = None;
            }
            sleep(SETTLES).await;
        }
    }
}

/// Waits for a change of the file. Returns whether there will be no more notifications.
async fn changed(notify: Option<&Notify>, path: &Path) -> bool {
    let Some(notify) = notify else {
        return std::future::pending().await;
    };
    loop {
        let Ok(Changes {
            names,
            lost_some,
            moved,
        }) = notify.changes().await
        else {
            return true;
        };
        let is_about = |name: &std::ffi::OsString| {
            Some(name.as_os_str()) == path.file_name() || name == CONFIG_MAP
        };
        if moved || lost_some || names.iter().any(is_about) {
            return moved;
        }
    }
}

async fn watch(dir: PathBuf) -> Option<Notify> {
    // A file system that hangs must not stop the daemon's thread; the descriptor is registered there.
    let exists = spawn_blocking({
        let dir = dir.clone();
        move || dir.is_dir()
    });
    match exists.await {
        Ok(true) => Notify::new(&dir).ok(),
        Ok(false) | Err(_) => None,
    }
}

async fn read(path: PathBuf) -> Found {
    let reading = spawn_blocking(move || {
        let mut bytes = Vec::new();
        File::open(path)?
            .take(LARGEST)
            .read_to_end(&mut bytes)
            .map(|_| bytes)
    });
    let read = reading.await.unwrap_or_else(|e| Err(io::Error::other(e)));
    read.map_err(|error| (error.kind(), error.to_string()))
}

fn bytes(found: &Found) -> io::Result<Vec<u8>> {
    found
        .clone()
        .map_err(|(kind, text)| io::Error::new(kind, text))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn parse(_: &Path, read: io::Result<Vec<u8>>) -> Result<NetConfig, String> {
        let json = read.map_err(|e| e.to_string())?;
        NetConfig::from_json(&String::from_utf8_lossy(&json)).map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn a_config_map_is_followed_through_its_link() {
        let dir = tempfile::tempdir().unwrap();
        let version = |name: &str, network: &str| {
            fs::create_dir(dir.path().join(name)).unwrap();
            let json = format!(r#"{{"Network":"{network}"}}"#);
            fs::write(dir.path().join(name).join("net-conf.json"), json).unwrap();
            symlink(name, dir.path().join("..new")).unwrap();
            // As the kubelet does.
            fs::rename(dir.path().join("..new"), dir.path().join("..data")).unwrap();
        };
        version("..1", "10.1.0.0/16");
        let path = dir.path().join("net-conf.json");
        symlink("..data/net-conf.json", &path).unwrap();
        let queue = Arc::new(EventQueue::default());
        // Nothing is found by looking now and then.
        let seldom = Duration::from_secs(3600);
        let following = tokio::spawn(follow(path, seldom, queue.clone(), parse));
        for number in 1..4 {
            let network = format!("10.{number}.0.0/16");
            if number > 1 {
                version(&format!("..{number}"), &network);
            }
            let event = timeout(Duration::from_secs(60), queue.next_event()).await;
            let config = event.unwrap().config.unwrap().unwrap();
            assert_eq!(config.pools.v4.unwrap().network.to_string(), network);
        }
        following.abort();
    }
}
