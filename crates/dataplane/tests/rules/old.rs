//! Programs of iptables before 1.6.2, which know no `-w` and take no lock.

#![allow(unsafe_code, reason = "flock")]

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::world::{By, FLAGS, Kept, Programs, in_namespace, rules, sh};

/// Legacy iptables that behaves as 1.4.21 does; each run of `iptables-restore` is written to `runs`.
fn old_programs(complaint: &str) -> Programs {
    let mut programs = Programs::of(By::IptablesLegacy);
    for tool in ["iptables", "ip6tables"] {
        for part in ["", "-save", "-restore"] {
            programs = programs
                .without(&format!("{tool}-nft{part}"))
                .without(&format!("{tool}-legacy{part}"));
        }
        let dir = programs.dir().display().to_string();
        // The real program takes a lock too; an old one does not, so that is another one here.
        let restore = format!(
            "echo \"$@\" >>{dir}/runs
             for word; do case $word in -w) {complaint} exit 1;; esac; done
             XTABLES_LOCKFILE={dir}/lock exec /usr/sbin/{tool}-legacy-restore \"$@\""
        );
        programs.script(&format!("{tool}-restore"), &restore);
    }
    programs.script("iptables", "echo iptables v1.4.21");
    programs
}

#[test]
fn programs_that_cannot_wait_for_the_lock_run_under_it() {
    for complaint in [
        "echo \"iptables-restore: invalid option -- 'w'\" >&2;",
        "echo \"Can't open 10: No such file or directory\" >&2;",
    ] {
        in_namespace(move || async move {
            let programs = old_programs(complaint);
            let runs = programs.dir().join("runs");
            let mut kept = Kept::with(programs, By::IptablesLegacy.mode(), rules(FLAGS));

            let lock = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open("/run/xtables.lock")
                .unwrap();
            // SAFETY: takes no pointers; the descriptor is open.
            assert_eq!(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) }, 0);
            {
                let mut ensure = std::pin::pin!(kept.keeper.ensure());
                let held = tokio::time::timeout(Duration::from_millis(400), &mut ensure).await;
                assert!(held.is_err(), "written in spite of the lock");
                assert!(!By::IptablesLegacy.standing().contains("FLANNEL"));
                drop(lock);
                ensure.await.unwrap();
            }
            let standing = By::IptablesLegacy.standing();
            assert!(standing.contains("FLANNEL-POSTRTG"), "{standing}");
            assert!(!standing.contains("random"), "{standing}");
            assert!(kept.ensure().await.written.is_empty());

            // The answer is remembered.
            let before = std::fs::read_to_string(&runs).unwrap();
            assert_eq!(before.matches("-w").count(), 2, "{before}");
            sh("iptables-legacy -t nat -F FLANNEL-POSTRTG");
            kept.ensure().await;
            let after = std::fs::read_to_string(&runs).unwrap();
            assert_eq!(&after[before.len()..], "--noflush\n");
        });
    }
}
