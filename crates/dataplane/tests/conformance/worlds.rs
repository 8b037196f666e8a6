//! The two kernels: the fake one, and the real one in a network namespace of its own.

#![allow(unsafe_code, reason = "a namespace for each test")]

use std::future::Future;
use std::process::Command;
use std::time::{Duration, Instant};

use dataplane::fake::FakeKernel;
use dataplane::{Dataplane, Kernel, Scope};
use model::object::{Link, LinkKind};
use model::{Object, Op};

use crate::objects::{IFACE, IFACE_INDEX, dev};
use crate::truth;

/// A host with `eth0` (192.168.7.1/24, fd07::1/64) and `eth1` (192.168.8.1/24), on which others can
/// make changes.
pub trait World {
    type Plane: Dataplane;
    /// A program's door to the kernel.
    fn plane(&self) -> Self::Plane;
    /// Somebody else makes a change.
    fn outside(&self, op: &Op);
    /// Somebody else changes MAC or MTU of a device in place.
    fn alter(&self, name: &str, link: &Link);
    /// Somebody else sets a device up or down.
    fn set_up(&self, name: &str, up: bool);
    /// The carrier of `eth0` comes or goes.
    fn set_carrier(&self, carrier: bool);
    /// What there is in `scope`, asked for apart from every plane.
    async fn truth(&self, scope: &Scope) -> Vec<Object>;
}

pub struct Fake(FakeKernel);

impl Fake {
    pub fn new(next_hops: bool) -> Fake {
        let kernel = FakeKernel::new(next_hops);
        let nets = [
            "192.168.7.1/24".parse().unwrap(),
            "fd07::1/64".parse().unwrap(),
        ];
        kernel.add_iface(dev(IFACE), IFACE_INDEX, 1500, &nets);
        kernel.add_iface(
            dev("eth1"),
            IFACE_INDEX + 1,
            1500,
            &["192.168.8.1/24".parse().unwrap()],
        );
        Fake(kernel)
    }
}

impl World for Fake {
    type Plane = FakeKernel;

    fn plane(&self) -> FakeKernel {
        self.0.another()
    }

    fn outside(&self, op: &Op) {
        assert!(self.0.outside(op), "the fake kernel refused {op}");
    }

    fn alter(&self, name: &str, link: &Link) {
        self.outside(&Op::Put(Object::Link(dev(name), link.clone())));
    }

    fn set_up(&self, name: &str, up: bool) {
        self.0.set_up(&dev(name), up);
    }

    fn set_carrier(&self, carrier: bool) {
        self.0.set_carrier(&dev(IFACE), carrier);
    }

    async fn truth(&self, scope: &Scope) -> Vec<Object> {
        let mut plane = self.0.another();
        plane.set_scope(scope.clone());
        plane.in_scope()
    }
}

pub struct Real {
    next_hops: bool,
}

impl Real {
    /// In the calling thread's network namespace: see [`in_namespace`].
    pub fn new(next_hops: bool) -> Real {
        // Without duplicate checks, nothing changes by itself a second later.
        for which in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{which}/accept_dad");
            std::fs::write(path, "0").unwrap();
        }
        sh("ip link set lo up");
        for (name, index, nets) in [
            (IFACE, IFACE_INDEX, "192.168.7.1/24 fd07::1/64"),
            ("eth1", IFACE_INDEX + 1, "192.168.8.1/24"),
        ] {
            let peer = name.replace("eth", "peer");
            sh(&format!(
                "ip link add {name} index {index} type veth peer name {peer}"
            ));
            sh(&format!("ip link set {peer} up && ip link set {name} up"));
            nets.split(' ')
                .for_each(|net| drop(sh(&format!("ip address add {net} dev {name}"))));
            // The kernel tells of the carrier when it comes to it, on a busy machine a second later.
            let deadline = Instant::now() + Duration::from_secs(60);
            while !sh(&format!("ip link show dev {name}")).contains(" state UP ") {
                assert!(Instant::now() < deadline, "{name} does not come up");
            }
        }
        // Addresses that were given before the carrier came are checked, in the background, when it comes.
        let deadline = Instant::now() + Duration::from_secs(60);
        let unsettled = || {
            sh("ip -6 address show").contains("tentative")
                || !sh("ip -6 route show dev eth0").contains("fd07::/64")
        };
        while unsettled() {
            assert!(Instant::now() < deadline, "an IPv6 address stays tentative");
        }
        Real { next_hops }
    }
}

impl World for Real {
    type Plane = Kernel;

    fn plane(&self) -> Kernel {
        Kernel::open(!self.next_hops).unwrap()
    }

    /// By the command that an operation prints as: another program's view of what it means.
    fn outside(&self, op: &Op) {
        sh(&op.to_string());
    }

    fn alter(&self, name: &str, link: &Link) {
        // To write the address that it has would take its neighbours along.
        let shown = sh(&format!("ip link show dev {name}"));
        let mac = link.mac.map(|mac| mac.to_string());
        let mac = mac.filter(|mac| !shown.contains(mac.as_str()));
        let mac = mac.map(|mac| format!("address {mac}")).unwrap_or_default();
        sh(&format!("ip link set {name} {mac} mtu {}", link.mtu));
        if let LinkKind::Vxlan(vxlan) = &link.kind
            && let Some(on) = vxlan.tx_checksum
        {
            sh(&format!(
                "ethtool -K {name} tx {}",
                if on { "on" } else { "off" }
            ));
        }
    }

    fn set_up(&self, name: &str, up: bool) {
        sh(&format!(
            "ip link set {name} {}",
            if up { "up" } else { "down" }
        ));
    }

    fn set_carrier(&self, carrier: bool) {
        self.set_up("peer0", carrier);
    }

    async fn truth(&self, scope: &Scope) -> Vec<Object> {
        truth::of(scope)
    }
}

/// Runs a command in the calling thread's network namespace; returns what it prints.
pub fn sh(command: &str) -> String {
    let out = Command::new("sh").args(["-c", command]).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command}: {err}");
    text
}

/// Runs `test` in a network namespace of its own, on a runtime of its own.
pub fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // SAFETY: takes no pointers; moves this thread alone to a new network namespace.
        let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(
            moved,
            0,
            "a new network namespace needs root: {}",
            std::io::Error::last_os_error()
        );
        on_runtime(test);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `test` on a current-thread runtime, as the daemon does.
pub fn on_runtime<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { test().await });
}
