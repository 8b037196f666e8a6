//! The process that has a name of the lock, as `/proc` shows it: for a holder that takes no connection.

use std::fmt;
use std::fs;
use std::path::Path;

/// A process that has a socket of a certain name open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) pid: i32,
    /// The program's name.
    program: String,
    /// The user who started it. (The effective user may be another: a program that is set-user-ID
    /// inherits its caller's sockets.)
    user: u32,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Owner { pid, program, user } = self;
        write!(f, "{program} (pid {pid}, user {user})")
    }
}

impl Owner {
    /// Returns whether a daemon that this one has to respect could be run by that user.
    pub(super) fn is_root_or(&self, own_user: Option<u32>) -> bool {
        self.user == 0 || Some(self.user) == own_user
    }
}

/// Returns the owner of the abstract socket of this name in this network namespace: of several processes that
/// share it, one that is not root's. `None` if this process namespace does not show it.
pub(super) fn find(name: &str) -> Option<Owner> {
    let sockets = fs::read_to_string("/proc/self/net/unix").ok()?;
    let link = format!("socket:[{}]", inode(&sockets, name)?);
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let owners = processes.filter_map(|process| {
        let pid: i32 = process.file_name().to_str()?.parse().ok()?;
        has_open(&process.path(), &link).then(|| owner(pid))?
    });
    owners.max_by_key(|owner| owner.user)
}

/// Returns the real user of this process.
pub(super) fn own_user() -> Option<u32> {
    real_user(&fs::read_to_string("/proc/self/status").ok()?)
}

/// Finds the inode of the socket in what `/proc/net/unix` shows: its columns are address, references, protocol, flags,
/// type, state, inode and name; an abstract name begins with `@`.
fn inode(sockets: &str, name: &str) -> Option<u64> {
    sockets.lines().find_map(|line| {
        let (columns, path) = line.split_once(" @")?;
        // Connections that the holder has not accepted yet bear the name too, and no inode.
        let inode = columns.split_whitespace().nth(6)?.parse().ok()?;
        (path == name && inode != 0).then_some(inode)
    })
}

fn has_open(process: &Path, link: &str) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    let mut targets = descriptors
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok());
    targets.any(|target| target.as_os_str() == link)
}

fn owner(pid: i32) -> Option<Owner> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let program = status.lines().find_map(|line| line.strip_prefix("Name:"));
    Some(Owner {
        pid,
        program: program?.trim().to_owned(),
        user: real_user(&status)?,
    })
}

fn real_user(status: &str) -> Option<u32> {
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    users.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    use super::*;

    #[test]
    fn the_owner_of_a_socket_is_found_also_behind_a_full_queue() {
        let name = format!("flannel-rs test of owner {}", std::process::id());
        assert_eq!(find(&name), None);
        let at = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&at).unwrap();
        let waiting: Vec<_> = (0..3).map(|_| UnixStream::connect_addr(&at)).collect();
        let owner = find(&name).unwrap();
        assert_eq!(owner.pid, std::process::id() as i32);
        assert_eq!(Some(owner.user), own_user());
        assert!(owner.is_root_or(own_user()));
        drop((waiting, listener));
        assert_eq!(find(&name), None);
    }

    #[test]
    fn a_name_is_compared_whole() {
        let sockets = "Num       RefCount Protocol Flags    Type St Inode Path\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 11 @flannel-rs device flannel.10\n\
             0000000000000000: 00000003 00000000 00000000 0001 02 0 @flannel-rs device flannel.1\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 12 @flannel-rs device flannel.1\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 13\n";
        assert_eq!(inode(sockets, "flannel-rs device flannel.1"), Some(12));
        assert_eq!(inode(sockets, "flannel.1"), None);
    }

    #[test]
    fn the_user_is_the_one_who_started_the_program() {
        let status = "Name:\tsu\nUid:\t1000\t0\t0\t0\nGid:\t0\t0\t0\t0\n";
        assert_eq!(real_user(status), Some(1000));
    }
}
