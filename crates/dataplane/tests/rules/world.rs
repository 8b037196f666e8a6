//! A host in a network namespace of its own, and the programs it has.

#![allow(unsafe_code, reason = "a namespace for each test")]

use std::fs::{File, Permissions};
use std::future::Future;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dataplane::rules::{Change, Mode, RulesKeeper};
use model::rules::RuleFlags;
use model::{Dual, TrafficRules};

/// The ways by which rules are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    IptablesNft,
    IptablesLegacy,
    Nftables,
}

pub const ALL: [By; 3] = [By::IptablesNft, By::IptablesLegacy, By::Nftables];

/// For those who do not tell of changes; short, so that tests are.
pub const RESYNC: Duration = Duration::from_millis(400);

/// So late that whatever is repaired was noticed.
pub const NEVER: Duration = Duration::from_secs(3600);

impl By {
    pub fn mode(self) -> Mode {
        match self {
            By::Nftables => Mode::Nftables,
            _ => Mode::Iptables,
        }
    }

    /// The suffix of the programs that show what stands in this place.
    pub fn suffix(self) -> &'static str {
        match self {
            By::IptablesLegacy => "-legacy",
            _ => "-nft",
        }
    }

    /// What stands here, in both families, without counters, dates and handles.
    pub fn standing(self) -> String {
        let text = match self {
            By::Nftables => sh(
                "nft list tables | sort; for f in 'ip flannel-ipv4' 'ip6 flannel-ipv6'; do nft list table $f 2>/dev/null || true; done",
            ),
            _ => {
                let suffix = self.suffix();
                sh(&format!("iptables{suffix}-save; ip6tables{suffix}-save"))
            }
        };
        let counter = |line: &str| line.split(" [").next().unwrap_or_default().to_owned();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| counter(line) + "\n").collect()
    }
}

/// A directory of programs in which the plain `iptables` is of one variant.
pub struct Programs(PathBuf);

impl Programs {
    pub fn of(by: By) -> Programs {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "flannel-rules-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir).unwrap();
        let programs = Programs(dir);
        for tool in ["iptables", "ip6tables"] {
            for part in ["", "-save", "-restore"] {
                programs.link(
                    &format!("{tool}{part}"),
                    &format!("{tool}{}{part}", by.suffix()),
                );
                for exact in ["-nft", "-legacy"] {
                    let name = format!("{tool}{exact}{part}");
                    programs.link(&name, &name);
                }
            }
        }
        programs.link("nft", "nft");
        programs
    }

    fn link(&self, name: &str, to: &str) {
        let found = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
            .into_iter()
            .map(|dir| Path::new(dir).join(to))
            .find(|path| path.exists());
        let found = found
            .unwrap_or_else(|| panic!("{to} is not installed: packages iptables and nftables"));
        symlink(found.canonicalize().unwrap(), self.0.join(name)).unwrap();
    }

    pub fn without(self, name: &str) -> Programs {
        std::fs::remove_file(self.0.join(name)).unwrap();
        self
    }

    /// Puts a shell script in a program's place.
    pub fn script(&self, name: &str, script: &str) {
        let path = self.0.join(name);
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }

    pub fn dir(&self) -> &Path {
        &self.0
    }

    pub fn dirs(&self) -> Vec<PathBuf> {
        vec![self.0.clone()]
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub const FLAGS: RuleFlags = RuleFlags {
    masquerade: true,
    masquerade_ipv6: true,
    fully_random: true,
    forward: true,
};

/// The rules of the node 10.1.5.0/24, fd00:0:0:5::/64.
pub fn rules(flags: RuleFlags) -> TrafficRules {
    let dual = |v4: &str, v6: &str| Dual {
        v4: Some(v4.parse().unwrap()),
        v6: Some(v6.parse().unwrap()),
    };
    TrafficRules::of(
        &dual("10.1.0.0/16", "fd00::/48"),
        &dual("10.1.5.0/24", "fd00:0:0:5::/64"),
        flags,
    )
}

/// A keeper with the programs that it finds.
pub struct Kept {
    pub keeper: RulesKeeper,
    pub programs: Programs,
}

impl Kept {
    pub fn new(by: By, desired: TrafficRules) -> Kept {
        Kept::with(Programs::of(by), by.mode(), desired)
    }

    pub fn with(programs: Programs, mode: Mode, desired: TrafficRules) -> Kept {
        Kept::looking_every(RESYNC, programs, mode, desired)
    }

    /// One that looks so often at what does not tell of changes.
    pub fn looking_every(
        resync: Duration,
        programs: Programs,
        mode: Mode,
        desired: TrafficRules,
    ) -> Kept {
        let keeper = RulesKeeper::new(mode, desired, resync).with_programs_in(programs.dirs());
        Kept { keeper, programs }
    }

    pub async fn ensure(&mut self) -> Change {
        self.keeper.ensure().await.unwrap()
    }

    /// Waits for a change that somebody just made, and mends it until `well`; returns how long
    /// that took.
    pub async fn repair(&mut self, what: &str, well: impl Fn() -> bool) -> Duration {
        let began = Instant::now();
        loop {
            let changed = tokio::time::timeout(Duration::from_secs(60), self.keeper.changed());
            let noticed = changed.await.is_ok();
            assert!(noticed, "{what}: not noticed\n{}", sh("nft list ruleset"));
            self.ensure().await;
            let took = began.elapsed();
            if well() {
                return took;
            }
        }
    }
}

/// Runs a command in the calling thread's network namespace; returns what it prints.
pub fn sh(command: &str) -> String {
    let out = Command::new("sh")
        .args(["-c", command])
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command}: {err}");
    text
}

/// Runs `test` in a network namespace of its own, on a runtime of its own.
pub fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare();
        sh("ip link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { test().await });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn unshare() {
    // SAFETY: takes no pointers; moves this thread alone to a new network namespace.
    let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(
        moved,
        0,
        "a new network namespace needs root: {}",
        std::io::Error::last_os_error()
    );
}

/// Another network namespace, without a name; gone when dropped.
pub struct Net(File);

impl Net {
    pub fn new() -> Net {
        let open = || {
            unshare();
            Net(File::open("/proc/thread-self/ns/net").unwrap())
        };
        std::thread::spawn(open).join().unwrap()
    }

    /// A path by which `ip … netns PATH` finds it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `f` in a thread that is in there. Sockets that it makes stay in there.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            // SAFETY: the descriptor is open; moves this thread alone.
            let moved = unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(moved, 0, "{}", std::io::Error::last_os_error());
            f()
        };
        std::thread::scope(|s| match s.spawn(enter).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    pub fn sh(&self, command: &str) -> String {
        self.run(|| sh(command))
    }
}

/// A node with a pod, another node's pod and the world outside, cabled; made around the calling
/// thread's namespace.
///
/// | place | addresses |
/// |---|---|
/// | pod | 10.1.5.2, fd00:0:0:5::2 |
/// | node, towards the pod | 10.1.5.1, fd00:0:0:5::1 |
/// | node, towards the remote pod, as on `flannel.1` | 10.1.5.0, fd00:0:0:5:: |
/// | remote pod | 10.1.9.2, fd00:0:0:9::2 |
/// | node, towards outside | 192.0.2.10, 2001:db8::10 |
/// | outside | 192.0.2.1, 2001:db8::1 |
pub struct Site {
    pub pod: Net,
    pub remote: Net,
    pub outside: Net,
}

impl Site {
    pub fn new() -> Site {
        let site = Site {
            pod: Net::new(),
            remote: Net::new(),
            outside: Net::new(),
        };
        let settings = "for d in /proc/sys/net/ipv6/conf/*; do echo 0 >$d/accept_dad; done
            for d in /proc/sys/net/ipv4/conf/*; do echo 0 >$d/rp_filter; done
            echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding";
        sh(settings);
        for (net, name, here, there, routes) in [
            (
                &site.pod,
                "pod",
                "10.1.5.1/24 fd00:0:0:5::1/64",
                "10.1.5.2/24 fd00:0:0:5::2/64",
                "default via 10.1.5.1|default via fd00:0:0:5::1",
            ),
            (
                &site.remote,
                "flan",
                "10.1.5.0/32 fd00:0:0:5::/128",
                "10.1.9.2/32 fd00:0:0:9::2/128",
                "default via 10.1.5.0 dev eth0 onlink|default via fd00:0:0:5:: dev eth0 onlink",
            ),
            (
                &site.outside,
                "out",
                "192.0.2.10/24 2001:db8::10/64",
                "192.0.2.1/24 2001:db8::1/64",
                "10.1.0.0/16 via 192.0.2.10|fd00::/48 via 2001:db8::10",
            ),
        ] {
            sh(&format!(
                "ip link add {name} type veth peer name eth0 netns {}",
                net.path()
            ));
            net.sh(settings);
            net.sh("ip link set lo up && ip link set eth0 up");
            sh(&format!("ip link set {name} up"));
            here.split(' ')
                .for_each(|a| drop(sh(&format!("ip address add {a} dev {name} nodad"))));
            there
                .split(' ')
                .for_each(|a| drop(net.sh(&format!("ip address add {a} dev eth0 nodad"))));
            routes
                .split('|')
                .for_each(|r| drop(net.sh(&format!("ip route add {r}"))));
        }
        sh("ip route add 10.1.9.0/24 dev flan && ip route add fd00:0:0:9::/64 dev flan");
        site
    }
}
