//! As much of systemd as a unit with `Type=notify` needs.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use lab::{Lab, Process, wait_for};

use crate::scene::SOON;

/// Hears what a service says through `$NOTIFY_SOCKET`.
pub struct Manager {
    socket: UnixDatagram,
    name: String,
}

impl Manager {
    pub fn new(lab: &Lab, name: &str) -> Manager {
        let name = format!("notify-{name}");
        let socket = UnixDatagram::bind(lab.shared_dir().join(&name)).unwrap();
        let step = Duration::from_millis(100);
        socket.set_read_timeout(Some(step)).unwrap();
        Manager { socket, name }
    }

    /// The socket's path, as the places of the lab know it.
    pub fn socket(&self) -> String {
        format!("{}/{}", lab::SHARED_DIR, self.name)
    }

    /// Waits for `READY=1`; the service must not end before.
    pub fn wait_ready(&self, service: &Process) {
        let mut buffer = [0; 4096];
        wait_for("READY=1", SOON, || {
            assert_eq!(service.ended().unwrap(), None, "{}", service.log_tail(20));
            let n = self.socket.recv(&mut buffer).map_err(|e| e.to_string())?;
            let said = String::from_utf8_lossy(&buffer[..n]);
            match said.lines().any(|line| line == "READY=1") {
                true => Ok(()),
                false => Err(said.into_owned()),
            }
        })
        .unwrap_or_else(|e| panic!("{e}\n{}", service.log_tail(20)));
    }
}

/// The words of `key=` in a unit: a line that ends with a backslash goes on, words are split at white space.
pub fn command_line(unit: &str, key: &str) -> Vec<String> {
    let joined = unit.replace("\\\n", " ");
    let value = joined
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let value = value.unwrap_or_else(|| panic!("no {key} in\n{unit}"));
    assert!(!value.contains(['"', '\'', '%', '$']), "{value}");
    value.split_whitespace().map(String::from).collect()
}
