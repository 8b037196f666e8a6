#![allow(unsafe_code, reason = "an ioctl with a structure of its own")]

use std::process::Command;

use super::*;
use crate::netlink::link;

/// Runs in a network namespace of its own, which has a vxlan device `flannel.1`.
fn with_device(test: impl FnOnce(u32, IfName) + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // SAFETY: takes no pointers; moves this thread alone to a new network namespace.
        let alone = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(alone, 0, "needs root");
        run("ip link add eth0 type veth peer name eth1");
        run("ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472");
        let name = "flannel.1".parse().unwrap();
        let index = link::index_of(&mut Requests::open().unwrap(), &name).unwrap();
        test(index, name);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn run(command: &str) -> String {
    let out = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(out.status.success(), "{command}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

fn ethtool_says() -> bool {
    run("ethtool -k flannel.1").contains("tx-checksumming: on")
}

#[test]
fn what_is_set_is_what_ethtool_shows() {
    with_device(|index, name| {
        for on in [false, true, true, false] {
            set_tx_checksum(index, &name, on).unwrap();
            assert_eq!(ethtool_says(), on);
            assert_eq!(tx_checksum(index, &name), Some(on));
        }
        run("ethtool -K flannel.1 tx on");
        assert_eq!(tx_checksum(index, &name), Some(true));
    });
}

#[test]
fn the_older_way_does_the_same() {
    with_device(|index, name| {
        let requests = Requests::open_for(NETLINK_GENERIC).unwrap();
        for on in [false, true] {
            ioctl(requests.fd(), &name, ETHTOOL_STXCSUM, u32::from(on)).unwrap();
            assert_eq!(ethtool_says(), on);
            assert_eq!(tx_checksum(index, &name), Some(on));
            let told = ioctl(requests.fd(), &name, ETHTOOL_GTXCSUM, 0).unwrap();
            assert_eq!(told != 0, on);
        }
    });
}

#[test]
fn what_cannot_be_changed_is_said() {
    with_device(|index, name| {
        let gone = "gone0".parse().unwrap();
        assert_eq!(tx_checksum(index + 100, &gone), None);
        let failure = set_tx_checksum(index + 100, &gone, false).unwrap_err();
        assert_eq!(failure.errno, libc::ENODEV);
        // The loopback's is fixed.
        let lo = "lo".parse().unwrap();
        let failure = set_tx_checksum(1, &lo, false).unwrap_err();
        assert!(failure.text.contains("lo does not let"), "{failure:?}");
        assert!(ethtool_says() && tx_checksum(index, &name) == Some(true));
    });
}
