//! The rights that a lab needs: root, or the root of a user namespace of one's own.

use std::fs;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::Error;
use crate::error::Doing;
use crate::namespace::in_thread;

/// Makes the calling process root of a user namespace of its own, unless it may do all that a lab
/// needs already. To be called at the start of `main`: the kernel refuses it to a process with
/// several threads. Test programs are run under `scripts/as-root` instead.
///
/// # Errors
/// [`Error::Needs`]: the machine refuses user namespaces; says which setting does so.
pub fn become_root() -> Result<(), Error> {
    if try_namespaces().is_ok() {
        return Ok(());
    }
    if nix::unistd::geteuid().is_root() {
        return check();
    }
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER)
        .map_err(|e| refused(&format!("a user namespace is refused ({e})")))?;
    let write = |path: &str, text: String| fs::write(path, text).doing(|| path.into());
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    check()
}

/// Whether this process may make the namespaces and mounts of a lab.
///
/// # Errors
/// [`Error::Needs`], with what would help.
pub fn check() -> Result<(), Error> {
    try_namespaces().map_err(|e| refused(&format!("namespaces are refused ({e})")))
}

fn try_namespaces() -> Result<(), Errno> {
    let attempt = || -> Result<Result<(), Errno>, Error> {
        let all = CloneFlags::CLONE_FS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID;
        let private = || {
            mount(
                None::<&str>,
                "/",
                None::<&str>,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                None::<&str>,
            )
        };
        let tmpfs = || {
            mount(
                Some("tmpfs"),
                "/run",
                Some("tmpfs"),
                MsFlags::empty(),
                None::<&str>,
            )
        };
        Ok(unshare(all).and_then(|()| private()).and_then(|()| tmpfs()))
    };
    in_thread(attempt).unwrap_or(Err(Errno::EAGAIN))
}

fn refused(what: &str) -> Error {
    let mut text = format!("a lab needs root, or user namespaces for everybody: {what}");
    if nix::unistd::geteuid().is_root() && user_namespace() {
        text.push_str("\n  this is the root of a user namespace with too few rights");
    } else if nix::unistd::geteuid().is_root() {
        text.push_str(
            "\n  root without CAP_SYS_ADMIN or CAP_NET_ADMIN, as in a container: start the container with --privileged",
        );
    }
    let blockers = [
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ("user.max_user_namespaces", "0", "10000"),
        ("user.max_net_namespaces", "0", "10000"),
    ];
    for (key, bad, good) in blockers {
        let value =
            fs::read_to_string(format!("/proc/sys/{}", key.replace('.', "/"))).unwrap_or_default();
        if value.trim() == bad {
            text.push_str(&format!(
                "\n  {key} is {bad}; as root: sysctl -w {key}={good}"
            ));
        }
    }
    text.push_str("\n  or run it as root");
    Error::Needs(text)
}

/// Whether this process is in a user namespace other than the machine's first one.
pub fn user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let fields: Vec<&str> = map.split_whitespace().collect();
    fields != ["0", "0", "4294967295"]
}

/// Whether this is the machine's own root; if not, tells everybody that `what`, which needs it, was not run.
pub fn real_root_for(what: &str) -> bool {
    let root = !user_namespace();
    if !root {
        let why = "it needs the machine's root, not that of a user namespace";
        crate::not_run(what, &Error::Needs(why.into()));
    }
    root
}
