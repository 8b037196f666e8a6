//! Which flannel daemons run in this network namespace, ours or another, whatever their file is called:
//! upstream's release is `flanneld-amd64`, k3s has flannel inside its own program, and a container's
//! program may have any name. What a program is made of does not depend on its name.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use memchr::memmem::Finder;

/// How the file of a flannel daemon's program usually begins.
const PROGRAM: &str = "flanneld";

/// Text that only the program of a flannel daemon holds, backwards: else this program would hold it
/// too. Upstream's is the path of a package, which Go keeps in every program, stripped ones included.
const SIGNS: [&str; 3] = [
    // Ours: in the source of flanneld's `main`.
    "nomead edon sr-lennalf",
    "dnekcab/gkp/lennalf/oi-lennalf/moc.buhtig",
    "dnekcab/lennalf/soeroc/moc.buhtig",
];

/// Programs that are several in one, and the words of those that have a flannel.
const SEVERAL_IN_ONE: [(&str, [&str; 2]); 2] =
    [("k3s", ["server", "agent"]), ("rke2", ["server", "agent"])];

/// Without it nobody writes routes; flannel has it, most processes have not. A bit of `CapEff`.
const CAP_NET_ADMIN: u32 = 12;

/// How much of a program is read at a time.
const PIECE: usize = 1 << 20;

/// A daemon that runs.
pub(crate) struct Running {
    pub(crate) pid: u32,
    /// Its program's file, or else its name.
    pub(crate) program: String,
}

impl Running {
    /// Whether it is a flanneld by its name: then its command line is one, too.
    pub(crate) fn is_named(&self) -> bool {
        let path = Path::new(&self.program);
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(PROGRAM))
    }
}

/// Looks through all processes.
///
/// # Errors
/// There is no `/proc` to look at.
pub(crate) fn running() -> Result<Vec<Running>> {
    let here = fs::read_link("/proc/self/ns/net").context("/proc/self/ns/net")?;
    let mut programs = Programs::default();
    let mut running = Vec::new();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let Some((pid, dir)) = entry.ok().and_then(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, entry.path()))
        }) else {
            continue;
        };
        if pid == std::process::id() || !shares(&dir, &here) {
            continue;
        }
        if let Some(program) = flannel(&dir, &mut programs) {
            running.push(Running { pid, program });
        }
    }
    running.sort_by_key(|daemon| daemon.pid);
    Ok(running)
}

/// What a process is called, if it is a flannel that has not ended.
fn flannel(process: &Path, programs: &mut Programs) -> Option<String> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
    if rest.starts_with(['Z', 'X']) {
        return None;
    }
    let program = fs::read_link(process.join("exe")).ok();
    let file = program.as_deref().and_then(file_name);
    let file = file.as_deref().unwrap_or(name);
    let named = name.starts_with(PROGRAM) || file.starts_with(PROGRAM);
    let is_one = named
        || (may_write_routes(process)
            && programs.are_flannel(process)
            && plays_flannels_part(process, file, name));
    is_one.then(|| program.map_or_else(|| name.to_owned(), |path| path.display().to_string()))
}

/// The last part of a program's path; one that was replaced meanwhile is shown as "(deleted)".
fn file_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    Some(name.strip_suffix(" (deleted)").unwrap_or(name).to_owned())
}

/// Whether the process may change the network; yes if that cannot be read.
fn may_write_routes(process: &Path) -> bool {
    let status = fs::read_to_string(process.join("status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    set.is_none_or(|set| set & (1 << CAP_NET_ADMIN) != 0)
}

/// Of a program that is several in one, only some have a flannel: not `kubectl`, not `containerd`.
fn plays_flannels_part(process: &Path, file: &str, name: &str) -> bool {
    let Some((_, parts)) = SEVERAL_IN_ONE.iter().find(|(several, _)| *several == file) else {
        return true;
    };
    let command = fs::read(process.join("cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command);
    let words: Vec<&str> = command.split(['\0', ' ']).collect();
    let none = words
        .windows(2)
        .any(|two| two == ["--flannel-backend", "none"])
        || words.contains(&"--flannel-backend=none");
    let is_part = |part: &&str| words.get(1) == Some(part) || name.ends_with(&format!("-{part}"));
    !none && parts.iter().any(is_part)
}

/// What programs are made of, each file read once.
#[derive(Default)]
struct Programs(HashMap<(u64, u64), bool>);

impl Programs {
    /// Whether the program of a process is a flannel daemon; no if it cannot be read.
    fn are_flannel(&mut self, process: &Path) -> bool {
        let Ok(file) = File::open(process.join("exe")) else {
            return false;
        };
        let Ok(found) = file.metadata() else {
            return false;
        };
        let known = self.0.entry((found.dev(), found.ino()));
        *known.or_insert_with(|| holds_a_sign(file).unwrap_or(false))
    }
}

fn holds_a_sign(mut file: impl Read) -> std::io::Result<bool> {
    // Not to be turned round by the compiler.
    let turned = |sign: &&str| std::hint::black_box(*sign).bytes().rev().collect();
    let signs: Vec<Vec<u8>> = SIGNS.iter().map(turned).collect();
    let finders: Vec<Finder> = signs.iter().map(Finder::new).collect();
    let overlap = signs.iter().map(Vec::len).max().unwrap_or(0);
    let mut piece = vec![0; PIECE + overlap];
    let mut kept = 0;
    loop {
        let read = match file.read(&mut piece[kept..]) {
            Ok(0) => return Ok(false),
            Ok(read) => read,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let end = kept + read;
        if finders
            .iter()
            .any(|sign| sign.find(&piece[..end]).is_some())
        {
            return Ok(true);
        }
        // A sign may lie across two pieces.
        kept = end.min(overlap);
        piece.copy_within(end - kept..end, 0);
    }
}

/// Returns whether this process is in a user namespace other than the machine's first one.
fn in_a_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether a process has this network namespace. One that does not let root look may have; whoever is
/// root of a user namespace only is not shown the processes of others, whose networks are not theirs.
fn shares(process: &Path, here: &Path) -> bool {
    match fs::read_link(process.join("ns/net")) {
        Ok(its) => its == *here,
        Err(e) if e.kind() == ErrorKind::PermissionDenied => !in_a_user_namespace(),
        // It ended just now.
        Err(e) => e.kind() != ErrorKind::NotFound && e.raw_os_error() != Some(nix::libc::ESRCH),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_is_found_wherever_it_lies() {
        let sign: Vec<u8> = SIGNS[1].bytes().rev().collect();
        for before in [0, 1, PIECE - 5, PIECE, PIECE + 5, 3 * PIECE - 1] {
            let program = [vec![b'x'; before], sign.clone(), vec![b'y'; 9]].concat();
            assert!(holds_a_sign(&program[..]).unwrap(), "{before}");
            let cut = &program[..before + sign.len() - 1];
            assert!(!holds_a_sign(cut).unwrap(), "{before}");
        }
    }

    #[test]
    fn this_program_is_no_daemon() {
        assert!(!holds_a_sign(File::open("/proc/self/exe").unwrap()).unwrap());
    }
}
